"""Changes of runs done together do what they would do one after another, and each is wrong alone."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, select

from modelkeep.core.errors import Conflict, Invalid, ModelkeepError, NotFound
from modelkeep.registry import changes, runs, tracking
from modelkeep.registry.changes import RUN_NAME, Begin, End, Log
from modelkeep.store import tables
from modelkeep.store.database import Database


def begin(db: Database, name: str = "first") -> str:
    made = Begin(db.write(lambda conn: runs.experiment(conn, "e", 1.0)), name, 5, {RUN_NAME: name})
    return str(db.write(made).run_id)


def together(db: Database, works: Sequence[Any]) -> list[Any]:
    """The results of works that the writer finds waiting, in one transaction."""
    gate = threading.Event()
    db.submit(lambda _: gate.wait(10))
    futures = [db.submit(work) for work in works]
    gate.set()
    return [future.exception(10) or future.result() for future in futures]


def test_what_is_wrong_fails_alone(db: Database) -> None:
    run, other, deleted = (begin(db, name) for name in ("a", "b", "c"))
    db.write(lambda conn: tracking.set_stage(conn, deleted, "deleted", 1))
    db.write(Log(run, params={"depth": "3"}))
    results = together(
        db,
        [
            Log(run, [("m", 1.0, 1, 1)], {"depth": "3", "new": "x"}, {"t": "1"}),
            Log("none", [("m", 9.0, 1, 1)]),
            Log(deleted, [("m", 9.0, 1, 1)]),
            Log(run, [("lost", 9.0, 1, 1)], {"depth": "4"}, {"t": "lost"}),
            Log(run, [("lost", 9.0, 1, 1)], {"new": "y"}),
            Log(other, [("m", 2.0, 1, 1)], {"new": "y"}),
            End(run, "FINISHED", 77, None),
            End("none", "FINISHED", 77, None),
            Begin(10_000, "x", 1, {}),
            Log(run, [("m", 3.0, 2, 2)], {}, {"t": "2"}),
        ],
    )
    kinds = [type(result) if isinstance(result, BaseException) else None for result in results]
    assert kinds == [None, NotFound, Conflict, Conflict, Conflict, None, None, NotFound, NotFound, None]
    with db.read() as conn:
        first, second = runs.get(conn, run), runs.get(conn, other)
        assert runs.history(conn, run, "m") == [("m", 1.0, 1, 1), ("m", 3.0, 2, 2)]
        assert runs.get(conn, deleted).metrics == {}
    assert (first.metrics, first.params) == ({"m": 3.0}, {"depth": "3", "new": "x"})
    assert first.tags == {"t": "2", RUN_NAME: "a"}
    assert (first.status, first.end) == ("FINISHED", 0.077)
    assert (second.metrics, second.params) == ({"m": 2.0}, {"new": "y"})


def test_runs_of_deleted_experiments_do_not_begin(db: Database) -> None:
    from modelkeep.registry import experiments

    number = db.write(lambda conn: experiments.create(conn, "gone", 1, "s3://bucket/e/", {}))
    kept = db.write(Begin(number, "x", 1, {}))
    assert kept.artifact_uri == f"s3://bucket/e/{kept.run_id}/artifacts"
    db.write(lambda conn: experiments.delete_one(conn, number, 2))
    with pytest.raises(Invalid, match="must be in the 'active' state"):
        db.write(Begin(number, "y", 1, {}))


def test_odd_values_among_ordinary_ones_keep_the_rules_of_last_values(db: Database) -> None:
    run = begin(db)
    points = [("m", math.nan, 3, 1), ("m", 1.0, 2, 1), ("n", math.inf, 1, 1), ("n", -math.inf, 1, 1)]
    results = together(db, [Log(run, [point]) for point in points] + [Log(run, points)])
    assert results == [None] * 5
    with db.read() as conn:
        found = runs.get(conn, run).metrics
        assert len(runs.history(conn, run, "m")) == len(runs.history(conn, run, "n")) == 2
    assert math.isnan(found["m"])
    assert found["n"] == math.inf


def test_a_text_the_database_refuses_harms_no_other(db: Database) -> None:
    run = begin(db)
    lone = "\ud800"
    results = together(db, [Log(run, tags={f"k{at}": lone if at == 7 else "fine"}) for at in range(20)])
    assert [at for at, result in enumerate(results) if result is not None] == [7]
    with db.read() as conn:
        assert len(runs.get(conn, run).tags) == 20  # 19 and the run's name


def test_a_name_given_by_tag_or_by_end_is_the_runs_name(db: Database) -> None:
    run, other = begin(db), begin(db)
    results = together(db, [Log(run, tags={RUN_NAME: "by tag"}), End(other, None, None, "by end")])
    assert results[1].name == "by end"
    with db.read() as conn:
        for number, name in ((run, "by tag"), (other, "by end")):
            found = runs.get(conn, number)
            assert (found.name, found.tags[RUN_NAME], found.status) == (name, name, "RUNNING")


KEYS = st.sampled_from(["a", "b"])
POINT = st.tuples(
    KEYS, st.sampled_from([0.0, 1.0, -1.0, math.nan, math.inf]), st.integers(0, 3), st.integers(-2, 2)
)
RUN = st.sampled_from([0, 1, 2])
CHANGE = st.one_of(
    st.tuples(
        st.just("log"),
        RUN,
        st.lists(POINT, max_size=4),
        st.dictionaries(KEYS, st.sampled_from(["x", "y"]), max_size=2),
        st.dictionaries(st.sampled_from(["t", RUN_NAME]), st.sampled_from(["p", "q"]), max_size=2),
    ),
    st.tuples(st.just("end"), RUN, st.sampled_from(["FINISHED", None]), st.sampled_from([9, None])),
)


def state(conn: Connection, ids: Sequence[str]) -> list[Any]:
    numbers = select(tables.runs.c.id).where(tables.runs.c.run_id.in_(ids)).order_by(tables.runs.c.id)
    found: list[Any] = []
    for number in conn.execute(numbers).scalars():
        row = conn.execute(select(tables.runs).where(tables.runs.c.id == number)).one()
        kept = [(row.name, row.status, row.end_ms)]
        for table in (tables.metrics, tables.latest_metrics, tables.params, tables.tags):
            columns = [column for column in table.c if column.name != "run"]
            kept.append(sorted(map(repr, conn.execute(select(*columns).where(table.c.run == number)))))
        found.append(kept)
    return found


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(CHANGE, max_size=8))
def test_together_is_as_one_after_another(db: Database, asked: list[Any]) -> None:
    asked = sorted(asked, key=lambda change: change[0] == "end")  # ends come after logs

    def made(ids: Sequence[str]) -> list[Any]:
        known = [*ids, "unknown"]
        return [(Log if kind == "log" else _end)(known[run], *rest) for kind, run, *rest in asked]

    one, other = [begin(db), begin(db)], [begin(db), begin(db)]
    at_once = db.write(lambda conn: changes.Change.merge(conn, made(one)))
    alone = []
    for work in made(other):
        try:
            alone.append(db.write(work))
        except ModelkeepError as error:
            alone.append(error)
    assert [type(result) for result in at_once] == [type(result) for result in alone]
    with db.read() as conn:
        assert state(conn, one) == state(conn, other)


def _end(run: str, status: str | None, end_ms: int | None) -> End:
    return End(run, status, end_ms, None)
