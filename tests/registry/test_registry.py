from __future__ import annotations

import math
import threading
import time

import pytest

from modelkeep.core.errors import Invalid, NotFound
from modelkeep.registry import captures, endpoints, events, findings, models, snapshots
from modelkeep.registry.captures import Capture
from modelkeep.registry.endpoints import Rollout, Route, Wanted
from modelkeep.registry.findings import Finding, Window
from modelkeep.registry.lineage import Code, Lineage
from modelkeep.registry.snapshots import Part, Record
from modelkeep.store.database import Database

LINEAGE = Lineage(
    snapshot="s" * 64,
    declaration="d" * 64,
    declaration_text="model: flights\n",
    code=Code(commit="abc", dirty_diff=""),
    params={"alpha": [1, 0.5]},
    seed=7,
    parent=None,
)


def register(db: Database, model: str = "flights", **changes: object) -> models.Version:
    values: dict[str, object] = {
        "run_id": "r",
        "package": "p" * 64,
        "lineage": LINEAGE,
        "evaluation": {"metrics": {"auc": {"value": 0.9, "low": 0.8}, "f1": 0.5, "odd": None}},
        "runtime": "onnx",
        "note": "",
        "now": 10.5,
        **changes,
    }
    return db.write(lambda conn: models.register(conn, model, **values))  # type: ignore[arg-type]


def test_versions_are_numbered_and_keep_all_they_were_given(db: Database) -> None:
    first, second, other = register(db), register(db, note="better"), register(db, "other")
    assert [first.name, second.name, other.name] == ["flights@1", "flights@2", "other@1"]
    with db.read() as conn:
        found = models.version(conn, "flights", 2)
        assert (found.version, found.run_id, found.runtime) == (second.version, "r", "onnx")
        assert (found.lineage, found.created, found.note, found.package) == (LINEAGE, 10.5, "better", "p" * 64)
        assert (found.metrics["auc"], found.metrics["f1"], math.isnan(found.metrics["odd"])) == (0.9, 0.5, True)
        assert models.evaluation(conn, "flights", 2)["metrics"]["auc"]["low"] == 0.8
        assert [version.version for version in models.versions(conn, "flights")] == [1, 2]
        assert models.models(conn) == ["flights", "other"]
    assert register(db, lineage=None).lineage is None


def test_aliases_move_and_name_versions(db: Database) -> None:
    register(db)
    register(db)
    for version in (1, 2):
        db.write(lambda conn, v=version: models.set_alias(conn, "flights", "champion", v, 11.0))
    db.write(lambda conn: models.set_alias(conn, "flights", "prod", 2, 11.0))
    with db.read() as conn:
        assert models.alias(conn, "flights", "champion") == 2
        assert models.version(conn, "flights", "champion").version == 2
        assert models.version(conn, "flights", "1").version == 1
        assert [version.aliases for version in models.versions(conn, "flights")] == [(), ("champion", "prod")]
        assert models.alias(conn, "flights", "none") is models.alias(conn, "nowhere", "x") is None
    db.write(lambda conn: models.delete_alias(conn, "flights", "prod", 12.0))
    db.write(lambda conn: models.delete_alias(conn, "flights", "prod", 12.0))
    with db.read() as conn:
        assert models.version(conn, "flights", 2).aliases == ("champion",)


def test_unknown_models_versions_and_aliases_are_not_found(db: Database) -> None:
    register(db)
    db.write(lambda conn: models.set_alias(conn, "flights", "champion", 1, 11.0))
    with db.read() as conn:
        with pytest.raises(NotFound, match="no model 'x'"):
            models.versions(conn, "x")
        with pytest.raises(NotFound, match="version 9"):
            models.version(conn, "flights", 9)
        with pytest.raises(NotFound, match="it has: champion"):
            models.version(conn, "flights", "challenger")
    with pytest.raises(NotFound, match="version 5"):
        db.write(lambda conn: models.set_alias(conn, "flights", "champion", 5, 1.0))


