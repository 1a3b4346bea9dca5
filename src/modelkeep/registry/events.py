"""The history: one line per change of state, each sealed by the hash of the one before.

The chain is Haber and Stornetta, "How to time-stamp a digital document", J. Cryptology 3, 1991: whoever edits,
removes, inserts or moves a line would have to rewrite every line after it and the head.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy import Connection, Row, or_, select

from modelkeep.store.bulk import decode, encode, fetch, insert_rows, run_many
from modelkeep.store.tables import event_head, events

GENESIS = "0" * 64

_acting: ContextVar[str] = ContextVar("acting", default="")


class Event(Struct, frozen=True):
    """One change of state.

    Attributes:
        seq: Its place, from 1, without gaps.
        at: When, seconds since 1970.
        kind: What happened, as ``version.promoted``.
        subject: To what, as ``flights@7``.
        actor: Who did it.
        data: The evidence, JSON types.
        previous: Hash of the event before.
        hash: BLAKE2b of all of the above.
    """

    seq: int
    at: float
    kind: str
    subject: str
    actor: str
    data: dict[str, Any]
    previous: str
    hash: str


@contextmanager
def acting(actor: str) -> Iterator[None]:
    """Events appended inside are this one's: who is known to have asked for the change."""
    before = _acting.set(actor)
    try:
        yield
    finally:
        _acting.reset(before)


class Change(Struct, frozen=True):
    """What an event will say; see ``Event``."""

    kind: str
    subject: str
    data: dict[str, Any]
    at: float
    actor: str


def append(
    conn: Connection, kind: str, subject: str, data: dict[str, Any], *, now: float, actor: str = "modelkeep"
) -> Event:
    """Add an event at the end; it becomes part of the caller's transaction.

    Args:
        actor: Who did it, unless ``acting`` knows.
    """
    (event,) = append_all(conn, [Change(kind, subject, data, float(now), _acting.get() or actor)])
    return event


def append_all(conn: Connection, changes: Sequence[Change]) -> list[Event]:
    """Add events at the end, in order; they become part of the caller's transaction."""
    if not changes:
        return []
    seq, previous = _lock_head(conn)
    made = []
    for seq, change in enumerate(changes, seq + 1):  # noqa: B020 - from the head on
        said = (seq, change.at, change.kind, change.subject, change.actor)
        text = encode(change.data)
        sealed = _seal((*said, text, previous))
        made.append((*said, text, previous, sealed))
        previous = sealed
    insert_rows(conn, events, Event.__struct_fields__, made)
    run_many(conn, "UPDATE event_head SET seq = ?, hash = ? WHERE id = 1", [(seq, previous)])
    return [Event(*row[:5], decode(row[5]), *row[6:]) for row in made]


def history(
    conn: Connection,
    subject: str | None = None,
    *,
    kind: str | None = None,
    after: int = 0,
    limit: int | None = None,
    newest_first: bool = False,
) -> list[Event]:
    """Events in order.

    Args:
        subject: Only of this subject; ``flights`` also finds ``flights@7``.
        kind: Only of this kind; ``version.`` finds every kind that begins so.
        after: Only those with a higher ``seq``.
        limit: At most so many.
        newest_first: Turn the order round.
    """
    query = select(events).where(events.c.seq > after)
    if subject is not None:
        below = events.c.subject.between(f"{subject}@", f"{subject}@\U0010ffff")
        query = query.where(or_(events.c.subject == subject, below))
    if kind is not None:
        prefix = events.c.kind.startswith(kind, autoescape=True)
        query = query.where(prefix if kind.endswith(".") else events.c.kind == kind)
    query = query.order_by(events.c.seq.desc() if newest_first else events.c.seq)
    return [_event(row) for row in conn.execute(query if limit is None else query.limit(limit))]


def head(conn: Connection) -> tuple[int, str]:
    """Number and hash of the last event. Kept elsewhere, it proves the history up to it."""
    found = conn.execute(select(event_head.c.seq, event_head.c.hash)).first()
    return (0, GENESIS) if found is None else (found.seq, found.hash)


def verify(conn: Connection) -> list[str]:
    """Every fault of the chain: edited, missing, inserted and moved events. Reads in bounded memory."""
    faults: list[str] = []
    expected, previous = 1, GENESIS
    for row in _stream(conn):
        if row.seq != expected:
            faults.append(f"event {expected}: missing, the next one is {row.seq}")
        if row.previous != previous:
            faults.append(f"event {row.seq}: does not follow the event before it")
        sealed = _seal((row.seq, row.at, row.kind, row.subject, row.actor, row.data, row.previous))
        if row.hash != sealed:
            faults.append(f"event {row.seq}: was changed after it was written")
        expected, previous = row.seq + 1, row.hash
    if (expected - 1, previous) != head(conn):
        faults.append(f"event {head(conn)[0]}: the history should end here, it ends with {expected - 1}")
    return faults


def _seal(content: tuple[int, float, str, str, str, str, str]) -> str:
    return hashlib.blake2b(msgspec.json.encode(content), digest_size=32).hexdigest()


def _lock_head(conn: Connection) -> tuple[int, str]:
    """Read the head so that no other transaction can append before this one ends."""
    query = "SELECT seq, hash FROM event_head WHERE id = 1"
    query += " FOR UPDATE" if conn.dialect.name == "postgresql" else ""
    found = fetch(conn, query)
    if not found:  # another transaction may make the first event meanwhile
        insert_rows(conn, event_head, ("id", "seq", "hash"), [(1, 0, GENESIS)], "ON CONFLICT DO NOTHING")
        found = fetch(conn, query)
    seq, sealed = found[0]
    return seq, sealed


def _stream(conn: Connection) -> Iterator[Row[Any]]:
    last = 0
    while True:
        query = select(events).where(events.c.seq > last).order_by(events.c.seq).limit(5000)
        rows = conn.execute(query).all()
        if not rows:
            return
        yield from rows
        last = rows[-1].seq


def _event(row: Row[Any]) -> Event:
    values = dict(row._mapping)
    values["data"] = decode(values["data"])
    return Event(**values)
