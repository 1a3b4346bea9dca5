"""Pieces of a snapshot: rows that fit in memory several times over, read wherever an engine works."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from modelkeep.core import memory
from modelkeep.core.ports import BlobStore
from modelkeep.data import parts as parts_of
from modelkeep.data.parts import Part
from modelkeep.data.snapshots import Snapshot
from modelkeep.data.types import conform

COPIES = 3
"""How often a table is in memory while it is prepared and trained on, roughly."""

LEAST, MOST = 4 << 20, 128 << 20
"""Bytes of a piece."""

_SHARE = 12  # a worker's share of the budget over its piece: columns, masks, what is read and what is written


@dataclass(frozen=True)
class Span:
    """Row groups of a part; None for all."""

    part: Part
    groups: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Piece:
    """Neighbouring rows of a snapshot. Called with columns (None for all), it reads them."""

    blobs: BlobStore
    spans: tuple[Span, ...]
    schema: pa.Schema

    def __call__(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows. Raises ``Damaged``, ``Unavailable``."""
        wanted = self.schema if columns is None else pa.schema([self.schema.field(name) for name in columns])
        found = (parts_of.read(self.blobs, span.part, columns, span.groups) for span in self.spans)
        return pa.concat_tables([conform(table, wanted) for table in found])


def row_bytes(blobs: BlobStore, snapshot: Snapshot) -> float:
    """Bytes a row takes in memory, by the first row group."""
    with parts_of.opened(blobs, snapshot.parts[0], whole=snapshot.parts[0].bytes < LEAST) as parquet:
        first = parquet.read_row_group(0)
    return float(first.nbytes / max(first.num_rows, 1))


def fits(snapshot: Snapshot, each: float) -> bool:
    """Whether the table may be worked on in memory, within the budget.

    Args:
        each: Bytes of a row.
    """
    return snapshot.rows * each * COPIES <= memory.budget()


def cut(
    blobs: BlobStore, snapshot: Snapshot, each: float, workers: int, *, bucket: int | None = None
) -> list[Piece]:
    """The snapshot in pieces of equal size, as far as its row groups allow, in order.

    Args:
        each: Bytes of a row.
        workers: How many work at once on this machine; together they stay within the budget.
        bucket: Only the rows of this bucket, of a snapshot that is partitioned by columns.
    """
    size = min(max(memory.budget() // (workers * _SHARE), LEAST), MOST)
    most = max(int(size / max(each, 1.0)), 1)
    made: list[Piece] = []
    spans: list[Span] = []
    rows = 0

    def close() -> None:
        nonlocal rows
        if spans:
            made.append(Piece(blobs, tuple(spans), snapshot.schema))
        spans.clear()
        rows = 0

    for part in snapshot.parts:
        if rows and rows + part.rows > most:
            close()
        if part.rows <= most and bucket is None:
            spans.append(Span(part))
            rows += part.rows
            continue
        for groups in _grouped(blobs, part, most, bucket):
            spans.append(Span(part, groups))
            close()
    close()
    return made


def _grouped(blobs: BlobStore, part: Part, most: int, bucket: int | None) -> list[tuple[int, ...]]:
    """Neighbouring row groups of at most so many rows together, or single ones."""
    with parts_of.opened(blobs, part) as parquet:
        sizes = [parquet.metadata.row_group(index).num_rows for index in range(parquet.metadata.num_row_groups)]
    made: list[list[int]] = [[]]
    rows = 0
    for index, size in enumerate(sizes):
        if bucket is not None and part.buckets[index] != bucket:
            continue
        if made[-1] and rows + size > most:
            made.append([])
            rows = 0
        made[-1].append(index)
        rows += size
    return [tuple(groups) for groups in made if groups]
