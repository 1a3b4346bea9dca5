"""Windows of served traffic: closed by the clock, once, with late rows counted; drift told with its event."""

import numpy as np
import pyarrow as pa
import pytest
from spooling import spool

from modelkeep.monitor import ingest, reference
from modelkeep.monitor.policy import Policy, policy
from modelkeep.monitor.windows import close_due
from modelkeep.registry import events, findings
from modelkeep.spec.declaration import Data, Declaration, Drift, Monitor
from modelkeep.stats.profile import Profile

LENGTH = 100.0
RULES = Policy(window=LENGTH, false_alarms=0.001, metric="roc_auc", grace=2.0)


@pytest.fixture(scope="module")
def trained():
    generator = np.random.default_rng(0)
    rows = 30 * 200
    table = pa.table(
        {
            "x": generator.normal(size=rows),
            "city": generator.choice(["JFK", "LGA"], rows).tolist(),
            "at": pa.array((np.repeat(np.arange(30), 200) * LENGTH * 1e6).astype("int64").astype("M8[us]")),
        }
    )
    return reference.load(reference.build(table, "at", ["x", "city"], LENGTH))


class Home:
    def __init__(self, folder, db, blobs, known):
        self.folder, self.db, self.blobs, self.known = folder / "capture", db, blobs, known
        self.generator = np.random.default_rng(1)
        self.files = 0

    def serve(self, start, end, rows, shift=0.0, **more):
        self.files += 1
        inputs = {
            "x": self.generator.normal(shift, 1, rows),
            "city": self.generator.choice(["JFK", "LGA"], rows).tolist(),
        }
        times = np.linspace(start, end - 0.001, rows)
        spool(self.folder, f"f{self.files}", times=times, inputs=inputs, score=self.generator.random(rows), **more)
        ingest.take_in(self.folder, self.db, self.blobs)

    def close(self, now, version=1):
        return close_due(
            self.db, self.blobs, endpoint="flights", model="flights", version=version,
            reference=self.known, policy=RULES, now=now, classes=[False, True],
        )  # fmt: skip

    def windows(self):
        with self.db.read() as conn:
            return findings.windows(conn, "flights")


@pytest.fixture
def home(tmp_path, db, blobs, trained):
    return Home(tmp_path, db, blobs, trained)


def test_a_window_closes_once_when_the_clock_has_passed_it(home):
    home.serve(100, 170, 50, errors=2)
    home.serve(170, 230, 60, dropped=1)
    assert home.close(201) == []
    assert home.windows() == []
    home.close(202.5)
    (window,) = home.windows()
    assert (window.start, window.end, window.rows, window.errors, window.dropped) == (100, 200, 80, 2, 1)
    assert set(window.latency) == {"p50", "p90", "p95", "p99"}
    described = Profile.from_bytes(home.blobs.read(window.profile))
    assert set(described.columns) == {"in.x", "in.city", "out.label", "out.confidence"}
    assert described.rows == 80
    home.close(202.6)
    home.close(303)
    assert [(w.start, w.rows) for w in home.windows()] == [(100, 80), (200, 30)]
    home.close(1000)
    assert len(home.windows()) == 2


def test_drift_is_told_once_with_evidence_and_event(home):
    home.serve(100, 200, 200)
    home.serve(200, 300, 200, shift=1.0)
    (finding,) = home.close(400)
    assert (finding.kind, finding.version, finding.at) == ("drift", 1, 400)
    assert finding.evidence["text"].startswith("1 of 2 inputs changed: x: median")
    (column,) = finding.evidence["columns"]
    assert column["column"] == "x"
    assert column["distance"] > 0.2
    assert column["p"] < 1e-4
    with home.db.read() as conn:
        assert [f.id for f in findings.findings(conn, "flights")] == [finding.id]
        (event,) = events.history(conn, kind="finding.")
        assert (event.subject, event.data["finding"]) == ("flights@1", finding.id)
    home.serve(290, 300, 10, shift=1.0)  # late rows: counted, not told again
    assert home.close(500) == []
    assert [w.rows for w in home.windows()] == [200, 210]


def test_rows_that_come_late_are_counted(home):
    home.serve(100, 200, 50)
    home.serve(300, 400, 50)
    home.close(500)
    home.serve(110, 190, 30)
    home.serve(210, 290, 40)
    home.close(501)
    home.serve(400, 500, 50)
    home.close(603)
    assert [(w.start, w.rows) for w in home.windows()] == [(100, 80), (200, 40), (300, 50), (400, 50)]
    assert not any(ingest.LATE in w.metrics for w in home.windows())


def test_versions_and_modes_have_their_own_windows_and_only_stable_ones_are_tested(home):
    home.serve(100, 200, 200, shift=2.0, mode="canary", version=2)
    home.serve(100, 200, 100, shift=2.0, mode="shadow", version=2)
    home.serve(100, 200, 60)
    assert home.close(300) == []
    assert home.close(300, version=2) == []
    assert {(w.version, w.mode, w.rows) for w in home.windows()} == {
        (1, "stable", 60),
        (2, "canary", 200),
        (2, "shadow", 100),
    }


def test_failures_without_rows_make_a_window(home):
    spool(home.folder, "none", times=[], inputs={}, errors=9)
    ingest.take_in(home.folder, home.db, home.blobs)
    home.close(300)
    assert [(w.start, w.rows, w.errors, w.profile) for w in home.windows()] == [(0, 0, 9, "")]


def test_served_windows_that_did_not_change_stay_quiet(home):
    for k in range(60):
        home.serve(k * LENGTH, (k + 1) * LENGTH, 100)
    assert home.close(60 * LENGTH + 5) + home.close(60 * LENGTH + 6) == []
    assert len(home.windows()) == 60


def test_the_estimate_before_labels_is_marked_as_one(home):
    home.serve(0, 100, 400)
    home.close(200)
    (window,) = home.windows()
    said = window.metrics["accuracy_estimated"]
    assert said["estimate"] is True
    assert said["low"] <= said["value"] <= said["high"]
    assert said["value"] == pytest.approx(0.75, abs=0.04)  # of uniform scores
    assert window.metrics["roc_auc_estimated"]["value"] == pytest.approx(5 / 6, abs=0.04)


def test_the_declaration_says_how_to_watch():
    said = Declaration(
        model="m",
        data=Data(source="x.csv"),
        monitor=Monitor(window="10m", drift=Drift(false_alarms="1 per 500 windows"), min_labels=7),
    )
    assert policy(said) == Policy(window=600, false_alarms=0.002, metric="", min_labels=7)


def test_a_window_in_which_the_champion_changed_is_no_sample_of_a_window(home):
    home.serve(0, 100, 100)
    home.serve(100, 150, 100)
    home.serve(150, 200, 100, shift=3.0, version=2)  # as if the afternoon differed from the morning
    home.serve(200, 300, 100, shift=3.0, version=2)
    assert home.close(305) == []
    (told,) = home.close(305, version=2)
    assert told.evidence["start"] == 200


def test_an_endpoints_first_window_counts_only_when_it_was_there_from_the_beginning(home):
    home.serve(140, 200, 100, shift=3.0)
    assert home.close(205) == []
    home.serve(200, 300, 100, shift=3.0)
    assert len(home.close(305)) == 1
