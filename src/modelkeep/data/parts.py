"""Parts of a snapshot: Parquet, kept by content. Equal rows make equal bytes, so they make equal digests."""

from __future__ import annotations

import base64
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Struct

from modelkeep.core.ports import BlobStore
from modelkeep.data import external
from modelkeep.data.changes import numbered
from modelkeep.data.external import External
from modelkeep.data.types import conform, unify, wider
from modelkeep.stats import profile
from modelkeep.stats.profile import Profile

GROUP_ROWS = 131_072
"""Rows of a Parquet row group at most: what is decoded at once."""

PART_BYTES = 256 << 20
"""Bytes of rows in memory from which a partition's next piece begins another part."""

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
        bucket_rows: Buckets with rows here, and how many.
        external: Where the rows are when they are not kept here; ``digest`` then is of a blob that says so.
    """

    name: str
    digest: str
    rows: int
    bytes: int
    profile: str
    schema: str
    buckets: tuple[int, ...] = ()
    bucket_rows: tuple[tuple[int, int], ...] = ()
    external: External | None = None

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
    bucket_rows: tuple[tuple[int, int], ...] = ()

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
            bucket_rows=self.bucket_rows,
        )


class _Widened(Exception):
    """A later piece needs wider types than the first."""


def drafts(name: str, pieces: Callable[[], Pieces]) -> list[Draft]:
    """Write a partition's rows to temporary files and profile them, piece by piece; to several when they are many.

    Args:
        name: For errors.
        pieces: Gives the rows; called a second time when types widen on the way.

    Raises:
        Invalid: Types of two pieces do not go together.
    """
    try:
        return list(_write(pieces(), None))
    except _Widened:
        return list(_write(pieces(), _widest(name, pieces)))


def keep(blobs: BlobStore, name: str, pieces: Callable[[], Pieces]) -> list[Part]:
    """The same, kept as they are made: one temporary file at a time. Raises ``Unavailable`` too."""
    try:
        return [made.keep(blobs, numbered(name, count)) for count, made in enumerate(_write(pieces(), None))]
    except _Widened:
        made_anew = enumerate(_write(pieces(), _widest(name, pieces)))
        return [made.keep(blobs, numbered(name, count)) for count, made in made_anew]


def pin(blobs: BlobStore, name: str, where: External, pieces: Iterable[pa.Table]) -> Part:
    """A part that stays where it is: profiled, not copied.

    Args:
        pieces: Its rows, with one schema.

    Raises:
        Unavailable: It cannot be read, or the disk is full.
    """
    profiled, rows, schema = Profile(), 0, None
    for table in pieces:
        profiled = profile.merge(profiled, profile.partial(table))
        rows, schema = rows + table.num_rows, table.schema
    assert schema is not None, "sources give at least one row"
    return Part(
        name=name,
        digest=blobs.put(msgspec.json.encode(where)),
        rows=rows,
        bytes=where.bytes,
        profile=blobs.put(profiled.to_bytes()),
        schema=base64.b64encode(schema.serialize()).decode(),
        external=where,
    )


def _widest(name: str, pieces: Callable[[], Pieces]) -> pa.Schema:
    return unify([(f"piece {number} of {name}", piece[0].schema) for number, piece in enumerate(pieces(), 1)])


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
    if part.external is not None:
        return external.read(part.external, columns, groups)
    present = set(part.columns.names)
    chosen = None if columns is None else [name for name in columns if name in present]
    with opened(blobs, part, whole=columns is None and groups is None) as parquet:
        return parquet.read(chosen) if groups is None else parquet.read_row_groups(groups, chosen)


@contextmanager
def opened(blobs: BlobStore, part: Part, *, whole: bool = False) -> Iterator[pq.ParquetFile]:
    """A part's Parquet file; ``whole`` when all of it will be read. Raises ``Damaged``."""
    if part.external is not None:
        with external.opened(part.external) as parquet:
            yield parquet
        return
    with blobs.open(part.digest) as stream:
        source = pa.BufferReader(stream.read()) if whole and part.bytes <= _WHOLE else stream
        with pq.ParquetFile(source) as parquet:
            yield parquet


def group_rows(schema: pa.Schema) -> int:
    """Rows of a row group: fewer in wide tables, so that a group of any table fits in some 64 MB."""
    wide = sum(8 if pa.types.is_primitive(field.type) else 24 for field in schema)
    return max(1024, min(GROUP_ROWS, (64 << 20) // max(wide, 1)))


def _write(pieces: Pieces, schema: pa.Schema | None) -> Iterator[Draft]:
    with ThreadPoolExecutor(1) as beside:
        current: _Writing | None = None
        try:
            for piece in pieces:
                if current is not None and current.size >= PART_BYTES:
                    yield current.finished()
                    current = None
                for bucket, table in enumerate(piece):
                    if not table.num_rows and len(piece) > 1:
                        continue
                    schema = schema or table.schema
                    _must_hold(schema, table.schema)
                    current = current or _Writing(schema, beside)
                    current.add(table, bucket if len(piece) > 1 else None)
            assert current is not None, "sources give at least one row"
            made, current = current.finished(), None
            yield made
        finally:
            if current is not None:
                current.drop()


class _Writing:
    """A part being written; its profile is made beside."""

    def __init__(self, schema: pa.Schema, beside: ThreadPoolExecutor) -> None:
        self.size = 0
        self._schema, self._beside = schema, beside
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115 - closed by Draft.keep
        self._writer = _writer(self._file, schema)
        self._rows, self._buckets = 0, list[int]()
        self._in_bucket: Counter[int] = Counter()
        self._profile = Profile()
        self._pending: Future[Profile] | None = None

    def add(self, table: pa.Table, bucket: int | None) -> None:
        self._settle()
        self._pending = self._beside.submit(profile.partial, table)
        size = group_rows(self._schema)
        # One chunk per column: page breaks must depend on the rows alone.
        self._writer.write_table(conform(table, self._schema).combine_chunks(), row_group_size=size)
        self._rows += table.num_rows
        self.size += table.nbytes
        if bucket is not None:
            self._buckets += [bucket] * -(-table.num_rows // size)
            self._in_bucket[bucket] += table.num_rows

    def finished(self) -> Draft:
        self._writer.close()
        self._settle()
        buckets, counts = tuple(self._buckets), tuple(sorted(self._in_bucket.items()))
        size = self._file.tell()
        return Draft(self._file, self._rows, size, self._schema, buckets, self._profile, counts)

    def drop(self) -> None:
        self._writer.close()
        self._file.close()

    def _settle(self) -> None:
        if self._pending is not None:
            self._profile = profile.merge(self._profile, self._pending.result())
            self._pending = None


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