def test_concurrent_registrations_get_different_numbers(db: Database, url: str) -> None:
    both = [db, Database.open(url)]
    made: list[int] = []

    def many(mine: Database) -> None:
        for _ in range(10):
            made.append(register(mine).version)

    threads = [threading.Thread(target=many, args=(mine,)) for mine in both for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    both[1].close()
    assert sorted(made) == list(range(1, 41))


def test_endpoints_are_put_and_every_change_shows_in_the_generation(db: Database) -> None:
    route = Route(version=1, package="p", weight=1.0, mode="stable")
    wanted = Wanted(endpoint="e", model="flights", routes=(route,), settings={"mask": ["a"], "n": 0.5})
    first = db.write(lambda conn: endpoints.put(conn, wanted))
    with db.read() as conn:
        assert endpoints.get(conn, "e") == first
        assert endpoints.generation(conn) == first.generation == 1
        assert endpoints.get(conn, "x") is None
    rollout = Rollout(version=2, step=1, since=5.0, started=1.0)
    moved = Wanted(endpoint="e", model="flights", generation=1, routes=(route, route), rollout=rollout)
    db.write(lambda conn: endpoints.put(conn, moved))
    db.write(lambda conn: endpoints.put(conn, Wanted(endpoint="a", model="other")))
    with db.read() as conn:
        assert [found.endpoint for found in endpoints.wanted(conn)] == ["a", "e"]
        assert endpoints.wanted(conn)[1].rollout == rollout
        assert endpoints.generation(conn) == 3
    db.write(lambda conn: endpoints.remove(conn, "a"))
    db.write(lambda conn: endpoints.remove(conn, "a"))
    with db.read() as conn:
        assert endpoints.generation(conn) == 4


def test_alias_endpoint_and_event_move_together_or_not_at_all(db: Database) -> None:
    register(db)

    def move(conn: object, fails: bool) -> None:
        endpoints.put(conn, Wanted(endpoint="e", model="flights"))  # type: ignore[arg-type]
        models.set_alias(conn, "flights", "champion", 1, 1.0)  # type: ignore[arg-type]
        events.append(conn, "version.promoted", "flights@1", {}, now=1.0)  # type: ignore[arg-type]
        if fails:
            raise ValueError("in the middle")

    with pytest.raises(ValueError, match="middle"):
        db.write(lambda conn: move(conn, True))
    with db.read() as conn:
        assert models.alias(conn, "flights", "champion") is endpoints.get(conn, "e") is None
        assert events.history(conn) == []
    db.write(lambda conn: move(conn, False))
    with db.read() as conn:
        assert models.alias(conn, "flights", "champion") == 1
        assert len(events.history(conn, "flights")) == 1


def capture(start: float, part: str | None = None, **changes: object) -> Capture:
    values: dict[str, object] = {"endpoint": "e", "version": 1, "mode": "stable", "rows": 5, "digest": "c" * 64}
    return Capture(**{**values, "start": start, "end": start + 9, "part": part, **changes})  # type: ignore[arg-type]


def test_captures_are_taken_in_once_and_found_by_time(db: Database) -> None:
    given = [capture(0, "a"), capture(10, "b"), capture(20, "c", version=2), capture(0, "d", endpoint="x")]
    assert [db.write(lambda conn, c=c: captures.add(conn, c)) for c in given] == [True] * 4
    assert db.write(lambda conn: captures.add(conn, given[0])) is False
    assert db.write(lambda conn: captures.add(conn, capture(0))) is True
    assert db.write(lambda conn: captures.add(conn, capture(0))) is True
    with db.read() as conn:
        assert captures.between(conn, "e", 10, 20) == [given[1]]
        assert captures.between(conn, "e", 9, 10.5)[-1] == given[1]
        assert captures.between(conn, "e", 0, 99, version=2) == [given[2]]
        assert captures.span(conn, "e") == (0, 29)
        assert captures.span(conn, "none") is None


def put_labels(db: Database, given: list[tuple[str, str, float]]) -> int:
    return db.write(lambda conn: captures.put_labels(conn, given))


def test_of_several_labels_the_latest_counts(db: Database) -> None:
    assert put_labels(db, [("a", "1", 5.0), ("b", '"x"', 5.0), ("a", "2", 5.0), ("a", "0", 4.0)]) == 2
    put_labels(db, [("b", '"late retry"', 4.0), ("c", "null", 6.0)])
    put_labels(db, [("c", "true", 6.0)])
    put_labels(db, [])
    with db.read() as conn:
        assert captures.labels_for(conn, ["a", "b", "c", "d"]) == {"a": "2", "b": '"x"', "c": "true"}
        assert captures.labels_for(conn, []) == {}
        assert captures.labels_between(conn, 5.5, 7) == [("c", "true", 6.0)]
        assert captures.label_count(conn) == 3
    with pytest.raises(Invalid, match="empty"):
        put_labels(db, [("", "1", 1.0)])


def test_a_hundred_thousand_labels_are_quick(db: Database) -> None:
    given = [(f"{number * 7919 % 100_003:032x}", "1", 5.0) for number in range(100_000)]
    started = time.perf_counter()
    put_labels(db, given)
    first = time.perf_counter() - started
    put_labels(db, given)
    with db.read() as conn:
        assert captures.label_count(conn) == 100_000
        assert len(captures.labels_for(conn, [name for name, _, _ in given])) == 100_000
    assert first < 2 * 3  # the machine may be busy


def test_windows_are_replaced_and_findings_refer_to_them(db: Database) -> None:
    window = Window(endpoint="e", model="m", version=1, start=0, end=10, rows=5, latency={"p50": 1.5})
    number = db.write(lambda conn: findings.put_window(conn, window))
    better = Window(endpoint="e", model="m", version=1, start=0, end=10, rows=5, metrics={"auc": 0.9}, labels=4)
    assert db.write(lambda conn: findings.put_window(conn, better)) == number
    db.write(lambda conn: findings.put_window(conn, Window(endpoint="e", model="m", version=2, start=10, end=20)))
    with db.read() as conn:
        found = findings.windows(conn, "e")
        assert [(w.version, w.labels, w.metrics, w.id > 0) for w in found] == [
            (1, 4, {"auc": 0.9}, True),
            (2, 0, {}, True),
        ]
        assert [w.version for w in findings.windows(conn, "e", limit=1)] == [2]
        assert [w.version for w in findings.windows(conn, "e", end=10)] == [1]
        assert [w.version for w in findings.windows(conn, "e", start=10)] == [2]
        assert findings.windows(conn, "e", version=1, mode="canary") == []
    for at, kind in ((1.0, "drift"), (2.0, "outage"), (3.0, "drift")):
        finding = Finding(
            model="m", endpoint="e", version=1, kind=kind, at=at, window=number, evidence={"p": [0.001]}
        )
        db.write(lambda conn, f=finding: findings.add(conn, f))
    with db.read() as conn:
        assert [f.at for f in findings.findings(conn, "m", kind="drift")] == [3.0, 1.0]
        assert [f.at for f in findings.findings(conn, since=2.0, limit=5)] == [3.0, 2.0]
        assert findings.findings(conn, "m", version=1)[0].evidence == {"p": [0.001]}
        assert findings.findings(conn, "other") == []


def test_snapshots_are_recorded_by_name_and_digest(db: Database) -> None:
    def taken(digest: str, created: float, fingerprint: str = "f", parent: str | None = None) -> Record:
        parts = {"jan.csv": Part(fingerprint=fingerprint, digest="q" * 64, rows=3)}
        return Record(
            name="n", digest=digest, manifest="m", created=created, rows=3, parent=parent, fingerprints=parts
        )

    for record in (
        taken("a", 1.0),
        taken("b", 2.0, parent="a"),
        taken("b", 3.0, "g"),
        taken("a", 4.0, parent="b"),
    ):
        db.write(lambda conn, r=record: snapshots.record(conn, r))
    with db.read() as conn:
        assert [record.digest for record in snapshots.named(conn, "n")] == ["a", "b", "a"]
        newest = snapshots.latest(conn, "n")
        assert newest == taken("a", 4.0, parent="b") == snapshots.get(conn, "a")
        assert snapshots.get(conn, "b").fingerprints["jan.csv"].fingerprint == "g"
        assert snapshots.latest(conn, "x") is None
        assert snapshots.names(conn) == ["n"]
        with pytest.raises(NotFound):
            snapshots.get(conn, "zzz")
