"""Live metrics from labels, and drops at a chosen rate."""

import json

import numpy as np
import pytest
from spooling import spool

from modelkeep.monitor import heldout, ingest
from modelkeep.monitor.estimate import expected
from modelkeep.monitor.performance import Performance, drop_p
from modelkeep.monitor.policy import Policy
from modelkeep.monitor.windows import close_due
from modelkeep.registry import captures, findings
from modelkeep.stats.metrics import Outputs, evaluate

CLASSES = np.array([0, 1])


def world(generator, rows, *, skill=1.0, windows=1, day=0.0):
    """Truth, answers and time of rows ranked as well as ``skill`` says, with its own level per window."""
    number = np.repeat(np.arange(windows), rows)
    gap = (skill + day * generator.normal(size=windows))[number]
    y = generator.integers(0, 2, rows * windows)
    score = 1 / (1 + np.exp(-generator.normal(gap * (y - 0.5), 1)))
    return y, Outputs(label=(score > 0.5).astype(int), probability=score, classes=CLASSES), number * 100.0


@pytest.mark.parametrize("day", [0.0, 0.25])
@pytest.mark.parametrize("rate", [0.05, 0.01])
def test_windows_in_which_nothing_changed_stay_quiet(day, rate):
    generator = np.random.default_rng(3)
    rang = []
    for _ in range(6):
        known = heldout.measure("accuracy", *world(generator, 400, windows=30, day=day), 100.0)
        for _ in range(60):
            y, out, _ = world(generator, 200, day=day)
            value = evaluate("accuracy", y, out)
            rang.append(drop_p([(value, np.sqrt(value * (1 - value) / 200), 200)], known) <= rate)
    assert np.mean(rang) <= rate + 2 * np.sqrt(rate / len(rang))


def test_variation_between_windows_is_measured():
    generator = np.random.default_rng(4)
    calm = heldout.measure("roc_auc", *world(generator, 400, windows=40), 100.0)
    wild = heldout.measure("roc_auc", *world(generator, 400, windows=40, day=0.3), 100.0)
    assert calm.windows == wild.windows == 40
    assert wild.between > 5 * calm.between
    assert np.sqrt(wild.between) == pytest.approx(0.07, abs=0.03)
    untimed = heldout.measure("roc_auc", *world(generator, 400)[:2], None, 100.0)
    assert (untimed.between, untimed.windows) == (0.0, 0)


def test_direction_is_the_metrics():
    known = heldout.HeldOut(metric="rmse", value=5.0, error=0.05)
    assert drop_p([(6.0, 0.1, 500)], known) < 1e-6
    assert drop_p([(4.0, 0.1, 500)], known) > 0.99


class Home:
    def __init__(self, folder, db, blobs):
        self.folder, self.db, self.blobs = folder / "capture", db, blobs
        self.live = Performance(db, blobs)
        self.rules = Policy(window=100.0, false_alarms=0.01, metric="roc_auc", min_labels=50)
        self.known = heldout.measure("roc_auc", *world(np.random.default_rng(9), 400, windows=30), 100.0)

    def serve(self, k, y, out):
        times = np.linspace(k * 100, k * 100 + 99, len(y))
        ids = spool(
            self.folder,
            f"w{k}",
            times=times,
            inputs={"x": np.zeros(len(y))},
            score=out.probability,
            label=out.label,
        )
        ingest.take_in(self.folder, self.db, self.blobs)
        close_due(
            self.db, self.blobs, endpoint="flights", model="flights", version=1,
            reference=None, policy=self.rules, now=(k + 1) * 100 + 5, classes=[0, 1],
        )  # fmt: skip
        return ids

    def label(self, ids, y, at=0.0):
        self.db.write(
            lambda conn: captures.put_labels(
                conn, [(i, json.dumps(int(v)), at) for i, v in zip(ids, y, strict=True)]
            )
        )

    def update(self):
        return self.live.update(
            endpoint="flights", version=1, held_out=self.known, policy=self.rules, now=1e4, classes=[0, 1]
        )

    def windows(self):
        with self.db.read() as conn:
            return findings.windows(conn, "flights")


@pytest.fixture
def home(tmp_path, db, blobs):
    return Home(tmp_path, db, blobs)


def test_labels_that_come_late_give_the_live_metric(home):
    y, out, _ = world(np.random.default_rng(1), 300)
    ids = home.serve(0, y, out)
    assert home.update() == []
    assert home.windows()[0].labels == 0
    home.label(ids[:100], y[:100])
    home.update()
    (window,) = home.windows()
    assert window.labels == 100
    assert window.metrics["roc_auc"]["value"] == pytest.approx(
        evaluate("roc_auc", y[:100], out.take(np.arange(100))), abs=1e-6
    )
    home.label(ids[100:], y[100:])
    home.update()
    (window,) = home.windows()
    assert window.labels == 300
    assert window.metrics["roc_auc"]["rows"] == 300
    assert window.metrics["verdict"]["looks"] == 2
    assert window.metrics["roc_auc_estimated"]["estimate"] is True


def test_a_drop_is_told_once_and_few_labels_say_nothing(home):
    generator = np.random.default_rng(2)
    y, out, _ = world(generator, 400, skill=0.0)
    ids = home.serve(0, y, out)
    home.label(ids[:40], y[:40])
    assert home.update() == []
    assert "verdict" not in home.windows()[0].metrics
    home.label(ids[:390], y[:390])
    (finding,) = home.update()
    assert (finding.kind, finding.evidence["labels"]) == ("performance_drop", 390)
    assert finding.evidence["text"].startswith("roc_auc was 0.7")
    home.label(ids, y)
    assert home.update() == []


def test_a_slow_loss_adds_up_over_windows(home):
    generator = np.random.default_rng(5)
    told = []
    for k in range(8):
        y, out, _ = world(generator, 150, skill=0.55)
        home.label(home.serve(k, y, out), y)
        told += home.update()
    assert told
    assert any("windows before it" in one.evidence["text"] for one in told)


def test_good_windows_are_not_told(home):
    generator = np.random.default_rng(6)
    for k in range(12):
        y, out, _ = world(generator, 200)
        home.label(home.serve(k, y, out), y)
        assert home.update() == []
    assert all(w.metrics["verdict"]["p"] > 0.005 for w in home.windows())


def test_the_estimate_without_labels_is_near_the_truth_of_a_calibrated_model():
    generator = np.random.default_rng(7)
    inside = 0
    for seed in range(40):
        stated = generator.beta(1, 2, 800)
        y = (generator.random(800) < stated).astype(int)
        out = Outputs(
            label=(stated > 0.5).astype(int), probability=np.column_stack([1 - stated, stated]), classes=CLASSES
        )
        for name, said in expected(out, "roc_auc", seed=seed).items():
            inside += said["low"] <= evaluate(name.removesuffix("_estimated"), y, out) <= said["high"]
    assert 0.85 <= inside / 80 <= 1.0
    assert expected(Outputs(value=np.zeros(9)), "rmse") == {}
