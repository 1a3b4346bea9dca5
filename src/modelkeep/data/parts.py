"""Parts of a snapshot: Parquet, kept by content. Equal rows make equal bytes, so they make equal digests."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Struct

from modelkeep.core.ports import BlobStore
from modelkeep.data.types import conform, unify, wider
from modelkeep.stats import profile
from modelkeep.stats.profile import Profile

GROUP_ROWS = 131_072
"""Rows of a Parquet row group at most: what is decoded at once."""

_IN_MEMORY = 8 << 20
_WHOLE = 64 << 20  # bytes of a part up to which all of it is fetched at once

Pieces = Iterable[Sequence[pa.Table]]
"""The rows of a part in order; each item is one piece, cut into a table per bucket (one without partitioning)."""


class Part(Struct, frozen=True, kw_only=True):
    """One part of a snapshot.

    Attributes:
        name: The partition of the source it was made from.
        digest: Of the Parquet blob.
        rows: In it.
        bytes: Of the Parquet blob.
        profile: Digest of the blob with its profile.
        schema: Arrow IPC schema in base64.
        buckets: The bucket of each row group, when the snapshot is partitioned by columns.
    """

    name: str
    digest: str
    rows: int
    bytes: int
    profile: str
    schema: str
    buckets: tuple[int, ...] = ()

    @property
    def columns(self) -> pa.Schema:
        """Column names and types."""
        return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(self.schema)))


@dataclass(frozen=True)
class Draft:
    """A part written to a temporary file, not yet kept."""

    file: IO[bytes]
    rows: int
    bytes: int
    schema: pa.Schema
    buckets: tuple[int, ...]
    profile: Profile

    def keep(self, blobs: BlobStore, name: str) -> Part:
        """Keep it, and its profile, under a partition's name. Raises ``Unavailable``."""
        self.file.seek(0)
        with self.file as file:
            digest = blobs.put(file)  # type: ignore[arg-type]
        return Part(
            name=name,
            digest=digest,
            rows=self.rows,
            bytes=self.bytes,
            profile=blobs.put(self.profile.to_bytes()),
            schema=base64.b64encode(self.schema.serialize()).decode(),
            buckets=self.buckets,
        )


class _Widened(Exception):
    """A later piece needs wider types than the first."""


def draft(name: str, pieces: Callable[[], Pieces]) -> Draft:
    """Write a part to a temporary file and profile it, piece by piece.

    Args:
        name: For errors.
        pieces: Gives the rows; called a second time when types widen on the way.

    Raises:
        Invalid: Types of two pieces do not go together.
    """
    try:
        return _write(pieces(), None)
    except _Widened:
        found = [(f"piece {number} of {name}", piece[0].schema) for number, piece in enumerate(pieces(), 1)]
        return _write(pieces(), unify(found))


def read(
    blobs: BlobStore, part: Part, columns: Sequence[str] | None = None, groups: Sequence[int] | None = None
) -> pa.Table:
    """The rows of a part.

    Args:
        columns: Only these; None for all.
        groups: Only these row groups; None for all.

    Raises:
        Damaged: The stored bytes are not what was kept.
    """
    present = set(part.columns.names)
    chosen = None if columns is None else [name for name in columns if name in present]
    with opened(blobs, part, whole=columns is None and groups is None) as parquet:
        return parquet.read(chosen) if groups is None else parquet.read_row_groups(groups, chosen)


@contextmanager
def opened(blobs: BlobStore, part: Part, *, whole: bool = False) -> Iterator[pq.ParquetFile]:
    """A part's Parquet file; ``whole`` when all of it will be read. Raises ``Damaged``."""
    with blobs.open(part.digest) as stream:
        source = pa.BufferReader(stream.read()) if whole and part.bytes <= _WHOLE else stream
        with pq.ParquetFile(source) as parquet:
            yield parquet


def group_rows(schema: pa.Schema) -> int:
    """Rows of a row group: fewer in wide tables, so that a group of any table fits in some 64 MB."""
    wide = sum(8 if pa.types.is_primitive(field.type) else 24 for field in schema)
    return max(1024, min(GROUP_ROWS, (64 << 20) // max(wide, 1)))


def _write(pieces: Pieces, schema: pa.Schema | None) -> Draft:
    file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115 - closed by Draft.keep
    rows, buckets = 0, list[int]()
    profiled = Profile()
    pending: Future[Profile] | None = None
    writer: pq.ParquetWriter | None = None
    try:
        with ThreadPoolExecutor(1) as beside:
            for piece in pieces:
                for bucket, table in enumerate(piece):
                    if not table.num_rows and len(piece) > 1:
                        continue
                    if schema is None:
                        schema = table.schema
                    writer = writer or _writer(file, schema)
                    _must_hold(schema, table.schema)
                    if pending is not None:
                        profiled = profile.merge(profiled, pending.result())
                    pending = beside.submit(profile.partial, table)
                    # One chunk per column: page breaks must depend on the rows alone.
                    size = group_rows(schema)
                    writer.write_table(conform(table, schema).combine_chunks(), row_group_size=size)
                    rows += table.num_rows
                    buckets += [bucket] * (-(-table.num_rows // size) if len(piece) > 1 else 0)
            assert writer is not None and schema is not None, "sources give at least one row"
            writer.close()
            if pending is not None:
                profiled = profile.merge(profiled, pending.result())
    except BaseException:
        if writer is not None:
            writer.close()
        file.close()
        raise
    return Draft(file, rows, file.tell(), schema, tuple(buckets), profiled)


def _must_hold(schema: pa.Schema, other: pa.Schema) -> None:
    for field in other:
        index = schema.get_field_index(field.name)
        if index < 0 or wider(schema.field(index).type, field.type) != schema.field(index).type:
            raise _Widened


def _writer(file: IO[bytes], schema: pa.Schema) -> pq.ParquetWriter:
    # Content-defined pages: rows inserted in the middle change few chunks of the blob store.
    return pq.ParquetWriter(
        file, schema, compression="zstd", compression_level=1, use_content_defined_chunking=True, version="2.6"
    )


def each(
    blobs: BlobStore, parts: Iterable[Part], schema: pa.Schema, columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """The rows of parts, one table each, under one schema."""
    wanted = schema if columns is None else pa.schema([schema.field(name) for name in columns])
    for part in parts:
        yield conform(read(blobs, part, columns), wanted)
