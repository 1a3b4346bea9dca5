"""Tables as blobs, in one part or in many: what a stage hands to the next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from msgspec import Struct

from modelkeep.core.errors import Damaged
from modelkeep.core.ports import BlobStore
from modelkeep.data.prepare import together
from modelkeep.data.streams import LOOK

BATCH = 65_536
"""Rows handed out at once when a part is read as a stream."""


class TablePart(Struct, frozen=True):
    """Some rows of a table.

    Attributes:
        digest: Of a Parquet blob.
        rows: In it.
        bytes: They take in memory.
    """

    digest: str
    rows: int
    bytes: int


class _Listing(Struct, frozen=True):
    parts: tuple[TablePart, ...]


@dataclass(frozen=True)
class BlobParts:
    """Keeps parts as blobs (``data.prepare.Keeper``). Equal tables have equal digests."""

    blobs: BlobStore

    def keep(self, table: pa.Table) -> TablePart:
        """Keep rows."""
        sink = pa.BufferOutputStream()
        pq.write_table(
            table,
            sink,
            compression="zstd",
            compression_level=1,
            write_statistics=False,
            use_dictionary=[name for name in table.column_names if _repeats(table.column(name))],
        )
        return TablePart(self.blobs.put(sink.getvalue().to_pybytes()), table.num_rows, table.nbytes)

    def read(self, kept: TablePart, columns: Sequence[str] | None) -> pa.Table:
        """The rows, or some columns of them."""
        with self.blobs.open(kept.digest) as stream:
            return pq.read_table(pa.BufferReader(stream.read()), columns=columns and list(columns))


def _repeats(column: pa.ChunkedArray) -> bool:
    """Whether a dictionary of a column's values pays: keys and times are larger and slower with one."""
    first = column.slice(0, LOOK)
    countable = pa.types.is_string(column.type) or pa.types.is_primitive(column.type)
    return not countable or bool(4 * pc.count_distinct(first).as_py() <= len(first))


@dataclass(frozen=True)
class PartRows:
    """The rows of a part as a stream of tables; can be pickled, and called more than once."""

    blobs: BlobStore
    part: TablePart
    columns: tuple[str, ...] | None = None

    def __call__(self) -> Iterator[pa.Table]:
        """Tables of at most ``BATCH`` rows, in order."""
        with (
            self.blobs.open(self.part.digest) as stream,
            pq.ParquetFile(pa.BufferReader(stream.read())) as parquet,
        ):
            columns = None if self.columns is None else list(self.columns)
            for batch in parquet.iter_batches(BATCH, columns=columns):
                yield pa.Table.from_batches([batch])


def keep_table(blobs: BlobStore, table: pa.Table) -> str:
    """Keep a table as one Parquet blob and return its digest. Equal tables have equal digests."""
    return BlobParts(blobs).keep(table).digest


def keep_parts(blobs: BlobStore, parts: Sequence[TablePart]) -> str:
    """Name a table in parts: by its only part, or by the digest of a blob that lists them."""
    full = [part for part in parts if part.rows] or list(parts[:1])
    return full[0].digest if len(full) == 1 else blobs.put(msgspec.json.encode(_Listing(tuple(full))))


def parts_of(blobs: BlobStore, digest: str) -> list[TablePart]:
    """The parts of a table kept by ``keep_table`` or ``keep_parts``, in order. Raises ``Damaged``."""
    with blobs.open(digest) as stream:
        head = stream.read(1)
        if head == b"{":
            try:
                return list(msgspec.json.decode(head + stream.read(), type=_Listing).parts)
            except msgspec.MsgspecError as error:
                raise Damaged(f"{digest} is no listing of a table's parts: {error}") from error
        stream.seek(0)
        with pq.ParquetFile(stream) as parquet:
            about = parquet.metadata
            size = sum(about.row_group(index).total_byte_size for index in range(about.num_row_groups))
            return [TablePart(digest, about.num_rows, size)]


def open_table(blobs: BlobStore, digest: str) -> pa.Table:
    """Read back all rows of what was kept. Raises ``Damaged``."""
    keeper = BlobParts(blobs)
    return together([keeper.read(part, None) for part in parts_of(blobs, digest)])


def sampled(blobs: BlobStore, parts: Sequence[TablePart], most: int) -> pa.Table:
    """At most so many rows, evenly taken: every k-th of the table, or all of a smaller one."""
    rows = sum(part.rows for part in parts)
    every = max(1, -(-rows // most))
    made, seen = [], 0
    for part in parts:
        table = BlobParts(blobs).read(part, None)
        first = -seen % every
        made.append(table if every == 1 else table.take(pa.array(range(first, table.num_rows, every), pa.int64())))
        seen += part.rows
    return pa.concat_tables(made)
