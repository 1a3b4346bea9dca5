"""Finding and comparing snapshots for commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelkeep.core.errors import Invalid, NotFound

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from modelkeep.registry.snapshots import Record


def find(conn: Connection, ref: str) -> Record:
    """The newest snapshot of a name, or the one whose digest begins so.

    Raises:
        NotFound: There is none.
        Invalid: Several digests begin so.
    """
    from modelkeep.registry import snapshots

    latest = snapshots.latest(conn, ref)
    if latest is not None:
        return latest
    names = snapshots.names(conn)
    begun = {record.digest: record for name in names for record in snapshots.named(conn, name)}
    found = [record for digest, record in begun.items() if digest.startswith(ref)]
    if len(found) > 1:
        raise Invalid(f"{ref!r} begins {len(found)} digests; give more of it")
    if not found:
        known = ", ".join(names) or "none"
        raise NotFound(f"there is no snapshot {ref!r}; expected a digest or one of the names: {known}")
    return found[0]
