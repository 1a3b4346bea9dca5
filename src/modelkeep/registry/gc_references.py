"""Which blobs the rows of the database need.

Columns known to hold a digest are read as such. Every other text that is not a client's own is searched for
digests: a table that is added later keeps its blobs without this module knowing it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Protocol

from sqlalchemy import Connection, String, column, inspect, select, table

from modelkeep.core.errors import Damaged, NotFound
from modelkeep.core.ports import BlobStore
from modelkeep.registry.gc_rows import Condemned

DIGEST = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
LARGEST = 256 * 1024 * 1024
"""Bytes of the largest listing that is read."""

_AT_ONCE = 5000
_FILES = frozenset({"run_artifacts", "logged_model_artifacts", "trace_artifacts", "captures", "windows"})
"""Tables whose blobs are files or measurements: what they hold names no other blob."""

_OF_CLIENTS: dict[str, frozenset[str]] = {
    "metrics": frozenset({"key"}),
    "latest_metrics": frozenset({"key"}),
    "params": frozenset({"key", "value"}),
    "tags": frozenset({"key", "value"}),
    "experiment_tags": frozenset({"key", "value"}),
    "model_tags": frozenset({"key", "value"}),
    "version_tags": frozenset({"key", "value"}),
    "logged_model_params": frozenset({"key", "value"}),
    "logged_model_tags": frozenset({"key", "value"}),
    "run_artifacts": frozenset({"path"}),
    "logged_model_artifacts": frozenset({"path"}),
    "trace_artifacts": frozenset({"path"}),
    "trace_tags": frozenset({"key", "value"}),
    "trace_metadata": frozenset({"key", "value"}),
    "trace_spans": frozenset({"name", "content", "usage", "cost"}),
    "trace_assessments": frozenset({"name", "value", "content"}),
    "evaluation_records": frozenset({"content", "inputs_digest"}),
    "labels": frozenset({"prediction_id", "value"}),
    "events": frozenset({"kind", "actor", "previous", "hash"}),
    "event_head": frozenset({"hash"}),
    "imports": frozenset({"origin", "kind", "name", "target", "fingerprint"}),
}
"""Text that clients wrote or that names no blob: a digest in it keeps nothing."""


class Marks(Protocol):
    """Where digests are gathered."""

    def add(self, kind: str, digests: Any, *, inside: bool = False) -> None:
        """Mark as needed; ``inside`` when what they hold may name further digests."""
        ...

    def unread(self) -> Iterator[str]:
        """Each blob whose content may name further digests, once."""
        ...


def mark(conn: Connection, blobs: BlobStore, condemned: Condemned | None, marks: Marks) -> None:
    """Mark every blob that is needed, reading in bounded memory.

    Args:
        condemned: Rows that count as gone already; None when none do.

    Raises:
        Damaged: A listing cannot be read, so that it is not known what it needs.
    """
    # The tables that are there, whichever parts of the program know of them.
    for (_, name), found in inspect(conn).get_multi_columns().items():
        mine = _OF_CLIENTS.get(name or "", frozenset())
        columns = [each["name"] for each in found if isinstance(each["type"], String) and each["name"] not in mine]
        if name and columns:
            for rows in _rows(conn, name, columns, condemned):
                named = {digest for row in rows for value in row if value for digest in DIGEST.findall(value)}
                marks.add("blobs", named, inside=name not in _FILES)
    for digest in marks.unread():
        marks.add("blobs", set(_named_in(blobs, digest)), inside=True)


def _rows(conn: Connection, name: str, columns: list[str], condemned: Condemned | None) -> Iterator[Any]:
    query: Any = select(*(column(each) for each in columns)).select_from(table(name))
    if condemned is not None and name == "run_artifacts":
        query = query.where(column("run").not_in(condemned.runs()))
    if condemned is not None and name == "logged_model_artifacts":
        query = query.where(column("model").not_in(condemned.logged_models()))
    yield from conn.execution_options(yield_per=_AT_ONCE).execute(query).partitions()


def _named_in(blobs: BlobStore, digest: str) -> list[str]:
    """The digests in a blob that is a JSON listing: a tree of files, a manifest. What is no blob names nothing."""
    try:
        with blobs.open(digest) as stream:
            if stream.read(1) != b"{":
                return []
            listing = stream.read(LARGEST)
    except NotFound:
        return []
    except Damaged as error:
        raise Damaged(
            f"{error.message}, so it cannot be known what it needs", hint="run 'modelkeep doctor' first"
        ) from None
    return DIGEST.findall(listing.decode("utf-8", "replace"))
