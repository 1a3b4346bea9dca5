"""Searches that are not over: each study's journal, so that one that is killed goes on where it stopped."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct
from sqlalchemy import Connection, delete, func, select

from modelkeep.core.clock import Clock
from modelkeep.core.errors import Conflict
from modelkeep.store.bulk import insert_rows
from modelkeep.store.database import Database
from modelkeep.store.tables import studies


class Study:
    """The journal of one study. Its lines are numbered, so that one process adds to it, and a kill leaves no lock.

    Args:
        db: Where it is kept.
        name: Whose it is.
        clock: What time it is.
    """

    def __init__(self, db: Database, name: str, clock: Clock) -> None:
        self._db, self._name, self._clock = db, name, clock

    def lines(self) -> list[str]:
        """All lines, in order."""
        query = select(studies.c.number, studies.c.line).where(studies.c.study == self._name)
        with self._db.read() as conn:
            found = conn.execute(query.order_by(studies.c.number)).all()
        if found and found[-1].number != len(found) - 1:
            # the end of a search that another process finished, and forgot, first
            self._db.write(lambda conn: forget(conn, self._name))
            return []
        return [row.line for row in found]

    def append(self, number: int, lines: Sequence[str]) -> None:
        """Add lines, the first of them as ``number``: all or none.

        Raises:
            Conflict: Another process has added lines since these began.
        """
        now = self._clock.now()
        rows = [(self._name, number + at, line, now) for at, line in enumerate(lines)]
        try:
            self._db.write(lambda conn: insert_rows(conn, studies, ("study", "number", "line", "created"), rows))
        except Conflict:
            raise Conflict(
                "another process is tuning the same model on the same rows",
                hint="let one of them end; the other then goes on with its trials",
            ) from None


class Abandoned(Struct, frozen=True):
    """Studies that nobody went on with: how many, the bytes of their lines, the first few by name."""

    count: int
    bytes: int
    examples: list[str]


def forget(conn: Connection, name: str) -> None:
    """Drop a study's lines."""
    conn.execute(delete(studies).where(studies.c.study == name))


def abandoned(conn: Connection, before: float) -> Abandoned:
    """Studies to which nothing was added since ``before``, seconds since 1970."""
    size = func.sum(func.length(studies.c.line))
    query = select(studies.c.study, size).group_by(studies.c.study).having(func.max(studies.c.created) < before)
    found = conn.execute(query.order_by(studies.c.study)).all()
    return Abandoned(len(found), sum(int(row[1]) for row in found), [row[0] for row in found[:20]])


def forget_abandoned(conn: Connection, before: float) -> None:
    """Drop their lines."""
    names = select(studies.c.study).group_by(studies.c.study).having(func.max(studies.c.created) < before)
    conn.execute(delete(studies).where(studies.c.study.in_(names)))
