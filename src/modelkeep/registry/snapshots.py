"""Which snapshots were taken, and from what: the rows behind ``data.snapshots``."""

from __future__ import annotations

import msgspec
from msgspec import Struct, field
from sqlalchemy import Connection, delete, insert, select

from modelkeep.core.errors import NotFound
from modelkeep.registry import holds
from modelkeep.store.bulk import encode
from modelkeep.store.tables import snapshots as table


class Part(Struct, frozen=True, kw_only=True):
    """What one partition of the source was when the snapshot was taken.

    Attributes:
        fingerprint: The source's cheap fingerprint of it.
        digest: Of the Parquet part made from it.
        rows: In it.
    """

    fingerprint: str
    digest: str
    rows: int


class Record(Struct, frozen=True, kw_only=True):
    """One taking of a snapshot.

    Attributes:
        name: What was taken, usually the model's name.
        digest: Identity of the snapshot.
        manifest: Digest of the blob holding its manifest.
        created: Seconds since 1970.
        rows: In all parts.
        parent: Digest of the snapshot taken before under this name.
        fingerprints: By partition of the source: what need not be read again while unchanged.
    """

    name: str
    digest: str
    manifest: str
    created: float
    rows: int
    parent: str | None = None
    fingerprints: dict[str, Part] = field(default_factory=dict)


def record(conn: Connection, taken: Record) -> None:
    """Keep a taking. Taking an unchanged table again adds nothing but its new fingerprints."""
    row = {name: getattr(taken, name) for name in Record.__struct_fields__}
    row["fingerprints"] = encode(taken.fingerprints)
    before = latest(conn, taken.name)
    if before is None or before.digest != taken.digest:
        conn.execute(insert(table), row)
    elif before.fingerprints != taken.fingerprints:
        newest = select(table.c.id).where(table.c.name == taken.name).order_by(table.c.id.desc()).limit(1)
        change = table.update().where(table.c.id == newest.scalar_subquery())
        conn.execute(change.values(fingerprints=row["fingerprints"]))


def withdraw(conn: Connection, name: str, digest: str) -> None:
    """Forget the newest taking under a name, if it is this one: its rows turned out to be unusable."""
    holds.refuse(conn, "snapshot", digest)
    newest = select(table.c.id).where(table.c.name == name).order_by(table.c.id.desc()).limit(1)
    conn.execute(delete(table).where(table.c.id == newest.scalar_subquery(), table.c.digest == digest))


def get(conn: Connection, digest: str) -> Record:
    """The newest taking of a snapshot. Raises ``NotFound``."""
    query = select(table).where(table.c.digest == digest).order_by(table.c.id.desc()).limit(1)
    found = _records(conn, query)
    if not found:
        raise NotFound(f"there is no snapshot {digest}")
    return found[0]


def named(conn: Connection, name: str) -> list[Record]:
    """Every taking under a name, oldest first."""
    return _records(conn, select(table).where(table.c.name == name).order_by(table.c.id))


def latest(conn: Connection, name: str) -> Record | None:
    """The newest taking under a name."""
    found = _records(conn, select(table).where(table.c.name == name).order_by(table.c.id.desc()).limit(1))
    return found[0] if found else None


def names(conn: Connection) -> list[str]:
    """All names, in order."""
    return list(conn.execute(select(table.c.name).distinct().order_by(table.c.name)).scalars())


def _records(conn: Connection, query: object) -> list[Record]:
    records = []
    for row in conn.execute(query):  # type: ignore[call-overload]
        values = {name: getattr(row, name) for name in Record.__struct_fields__}
        values["fingerprints"] = msgspec.json.decode(row.fingerprints, type=dict[str, Part])
        records.append(Record(**values))
    return records
