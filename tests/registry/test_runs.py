from __future__ import annotations

import math

import pytest
from sqlalchemy import func, select

from modelkeep.core.errors import Conflict, Invalid, NotFound
from modelkeep.registry import runs
from modelkeep.store import tables
from modelkeep.store.database import Database


@pytest.fixture
def run(db: Database) -> str:
    return db.write(lambda conn: runs.create(conn, runs.experiment(conn, "flights", 1.0), "first", 2.5))


def read(db: Database, run_id: str) -> runs.Run:
    with db.read() as conn:
        return runs.get(conn, run_id)


def log(db: Database, run_id: str, **what: object) -> None:
    db.write(lambda conn: runs.log(conn, run_id, **what))  # type: ignore[arg-type]


def test_an_experiment_is_made_once(db: Database) -> None:
    first, second, other = (db.write(lambda c, n=n: runs.experiment(c, n, 1.0)) for n in ("a", "a", "b"))
    assert first == second != other


def test_a_run_keeps_all_it_was_given(db: Database, run: str) -> None:
    points = [("loss", 0.5, 1000, 0), ("loss", 0.25, 2000, 1), ("auc", 0.9, 2000, 1)]
    log(db, run, metrics=points, params={"depth": 3, "name": "Zoë"}, tags={"team": "a"})
    db.write(lambda conn: runs.set_artifacts(conn, run, {"model.onnx": ("d" * 64, 17)}))
    db.write(lambda conn: runs.end(conn, run, "FINISHED", 9.0))
    found = read(db, run)
    assert (found.name, found.status, found.start, found.end) == ("first", "FINISHED", 2.5, 9.0)
    assert found.metrics == {"loss": 0.25, "auc": 0.9}
    assert found.params == {"depth": "3", "name": "Zoë"}
    assert found.tags == {"team": "a", "mlflow.runName": "first"}
    assert found.artifacts == {"model.onnx": ("d" * 64, 17)}
    with db.read() as conn:
        assert runs.history(conn, run, "loss") == points[:2]


def test_repeating_a_log_changes_nothing(db: Database, run: str) -> None:
    batch = {"metrics": [("loss", math.nan, 1, 0), ("loss", 0.5, 2, 1)], "params": {"a": 1}, "tags": {"t": "x"}}
    log(db, run, **batch)
    log(db, run, **batch)
    with db.read() as conn:
        assert conn.execute(select(func.count()).select_from(tables.metrics)).scalar() == 2
    assert read(db, run).metrics == {"loss": 0.5}


@pytest.mark.parametrize(
    ("points", "last"),
    [
        ([(1.0, 10, 5), (2.0, 20, 4)], 1.0),  # the step decides
        ([(1.0, 10, 5), (2.0, 20, 5)], 2.0),  # then the time
        ([(2.0, 10, 5), (1.0, 10, 5)], 2.0),  # then the value
        ([(1.0, -10, -5), (2.0, -10, -6)], 1.0),
        ([(math.inf, 1, 1), (-math.inf, 1, 2)], -math.inf),
        ([(1.0, 1, 1), (math.nan, 1, 2)], math.nan),
    ],
)
@pytest.mark.parametrize("together", [True, False])
def test_the_last_value_is_that_of_the_highest_step(
    db: Database, run: str, points: list[tuple[float, int, int]], last: float, together: bool
) -> None:
    given = [("m", *point) for point in points]
    for batch in [given] if together else [[point] for point in given]:
        log(db, run, metrics=batch)
    found = read(db, run).metrics["m"]
    assert found == last or (math.isnan(found) and math.isnan(last))
    with db.read() as conn:
        kept = runs.history(conn, run, "m")
    assert sorted(map(repr, kept)) == sorted(map(repr, given))


def test_params_are_written_once_and_tags_again(db: Database, run: str) -> None:
    log(db, run, params={"a": 1}, tags={"t": "x"})
    log(db, run, params={"a": "1", "b": 2}, tags={"t": "y"})
    with pytest.raises(Conflict, match="'a'"):
        log(db, run, params={"c": 1, "a": 3}, tags={"t": "z"})
    assert read(db, run).params == {"a": "1", "b": "2"}
    assert read(db, run).tags["t"] == "y"


def test_children_belong_to_their_parent(db: Database, run: str) -> None:
    experiment = read(db, run).experiment_id
    made = [db.write(lambda c, i=i: runs.create(c, experiment, f"t{i}", 3.0, parent=run)) for i in range(3)]
    with db.read() as conn:
        assert [child.run_id for child in runs.children(conn, run)] == made
        assert runs.children(conn, made[0]) == []
        assert {child.parent for child in runs.children(conn, run)} == {run}
        assert [found.run_id for found in runs.recent(conn, experiment, limit=10)][-1] == run


def test_what_is_unknown_or_wrong_is_said(db: Database, run: str) -> None:
    with pytest.raises(NotFound, match="nowhere"):
        read(db, "nowhere")
    with pytest.raises(NotFound, match="4711"):
        db.write(lambda conn: runs.create(conn, 4711, "x", 1.0))
    with pytest.raises(Invalid, match="RUNNING"):
        db.write(lambda conn: runs.end(conn, run, "RUNNING", 1.0))


def test_searches_by_value_use_the_index(sqlite_url: str) -> None:
    db = Database.open(sqlite_url)  # PostgreSQL's planner picks by statistics
    with db.read() as conn:
        for table, value in (("latest_metrics", "value > 0.5"), ("params", "substr(value, 1, 200) = '3'")):
            query = f"EXPLAIN QUERY PLAN SELECT run FROM {table} WHERE experiment = 1 AND key = 'k' AND {value}"
            plan = str(conn.exec_driver_sql(query).all())
            assert f"COVERING INDEX ix_{table}_search" in plan or f"INDEX ix_{table}_search" in plan
    db.close()


def test_long_values_can_be_indexed(db: Database, run: str) -> None:
    log(db, run, params={"long": "p" * 6000}, tags={"long": "ü" * 8000})
    assert len(read(db, run).params["long"]) == 6000
    assert len(read(db, run).tags["long"]) == 8000
