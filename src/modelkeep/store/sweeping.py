"""Removing blobs and chunks that nothing needs, in bounded memory, while others go on writing.

What is needed is gathered in a temporary SQLite file, not in memory. An object is removed only if it was neither
added nor touched since a moment before the gathering began: whoever puts the same bytes meanwhile keeps them.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from msgspec import Struct

from modelkeep.core.errors import Damaged, NotFound
from modelkeep.store.blobs import Blobs
from modelkeep.store.bytestores import Entry
from modelkeep.store.chunks import LIST, ChunkList

AT_ONCE = 1000
_ENTRY, _HEAD = 36, 73
"""Bytes of a list of chunks: 73, and 36 for each chunk (``chunks.ChunkList``)."""


class Swept(Struct):
    """What was, or would be, removed of one kind.

    Attributes:
        count: How many objects.
        bytes: What they take on the disk.
        kept: How many are needed.
        young: How many are not needed, but too new to be removed.
        examples: The first few digests.
    """

    count: int = 0
    bytes: int = 0
    kept: int = 0
    young: int = 0
    examples: list[str] = []


class Marks:
    """Digests that are needed, on disk: ``blobs`` and ``chunks``. Use as a context manager."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="modelkeep-gc-")
        self._conn = sqlite3.connect(Path(self._folder.name) / "marks.db", isolation_level=None)
        for pragma in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -65536"):
            self._conn.execute(f"PRAGMA {pragma}")
        for kind in ("blobs", "chunks"):
            self._conn.execute(f"CREATE TABLE {kind} (digest BLOB PRIMARY KEY, state INTEGER) WITHOUT ROWID")
        self._conn.execute("CREATE INDEX to_read ON blobs (state) WHERE state = 1")
        self._conn.execute("BEGIN")

    def __enter__(self) -> Marks:
        return self

    def __exit__(self, *_: object) -> None:
        self._conn.close()
        self._folder.cleanup()

    def add(self, kind: str, digests: Iterable[str], *, inside: bool = False) -> None:
        """Mark as needed.

        Args:
            inside: What they hold may name further digests.
        """
        rows = ((bytes.fromhex(digest), int(inside)) for digest in digests)
        again = "DO UPDATE SET state = 1 WHERE state = 0" if inside else "DO NOTHING"
        self._conn.executemany(
            f"INSERT INTO {kind} VALUES (?, ?) ON CONFLICT {'(digest) ' if inside else ''}{again}", rows
        )

    def unread(self) -> Iterator[str]:
        """Each blob whose content may name further digests, once; more may be added meanwhile."""
        while True:
            rows = self._conn.execute("SELECT digest FROM blobs WHERE state = 1 LIMIT ?", (AT_ONCE,)).fetchall()
            if not rows:
                return
            self._conn.executemany("UPDATE blobs SET state = 2 WHERE digest = ?", rows)
            yield from (digest.hex() for (digest,) in rows)

    def known(self, kind: str, digests: Sequence[str]) -> set[str]:
        """Those of these that are needed."""
        marks = ", ".join("?" * len(digests))
        query = f"SELECT digest FROM {kind} WHERE digest IN ({marks})"
        return {digest.hex() for (digest,) in self._conn.execute(query, [bytes.fromhex(each) for each in digests])}


def sweep_blobs(blobs: Blobs, marks: Marks, before: float, *, dry_run: bool, step: Callable[[int], None]) -> Swept:
    """Remove blobs that are not marked, and mark the chunks of those that stay.

    Args:
        before: Seconds since 1970; what was added or touched since stays.
        step: Told now and then how many have been looked at.
    """
    found = Swept(examples=[])
    done = 0
    for batch in _batches(blobs.below.entries("blobs")):
        needed = marks.known("blobs", [_digest(entry) for entry in batch])
        staying: list[Entry] = []
        for entry in batch:
            gone = _decide(blobs, entry, needed, before, found, dry_run=dry_run)
            if not gone:
                staying.append(entry)
        for entry in staying:
            marks.add("chunks", _chunks(blobs, entry))
        done += len(batch)
        step(done)
    return found


def sweep_chunks(
    blobs: Blobs, marks: Marks, before: float, *, dry_run: bool, step: Callable[[int], None]
) -> Swept:
    """Remove chunks that no blob needs; only after ``sweep_blobs``, which marks them."""
    found = Swept(examples=[])
    done = 0
    for batch in _batches(blobs.below.entries("chunks")):
        needed = marks.known("chunks", [_digest(entry) for entry in batch])
        for entry in batch:
            _decide(blobs, entry, needed, before, found, dry_run=dry_run)
        done += len(batch)
        step(done)
    return found


def _decide(blobs: Blobs, entry: Entry, needed: set[str], before: float, found: Swept, *, dry_run: bool) -> bool:
    digest = _digest(entry)
    if digest in needed:
        found.kept += 1
        return False
    if entry.time >= before or not (dry_run or blobs.below.discard(entry.name, before)):
        found.young += 1
        return False
    found.count += 1
    found.bytes += entry.size
    if len(found.examples) < 20:
        found.examples.append(digest)
    return True


def _chunks(blobs: Blobs, entry: Entry) -> Sequence[str]:
    """The chunks of a blob that is kept as a list of them. Raises ``Damaged``: then no chunk may go."""
    if entry.size <= _HEAD or (entry.size - _HEAD) % _ENTRY:
        return ()
    try:
        if blobs.below.head(entry.name, 1) != LIST:
            return ()
        return ChunkList.from_bytes(blobs.below.get(entry.name), _digest(entry)).digests
    except NotFound:
        return ()  # removed by somebody else
    except Damaged as error:
        raise Damaged(
            f"{error.message}, so it cannot be known which chunks it needs", hint="run 'modelkeep doctor' first"
        ) from None


def _batches(entries: Iterator[Entry]) -> Iterator[list[Entry]]:
    while batch := list(islice(entries, AT_ONCE)):
        yield batch


def _digest(entry: Entry) -> str:
    return "".join(entry.name.split("/")[-2:])
