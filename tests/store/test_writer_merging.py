"""Works that are done together, and callers that are told once for each commit."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import Connection, select, text

from modelkeep.core.errors import Conflict, Invalid
from modelkeep.store.bulk import fetch, insert_rows
from modelkeep.store.database import Database
from modelkeep.store.tables import counters
from modelkeep.store.writer import Mergeable, Outcome


class Count(Mergeable):
    """Puts a counter; how many came together is its result."""

    def __init__(self, name: str) -> None:
        self.name = name

    @staticmethod
    def merge(conn: Connection, works: Sequence[Count]) -> list[Any]:
        good = [work for work in works if work.name]
        insert_rows(conn, counters, ("name", "value"), [(work.name, 1) for work in good])
        return [len(works) if work.name else Invalid("no name") for work in works]


def names(db: Database) -> set[str]:
    with db.read() as conn:
        return set(conn.execute(select(counters.c.name)).scalars())


def waiting(db: Database, works: Sequence[Any]) -> list[Any]:
    gate = threading.Event()
    db.submit(lambda _: gate.wait(10))
    futures = [db.submit(work) for work in works]
    gate.set()
    return [future.exception(10) or future.result() for future in futures]


def test_neighbours_are_done_together_and_others_stand_between(db: Database) -> None:
    other = lambda conn: fetch(conn, "SELECT count(*) FROM counters")[0][0]  # noqa: E731
    results = waiting(db, [Count("a"), Count("b"), other, Count("c"), Count(""), Count("d")])
    assert results[:4] == [2, 2, 2, 3]
    assert isinstance(results[4], Invalid)
    assert results[5] == 3
    assert names(db) == {"a", "b", "c", "d"}


def test_what_the_database_refuses_is_found_and_fails_alone(db: Database) -> None:
    db.write(Count("taken"))
    results = waiting(db, [Count("a"), Count("taken"), Count("b")])
    assert [isinstance(result, Conflict) for result in results] == [False, True, False]
    assert names(db) == {"taken", "a", "b"}


def test_a_caller_of_many_is_told_once_for_each_commit(db: Database) -> None:
    told: list[list[Outcome]] = []
    done = threading.Event()

    def tell(outcomes: list[Outcome]) -> None:
        assert {f"n{ticket}" for ticket, _, fault in outcomes if fault is None} <= names(db)  # durable by now
        told.append(outcomes)
        if sum(map(len, told)) == 50:
            done.set()

    gate = threading.Event()
    db.submit(lambda _: gate.wait(10))
    for number in range(50):
        db.post([(Count(f"n{number}" if number != 7 else ""), number)], tell)
    gate.set()
    assert done.wait(10)
    tickets = [ticket for outcomes in told for ticket, _, _ in outcomes]
    assert tickets == list(range(50))
    assert len(told) < 10
    assert [ticket for outcomes in told for ticket, _, fault in outcomes if fault is not None] == [7]


def test_many_rows_are_inserted_whatever_their_number(db: Database) -> None:
    for count in (1, 249, 250, 251, 777):
        rows = [(f"{count}-{number}", number) for number in range(count)]
        db.write(lambda conn, rows=rows: insert_rows(conn, counters, ("name", "value"), rows))
        with db.read() as conn:
            assert fetch(conn, "SELECT count(*) FROM counters WHERE name LIKE ?", (f"{count}-%",)) == [(count,)]
    again = [(f"251-{number}", 5) for number in range(300)]
    db.write(lambda conn: insert_rows(conn, counters, ("name", "value"), again, "ON CONFLICT DO NOTHING"))
    with db.read() as conn:
        assert fetch(conn, "SELECT count(*) FROM counters WHERE name LIKE '251-%' AND value = 5") == [(50,)]


def test_the_writers_connection_may_be_lost_between_two_writes(postgres_url: str) -> None:
    db = Database.open(postgres_url)
    other = Database.open(postgres_url)
    db.write(Count("before"))
    mine = db.write(lambda conn: fetch(conn, "SELECT pg_backend_pid()")[0][0])
    other.write(lambda conn: conn.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": mine}))
    deadline = time.monotonic() + 10
    while other.write(lambda conn: fetch(conn, "SELECT count(*) FROM pg_stat_activity WHERE pid = ?", (mine,)))[0][
        0
    ]:
        assert time.monotonic() < deadline
    assert db.write(Count("after")) == 1
    assert names(db) == {"before", "after"}
    db.close()
    other.close()


def test_a_mergeable_work_can_be_done_alone(db: Database) -> None:
    assert db.write(lambda conn: Count("alone")(conn)) == 1
    with pytest.raises(Invalid):
        db.write(lambda conn: Count("")(conn))
    assert names(db) == {"alone"}
