"""``modelkeep gc``: remove what nothing refers to any more, and say why.

First rows: runs, logged models and experiments that were deleted long ago, and searches that nobody went on with.
Then every blob that no row needs, then every chunk that no blob needs, then copies of packages that nothing
serves. Killed at any moment, it leaves at worst something for the next time. What is under legal hold, and all it
reaches, stays.
"""

from __future__ import annotations

import shutil
import time
from functools import partial
from pathlib import Path
from typing import cast

from msgspec import Struct

from modelkeep.core.ports import Progress
from modelkeep.lifecycle.keep import Keep
from modelkeep.registry import endpoints, events, gc_references
from modelkeep.registry.gc_rows import Condemned, Tally
from modelkeep.store import studies
from modelkeep.store.blobs import Blobs
from modelkeep.store.sweeping import Marks, Swept, sweep_blobs, sweep_chunks

GRACE = 24 * 3600.0
"""Seconds for which an object that nothing refers to is kept: an upload may take so long to be referred to."""

OLDER = 30 * 24 * 3600.0
"""Seconds after which what was deleted is gone for good."""


class Line(Struct, frozen=True):
    """One kind of thing that goes.

    Attributes:
        bytes: What that frees on the disk; of rows, the sizes of the files they name, which blobs may share.
        kept: How many of the kind stay.
        young: How many would go, but are too new.
        examples: The first few.
    """

    kind: str
    why: str
    count: int
    bytes: int
    kept: int | None = None
    young: int = 0
    examples: list[str] = []


class Collected(Struct, frozen=True):
    """What gc did, or would do.

    Attributes:
        freed: Bytes of blobs, chunks and copies.
    """

    dry_run: bool
    lines: list[Line]
    freed: int


def collect(
    keep: Keep, progress: Progress, *, dry_run: bool = False, older_than: float = OLDER, grace: float = GRACE
) -> Collected:
    """Remove what nothing refers to.

    Args:
        dry_run: Change nothing; say what would go.
        older_than: Seconds since a run, logged model or experiment was deleted, or a search last went on.
        grace: Seconds since a blob was put; shorter than uploads take only while nobody writes.

    Raises:
        Damaged: A listing cannot be read; then nothing that it may need is removed.
        Unavailable: The database or the store is away.
    """
    # The composition root always opens the chunked store; only that one can list what it holds.
    blobs = cast("Blobs", keep.blobs)
    now = keep.clock.now()
    condemned = Condemned(round((now - older_than) * 1000))
    before = time.time() - grace  # the age of files is by the machine's clock
    with keep.db.read() as conn:
        tallies = condemned.tallies(conn)
        left = studies.abandoned(conn, now - older_than)
    if not dry_run:
        blobs.below.settle()
        _delete_rows(keep, condemned, sum(tally.count for tally in tallies.values()), progress)
        keep.db.write(lambda conn: studies.forget_abandoned(conn, now - older_than))
    with Marks() as marks:
        progress.step("marking", 0)
        with keep.db.read() as conn:
            gc_references.mark(conn, blobs, condemned if dry_run else None, marks)
        said = partial(progress.step, "blobs")
        swept = sweep_blobs(blobs, marks, before, dry_run=dry_run, step=said)
        said = partial(progress.step, "chunks")
        chunks = sweep_chunks(blobs, marks, before, dry_run=dry_run, step=said)
    copies = _copies(keep, before, dry_run=dry_run)
    lines = [
        *(_of_rows(kind, tally) for kind, tally in tallies.items()),
        Line("searches", "nobody went on with it for long enough", left.count, left.bytes, examples=left.examples),
        _of_objects(
            "blobs", "no run, logged model, version, snapshot, stage, capture, trace or event needs it", swept
        ),
        _of_objects("chunks", "no blob needs it", chunks),
        _of_objects("package copies", "no endpoint serves it; it is fetched again when one does", copies),
    ]
    found = Collected(dry_run, lines, swept.bytes + chunks.bytes + copies.bytes)
    if not dry_run and any(line.count for line in lines):
        said_what = {line.kind: line.count for line in lines} | {"bytes": found.freed}
        keep.db.write(lambda conn: events.append(conn, "gc.collected", "store", said_what, now=now))
    return found


def _delete_rows(keep: Keep, condemned: Condemned, total: int, progress: Progress) -> None:
    done = 0
    while gone := keep.db.write(lambda conn: condemned.delete_some(conn, keep.clock.now())):
        done += gone
        progress.step("rows", done, max(total, done))


def _copies(keep: Keep, before: float, *, dry_run: bool) -> Swept:
    """Local copies of packages that no route names."""
    with keep.db.read() as conn:
        served = {route.package for wanted in endpoints.wanted(conn) for route in wanted.routes}
    found = Swept(examples=[])
    folder = keep.home / "packages"
    for copy in sorted(folder.iterdir()) if folder.is_dir() else ():
        if copy.name in served:
            found.kept += 1
        elif copy.stat().st_mtime >= before:
            found.young += 1
        else:
            found.count += 1
            found.bytes += _size(copy)
            found.examples = [*found.examples, copy.name][:20]
            if not dry_run:
                shutil.rmtree(copy, ignore_errors=True)
    return found


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _of_rows(kind: str, tally: Tally) -> Line:
    return Line(kind, "deleted long enough ago", tally.count, tally.bytes, examples=tally.examples)


def _of_objects(kind: str, why: str, swept: Swept) -> Line:
    return Line(kind, why, swept.count, swept.bytes, swept.kept, swept.young, swept.examples)
