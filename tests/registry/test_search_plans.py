"""Searches of many runs read an index in the order asked for, or the few rows a filter matches; never all runs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelkeep.registry import runs, search, tracking
from modelkeep.registry.changes import Begin, Log
from modelkeep.store import tables
from modelkeep.store.bulk import fetch, select_in
from modelkeep.store.database import Database

LONG = "x" * 200


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Database, int]]:
    """Five thousand runs with a metric and two params."""
    folder: Path = tmp_path_factory.mktemp("plans")
    db = Database.open(f"sqlite:///{folder}/m.db")
    experiment = db.write(lambda conn: runs.experiment(conn, "e", 1.0))
    begun = [Begin(experiment, f"run {at}", at, {}) for at in range(5000)]
    db.write(lambda conn: Begin.merge(conn, begun))
    logs = [
        Log(begin.run_id, [("m", at / 5000, 1, 1)], {"p": str(at % 100), "long": f"{LONG}{at % 100}"})
        for at, begin in enumerate(begun)
    ]
    db.write(lambda conn: Log.merge(conn, logs))
    yield db, experiment
    db.close()


@pytest.mark.parametrize(
    ("text", "orders", "found", "uses"),
    [
        ("", [], 100, "ix_runs_recent (experiment=? AND lifecycle_stage=?)"),
        ("metrics.m > 0.99", [], 49, "ix_latest_metrics_search (experiment=? AND key=? AND value>?)"),
        ("params.p = '7'", [], 50, "ix_params_search (experiment=? AND key=? AND <expr>=?)"),
        (f"params.long = '{LONG}7'", [], 50, "ix_params_search (experiment=? AND key=? AND <expr>=?)"),
        ("attributes.run_name = 'run 7'", [], 1, "ix_runs_name (experiment=? AND name=?)"),
        ("metrics.m > 0.1", [], 100, "ix_runs_recent (experiment=? AND lifecycle_stage=?)"),
        ("", ["metrics.m DESC"], 100, "ix_latest_metrics_search (experiment=? AND key=? AND value>?)"),
        ("", ["params.p"], 100, "ix_params_search (experiment=? AND key=?)"),
    ],
)
def test_a_search_reads_its_index(
    many: tuple[Database, int], text: str, orders: list[str], found: int, uses: str
) -> None:
    db, experiment = many
    asked: list[str] = []
    with db.read() as conn:
        driver: Any = conn.connection.driver_connection
        driver.set_trace_callback(asked.append)
        rows, _ = search.runs(conn, [experiment], text, orders, limit=100)
        driver.set_trace_callback(None)
        plans = [row[3] for query in asked for row in fetch(conn, f"EXPLAIN QUERY PLAN {query}")]
    assert len(rows) == found
    assert any(uses in plan for plan in plans), plans
    assert not [plan for plan in plans if plan.startswith(("SCAN r", "SCAN v", "SCAN o0"))], plans


def test_several_experiments_and_stages_are_read_in_order_one_by_one(many: tuple[Database, int]) -> None:
    db, experiment = many
    other = db.write(lambda conn: runs.experiment(conn, "other", 1.0))
    more = [Begin(other, f"more {at}", at * 7, {}) for at in range(300)]
    db.write(lambda conn: Begin.merge(conn, more))
    for begun in more[::3]:
        db.write(lambda conn, begun=begun: tracking.set_stage(conn, begun.run_id, "deleted", 1))
    within = [experiment, other]
    asked: list[str] = []
    with db.read() as conn:
        found, token = [], ""
        driver: Any = conn.connection.driver_connection
        driver.set_trace_callback(asked.append)
        for _ in range(20):
            rows, token = search.runs(conn, within, view="ALL", limit=15, token=token)
            found += rows
        driver.set_trace_callback(None)
        best = fetch(conn, "SELECT run_id FROM runs ORDER BY start_ms DESC, run_id LIMIT 300")
        plans = [row[3] for row in fetch(conn, f"EXPLAIN QUERY PLAN {asked[-1]}")]
    assert [row.run_id for row in found] == [run_id for (run_id,) in best]
    assert sum("ix_runs_recent (experiment=? AND lifecycle_stage=?" in plan for plan in plans) == 4, plans


@pytest.mark.parametrize("direction", ["ASC", "DESC"])
def test_several_experiments_are_ordered_by_a_metric_with_the_best_of_each(
    many: tuple[Database, int], direction: str
) -> None:
    db, experiment = many
    other = db.write(lambda conn: runs.experiment(conn, f"ordered {direction}", 1.0))
    more = [Begin(other, f"more {at}", at * 7, {}) for at in range(50)]
    db.write(lambda conn: Begin.merge(conn, more))
    values = [(at * 37 % 5000) / 5000 + 0.0001 for at in range(40)]
    logs = [Log(begun.run_id, [("m", value, 1, 1)]) for begun, value in zip(more, values, strict=False)]
    logs += [Log(more[at].run_id, [("m", math.nan, 1, 1)]) for at in range(40, 45)]
    db.write(lambda conn: Log.merge(conn, logs))
    kept: list[Any] = []
    token = ""
    with db.read() as conn:
        while token or not kept:
            rows, token = search.runs(
                conn, [experiment, other], orders=[f"metrics.m {direction}"], limit=400, token=token
            )
            values_of = dict(select_in(conn, "run, value", tables.latest_metrics, "run", [row.id for row in rows]))
            kept += [values_of.get(row.id, "none") for row in rows]
    numbers = [value for value in kept if isinstance(value, float)]
    assert len(numbers) == 5040
    assert numbers == sorted(numbers, reverse=direction == "DESC")
    assert kept[5040:] == [None] * 5 + ["none"] * 5  # NaN after numbers, then runs without
