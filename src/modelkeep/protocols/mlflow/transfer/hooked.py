"""Webhooks on their way: from MLflow's tables and JSON to the records that travel, and to the database.

A secret cannot be read over REST. A database holds it encrypted with the server's
``MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY``: with the same key in the environment it is read. A webhook whose secret
is not known comes switched off, for its receiver would refuse what is not signed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, update

from modelkeep.core.errors import ModelkeepError, NotFound
from modelkeep.lifecycle.keep import Keep
from modelkeep.protocols.mlflow import webhooks as door
from modelkeep.protocols.mlflow.transfer import arrive
from modelkeep.protocols.mlflow.transfer.records import Hook, Source, fingerprint, plain
from modelkeep.protocols.mlflow.transfer.rows import Lookup, Rows
from modelkeep.registry import webhooks
from modelkeep.store.webhook_tables import webhooks as table

KIND = "webhook"
KEY = "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY"
_ALL = 100_000


def of_rows(rows: Rows, look: Lookup) -> list[Hook]:
    """Rows of ``webhooks``, without those that were deleted."""
    rows = [row for row in rows if not row.get("deleted_timestamp")]
    wanted = look("webhook_events", "webhook_id", [row["webhook_id"] for row in rows])
    return [
        Hook(
            hook_id=row["webhook_id"],
            name=plain(row["name"]),
            url=row["url"],
            status=row["status"],
            events=sorted(_event(each) for each in wanted.get(row["webhook_id"], ())),
            created_ms=row["creation_timestamp"] or 0,
            updated_ms=row["last_updated_timestamp"] or row["creation_timestamp"] or 0,
            description=plain(row["description"] or ""),
            secret=_opened(row["secret"]),
        )
        for row in rows
    ]


def of_answer(said: Mapping[str, Any]) -> Hook:
    """MLflow's ``Webhook``, which never tells the secret."""
    made = int(said.get("creation_timestamp", 0))
    return Hook(
        hook_id=said["webhook_id"],
        name=said["name"],
        url=said["url"],
        status=said.get("status", "ACTIVE"),
        events=sorted(_event(each) for each in said.get("events", ())),
        created_ms=made,
        updated_ms=int(said.get("last_updated_timestamp") or made),
        description=said.get("description", ""),
    )


def _event(said: Mapping[str, str]) -> str:
    return f"{said['entity']}.{said['action']}".lower()


def _opened(sealed: str | None) -> str | None:
    """The secret behind what a database holds; None when it cannot be read."""
    if not sealed:
        return ""
    try:
        from cryptography.fernet import Fernet, InvalidToken
    except ModuleNotFoundError:
        return None
    try:
        return Fernet(os.environ.get(KEY, "")).decrypt(sealed.encode()).decode()
    except (ValueError, InvalidToken):  # no key, or another one
        return None


def bring(keep: Keep, source: Source, given: Hook, *, again: bool) -> tuple[bool, str]:
    """Write a webhook, which is told of what happens from now on.

    Returns:
        Whether anything was written, and what is to be said of it; empty for nothing.
    """
    whole = fingerprint(given)
    with keep.db.read() as conn:
        known = arrive.marked(conn, source.origin, KIND, [given.hook_id]).get(given.hook_id)
    if known is not None and known.fingerprint == whole and not again:
        return False, ""
    try:
        door.check(given.name, given.url, [door.Event(*each.split(".")) for each in given.events])
    except ModelkeepError as error:
        return False, f"webhook {given.name!r}: {error.message}"

    def write(conn: Connection) -> None:
        number = _written(conn, given, _same(conn, given) if known is None else int(known.target))
        times = {"created_ms": given.created_ms, "updated_ms": given.updated_ms}
        conn.execute(update(table).where(table.c.id == number).values(**times))
        arrive.mark(conn, source.origin, KIND, [(given.hook_id, str(number), whole)])

    keep.db.write(write)
    if given.secret is not None:
        return True, ""
    return True, (
        f"the secret of webhook {given.name!r}, if it has one, cannot be read: it is switched off here until it is"
        " given one and switched on"
    )


def _same(conn: Connection, given: Hook) -> int | None:
    """One that came another way, from the database of a server or from the server."""
    told = (given.name, given.url, given.created_ms)
    there = (each for each in webhooks.listing(conn, limit=_ALL) if (each.name, each.url, each.created_ms) == told)
    return next((each.id for each in there), None)


def _written(conn: Connection, given: Hook, number: int | None) -> int:
    """Its number here; a secret and a status that were set here stay when the source does not tell the secret."""
    said: dict[str, Any] = {"name": given.name, "url": given.url, "description": given.description}
    told = {} if given.secret is None else {"secret": given.secret, "status": given.status}
    if number is not None:
        try:
            return webhooks.change(conn, number, given.updated_ms, events=given.events, **said, **told).id
        except NotFound:
            pass  # deleted here since
    told = told or {"status": "DISABLED"}
    made: Any = {"description": given.description, **told}
    return webhooks.add(conn, given.name, given.url, given.events, given.created_ms, **made).id


def differences(keep: Keep, source: Source) -> tuple[int, list[str]]:
    """Read every webhook that was copied once more from both sides: how many are the same, and what differs."""
    same, faults = 0, []
    with keep.db.read() as conn:
        marks = arrive.marked(conn, source.origin, KIND)
        here = {str(each.id): each for each in webhooks.listing(conn, limit=_ALL)}
    for given in source.webhooks():
        mark = marks.get(given.hook_id)
        if mark is None:
            continue  # why was said when it was left
        mine = here.get(mark.target)
        if mine is None:
            faults.append(f"webhook {given.name!r}: is not here")
            continue
        compared = ["name", "url", "description", "created_ms", "updated_ms"]
        compared += [] if given.secret is None else ["status", "secret"]
        wrong = [name for name in compared if getattr(mine, name) != getattr(given, name)]
        wrong += ["events"] if sorted(mine.events) != given.events else []
        faults += [f"webhook {given.name!r}: {name} differs" for name in wrong]
        same += not wrong
    return same, faults
