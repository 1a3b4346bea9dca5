"""Webhooks: who wants to be told of which changes of the registry, and how far each has been told.

The history of events is the queue: each webhook remembers the last event it has dealt with, so nothing is lost
when a receiver or this process is away, and what one receiver misses holds up no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from msgspec import Struct
from sqlalchemy import Connection, Row, delete, insert, or_, select, update

from modelkeep.core.errors import NotFound
from modelkeep.registry import events
from modelkeep.store.bulk import decode, encode
from modelkeep.store.webhook_tables import webhooks as table

Status = Literal["ACTIVE", "DISABLED"]


class Webhook(Struct, frozen=True, kw_only=True):
    """One webhook.

    Attributes:
        url: Where changes are posted.
        secret: Signs what is posted; empty for none.
        events: What it wants to be told of, as ``model_version.created``.
        seen: The last event of the history that is dealt with.
        attempts: How often the next one has been tried.
        not_before: Earliest time of the next try, seconds since 1970; None for at once.
        last_error: Why the last try failed; empty when it did not.
    """

    id: int
    name: str
    description: str
    url: str
    secret: str
    status: Status
    events: tuple[str, ...]
    created_ms: int
    updated_ms: int
    seen: int
    attempts: int
    not_before: float | None
    last_error: str


def add(
    conn: Connection,
    name: str,
    url: str,
    wanted: Sequence[str],
    now_ms: int,
    *,
    description: str = "",
    secret: str = "",
    status: Status = "ACTIVE",
) -> Webhook:
    """Tell ``url`` of what happens from now on."""
    row = {
        "name": name,
        "description": description,
        "url": url,
        "secret": secret,
        "status": status,
        "events": encode(list(wanted)),
        "created_ms": now_ms,
        "updated_ms": now_ms,
        "seen": events.head(conn)[0],
    }
    return get(conn, int(conn.execute(insert(table).returning(table.c.id), row).scalar_one()))


def get(conn: Connection, number: int) -> Webhook:
    """One webhook. Raises ``NotFound``."""
    found = conn.execute(select(table).where(table.c.id == number)).first()
    if found is None:
        raise NotFound(f"Webhook with ID {number} not found.")
    return _webhook(found)


def listing(conn: Connection, *, after: int = 0, limit: int = 1000) -> list[Webhook]:
    """Webhooks by id, those after ``after``."""
    query = select(table).where(table.c.id > after).order_by(table.c.id).limit(limit)
    return [_webhook(row) for row in conn.execute(query)]


def due(conn: Connection, now: float) -> list[Webhook]:
    """Active webhooks that have not dealt with the last event yet and may try now."""
    query = select(table).where(
        table.c.status == "ACTIVE",
        table.c.seen < events.head(conn)[0],
        or_(table.c.not_before.is_(None), table.c.not_before <= now),
    )
    return [_webhook(row) for row in conn.execute(query.order_by(table.c.id))]


def change(conn: Connection, number: int, now_ms: int, **values: Any) -> Webhook:
    """Set ``name``, ``description``, ``url``, ``secret``, ``status`` or ``events``. Raises ``NotFound``.

    One that is switched on again begins with what happens from then on.
    """
    before = get(conn, number)
    if "events" in values:
        values["events"] = encode(list(values["events"]))
    if values.get("status") == "ACTIVE" and before.status != "ACTIVE":
        values |= {"seen": events.head(conn)[0], "attempts": 0, "not_before": None}
    conn.execute(update(table).where(table.c.id == number).values(updated_ms=now_ms, **values))
    return get(conn, number)


def remove(conn: Connection, number: int) -> None:
    """Forget a webhook. Raises ``NotFound``."""
    get(conn, number)
    conn.execute(delete(table).where(table.c.id == number))


def dealt_with(conn: Connection, number: int, seen: int, error: str = "") -> None:
    """Everything up to event ``seen`` was delivered, did not concern it, or (with ``error``) was given up."""
    values = {"seen": seen, "attempts": 0, "not_before": None, "last_error": error}
    conn.execute(update(table).where(table.c.id == number, table.c.seen < seen).values(**values))


def postpone(conn: Connection, number: int, seen: int, until: float, error: str) -> None:
    """The event after ``seen`` could not be delivered; try again at ``until``."""
    values = {"attempts": table.c.attempts + 1, "not_before": until, "last_error": error, "seen": seen}
    conn.execute(update(table).where(table.c.id == number).values(**values))


def _webhook(row: Row[Any]) -> Webhook:
    values = dict(row._mapping)
    values["events"] = tuple(decode(values["events"]))
    return Webhook(**values)
