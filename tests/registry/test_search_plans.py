"""Searches of many runs read an index in the order asked for, or the few rows a filter matches; never all runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelkeep.registry import runs, search
from modelkeep.registry.changes import Begin, Log
from modelkeep.store.bulk import fetch
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
