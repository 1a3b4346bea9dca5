from __future__ import annotations

import threading
from itertools import pairwise

import pytest
from sqlalchemy import text

from modelkeep.registry import events
from modelkeep.store.database import Database


def fill(db: Database, count: int = 5) -> None:
    for number in range(1, count + 1):
        subject = f"flights@{number}" if number % 2 else "other@1"
        db.write(
            lambda c, n=number, s=subject: events.append(
                c, "version.registered", s, {"n": n, "é": None}, now=n + 0.1
            )
        )


def verify(db: Database) -> list[str]:
    with db.read() as conn:
        return events.verify(conn)


def test_events_are_kept_in_order_and_verify(db: Database) -> None:
    assert verify(db) == []
    fill(db)
    with db.read() as conn:
        found = events.history(conn)
        assert [event.seq for event in found] == [1, 2, 3, 4, 5]
        assert found[0].previous == events.GENESIS
        assert all(b.previous == a.hash for a, b in pairwise(found))
        assert found[2].data == {"n": 3, "é": None}
        assert events.head(conn) == (5, found[-1].hash)
        assert [event.seq for event in events.history(conn, "flights")] == [1, 3, 5]
        assert [event.seq for event in events.history(conn, "flights@3")] == [3]
        assert [event.seq for event in events.history(conn, kind="version.", newest_first=True, limit=2)] == [5, 4]
        assert [event.seq for event in events.history(conn, after=3)] == [4, 5]
        assert events.history(conn, "flight") == []
    assert verify(db) == []


@pytest.mark.parametrize(
    ("tampering", "seen"),
    [
        (["UPDATE events SET data = '{\"n\":9}' WHERE seq = 3"], "event 3: was changed"),
        (["UPDATE events SET at = at + 1 WHERE seq = 1"], "event 1: was changed"),
        (["UPDATE events SET actor = 'me' WHERE seq = 5"], "event 5: was changed"),
        (["DELETE FROM events WHERE seq = 3"], "event 3: missing"),
        (["DELETE FROM events WHERE seq = 5"], "should end here"),
        (["DELETE FROM events WHERE seq >= 1"], "should end here"),
        (["DELETE FROM events WHERE seq = 1"], "event 1: missing"),
        (["DELETE FROM event_head"], "should end here"),
        (
            [
                "UPDATE events SET seq = 99 WHERE seq = 2",
                "UPDATE events SET seq = 2 WHERE seq = 3",
                "UPDATE events SET seq = 3 WHERE seq = 99",
            ],
            "event 2: does not follow",
        ),
        (
            [
                "INSERT INTO events SELECT 6, at, kind, subject, actor, data, previous, hash "
                "FROM events WHERE seq = 5",
            ],
            "event 6: does not follow",
        ),
    ],
)
def test_tampering_is_seen(db: Database, tampering: list[str], seen: str) -> None:
    fill(db)
    db.write(lambda conn: [conn.execute(text(statement.replace(":", "\\:"))) for statement in tampering] and None)
    assert any(seen in fault for fault in verify(db)), verify(db)


def test_an_aborted_append_leaves_no_gap(db: Database) -> None:
    fill(db, 2)

    def broken(conn: object) -> None:
        events.append(conn, "x", "y", {}, now=1.0)  # type: ignore[arg-type]
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        db.write(broken)
    fill(db, 2)
    assert verify(db) == []
    with db.read() as conn:
        assert events.head(conn)[0] == 4


def test_concurrent_appends_make_one_chain(db: Database, url: str) -> None:
    # Two databases on one URL have a writer each, as two processes do; the very first append races too.
    both = [db, Database.open(url)]

    def many(mine: Database) -> None:
        for number in range(40):
            mine.write(lambda c, n=number: events.append(c, "x", "y", {"n": n}, now=1.0))

    threads = [threading.Thread(target=many, args=(mine,)) for mine in both for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    both[1].close()
    assert verify(db) == []
    with db.read() as conn:
        assert events.head(conn)[0] == 160
