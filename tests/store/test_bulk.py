"""Many rows, and several queries, at once."""

from __future__ import annotations

import math
from typing import Any

import pytest

from modelkeep.core.errors import Invalid
from modelkeep.registry import runs
from modelkeep.store import tables
from modelkeep.store.bulk import fetch, fetch_each, insert_rows, select_in, selecting
from modelkeep.store.database import Database

COLUMNS = ("run", "key", "experiment", "start_ms", "value", "timestamp_ms", "step")


@pytest.fixture
def run(db: Database) -> int:
    """The number of a run with odd numbers and names."""
    values = [0.1, -math.inf, None, math.inf, 1e308, 5e-324, -0.0, 3]

    def made(conn: Any) -> int:
        number = int(runs.find(conn, runs.create(conn, runs.experiment(conn, "e", 1.0), "r", 1.0)).id)
        rows = [(number, f'"{at}\\,{{', 1, 2**62 + at, value, -at, 0) for at, value in enumerate(values)]
        insert_rows(conn, tables.latest_metrics, COLUMNS, rows)
        return number

    return db.write(made)


def test_what_is_inserted_together_is_kept_as_it_is(db: Database, run: int) -> None:
    with db.read() as conn:
        found = select_in(conn, "key, value, start_ms, timestamp_ms", tables.latest_metrics, "run", [run, run + 1])
        one = select_in(conn, "value", tables.latest_metrics, "key", ['"1\\,{', "x"], {"run": run, "step": 0})
    assert sorted(found, key=lambda row: row[2]) == [
        (f'"{at}\\,{{', value, 2**62 + at, -at)
        for at, value in enumerate([0.1, -math.inf, None, math.inf, 1e308, 5e-324, -0.0, 3])
    ]
    assert one == [(-math.inf,)]


def test_queries_asked_at_once_keep_to_themselves_and_one_that_is_wrong_ends_them(db: Database, run: int) -> None:
    with db.read() as conn:
        mine = selecting(conn, "id", tables.runs, "id", [run, run + 1])
        none = selecting(conn, "id", tables.runs, "id", [run + 1])
        assert fetch_each(conn, [mine, ("SELECT ?", ("a",)), none, mine]) == [[(run,)], [("a",)], [], [(run,)]]
        assert fetch_each(conn, []) == []
    with pytest.raises(Exception, match="nowhere"), db.read() as conn:
        fetch_each(conn, [("SELECT 1", ()), ("SELECT * FROM nowhere", ()), ("SELECT 2", ())])
    with db.read() as conn:
        assert fetch(conn, "SELECT 1") == [(1,)]


def test_a_number_too_large_is_refused(db: Database, run: int) -> None:
    row = (run, "k", 1, 2**63, 1.0, 1, 1)
    with pytest.raises(Invalid):
        db.write(lambda conn: insert_rows(conn, tables.latest_metrics, COLUMNS, [row]))
