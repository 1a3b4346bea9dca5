"""Counters that grow with every change of something: cheap to ask again and again whether there is news."""

from __future__ import annotations

from sqlalchemy import Connection, select

from modelkeep.store.bulk import inserting
from modelkeep.store.tables import counters


def value(conn: Connection, name: str) -> int:
    """How often it changed; 0 before the first time."""
    return int(conn.execute(select(counters.c.value).where(counters.c.name == name)).scalar() or 0)


def raise_(conn: Connection, name: str) -> int:
    """Note a change and return the new count."""
    insert = inserting(conn, counters)
    raised = insert.on_conflict_do_update(index_elements=["name"], set_={"value": counters.c.value + 1})
    return int(conn.execute(raised.returning(counters.c.value), {"name": name, "value": 1}).scalar_one())
