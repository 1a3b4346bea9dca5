"""Searches of many runs read an index in the order asked for, or the few rows a filter matches; never all runs."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from modelkeep.registry import leading, runs, search, tracking
from modelkeep.registry.changes import Begin, Log
from modelkeep.store import tables
from modelkeep.store.bulk import fetch, select_in
from modelkeep.store.database import Database

LONG = "x" * 200


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Database, int]]:
    """Five thousand runs with a metric and three params."""
    folder: Path = tmp_path_factory.mktemp("plans")
    db = Database.open(f"sqlite:///{folder}/m.db")
    experiment = db.write(lambda conn: runs.experiment(conn, "e", 1.0))
    begun = [Begin(experiment, f"run {at}", at, {}) for at in range(5000)]
    db.write(lambda conn: Begin.merge(conn, begun))
    logs = [
        Log(
            begin.run_id,
            [("m", at / 5000, 1, 1)],
            {"p": str(at % 100), "half": str(at % 2), "long": f"{LONG}{at % 100}"},
        )
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
        ("params.p != '7'", [], 100, "ix_runs_recent (experiment=? AND lifecycle_stage=?)"),
        ("params.half = '1'", [], 100, "v USING INDEX ix_params_search (experiment=? AND key=? AND <expr>=?)"),
        (
            "metrics.m < 0.5",
            [],
            100,
            "COVERING INDEX ix_latest_metrics_search (experiment=? AND key=? AND value<?)",
        ),
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
        told = [[row[3] for row in fetch(conn, f"EXPLAIN QUERY PLAN {query}")] for query in asked]
    assert len(rows) == found
    assert any(uses in plan for plans in told for plan in plans), told
    for plans in told:
        sampled = "CO-ROUTINE r" in plans  # some runs, read by themselves
        scans = [plan for plan in plans if plan.startswith(("SCAN r", "SCAN v", "SCAN o0"))]
        assert scans == ["SCAN r"] * sampled, plans


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


class Made(NamedTuple):
    """A run, and what its searches are about."""

    run_id: str
    start: int
    metric: float
    param: str
    rare: str
    active: bool


def _made(db: Database, experiment: int, chance: random.Random, count: int, starts: int) -> list[Made]:
    """Runs of which many start at once."""
    begun = [Begin(experiment, "x", chance.randrange(starts), {}) for _ in range(count)]
    db.write(lambda conn: Begin.merge(conn, begun))
    made = [
        Made(
            *(each.run_id, each.start_ms, chance.randrange(10) / 10, chance.choice("ab")),
            *("yes" if chance.random() < 0.05 else "no", chance.random() < 0.9),
        )
        for each in begun
    ]
    logs = [Log(run.run_id, [("m", run.metric, 1, 1)], {"p": run.param}, {"rare": run.rare}) for run in made]
    db.write(lambda conn: Log.merge(conn, logs))
    for run in made:
        if not run.active:
            db.write(lambda conn, run=run: tracking.set_stage(conn, run.run_id, "deleted", 1))
    return made


FOUND: dict[str, Any] = {
    "params.p = 'a'": lambda run: run.param == "a",
    "params.p = 'a' AND tags.rare = 'yes'": lambda run: run.param == "a" and run.rare == "yes",
    "metrics.m > 0.3": lambda run: run.metric > 0.3,
    "metrics.m = 0.5": lambda run: run.metric == 0.5,
    "metrics.m > 0.6 AND metrics.m <= 0.8": lambda run: 0.6 < run.metric <= 0.8,
    "metrics.m >= 0.8 AND params.p != 'a'": lambda run: run.metric >= 0.8 and run.param != "a",
}


@pytest.mark.parametrize("most", [(2000, 32, 5000, 256, 40), (0, 0, 5000, 1, 40), (0, 1, 12, 256, 2)])
def test_pages_of_what_a_filter_matches_stay_right_while_runs_are_added(
    db: Database, most: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However a search finds its runs: the three sets of limits take it down each of the ways."""
    *limits, starts = most
    for name, value in zip(("FEW", "SPARE", "ALIKE", "SAMPLE"), limits, strict=True):
        monkeypatch.setattr(leading, name, value)
    monkeypatch.setattr(search, "MOST_GROUPS", starts - 1)
    chance = random.Random(5)
    within = [db.write(lambda conn, name=name: runs.experiment(conn, name, 1.0)) for name in "ab"]
    first = [run for experiment in within for run in _made(db, experiment, chance, 150, starts)]
    wants = [(text, order) for text in FOUND for order in ("", "start_time DESC", "start_time ASC")]
    pages: dict[tuple[str, str], list[str]] = {each: [] for each in wants}
    tokens = dict.fromkeys(wants, "")
    while tokens:
        with db.read() as conn:
            for (text, order), token in list(tokens.items()):
                asked = (text, [order] if order else [])
                rows, token = search.runs(conn, within, *asked, limit=21, token=token)
                pages[text, order] += [row.run_id for row in rows]
                if token:
                    tokens[text, order] = token
                else:
                    del tokens[text, order]
        _made(db, chance.choice(within), chance, 7, starts)
    for (text, order), found in pages.items():
        down = 1 if order.endswith("ASC") else -1
        best = sorted(filter(FOUND[text], first), key=lambda run: (down * run.start, run.run_id))
        here = {run.run_id for run in first}
        assert [run_id for run_id in found if run_id in here] == [run.run_id for run in best if run.active], text
        assert len(found) == len(set(found))
