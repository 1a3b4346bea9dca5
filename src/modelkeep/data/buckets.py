"""Partitioning by columns: which bucket a row belongs to, by hash or by range."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct

from modelkeep.core.errors import Invalid
from modelkeep.data.columns import unknown_column
from modelkeep.data.hashing import row_hashes
from modelkeep.spec.declaration import Partition


class Buckets(Struct, frozen=True, kw_only=True):
    """A partitioning.

    Attributes:
        by: ``hash`` or ``range``.
        columns: What is hashed or ordered.
        count: How many buckets.
        bounds: For ``range``: the smallest value of each bucket but the first, of equal shares of the first rows
            seen; they stay, so that parts written later are cut alike.
    """

    by: str
    columns: tuple[str, ...]
    count: int
    bounds: tuple[float | str, ...] = ()

    @staticmethod
    def of(partition: Partition | None) -> Buckets | None:
        """What a declaration asks for. Raises ``Invalid``."""
        if partition is None:
            return None
        if not partition.columns or partition.parts < 1:
            raise Invalid("partitioning needs columns and at least one part", path="data.partition")
        if partition.by == "range" and len(partition.columns) > 1:
            raise Invalid("a range is of one column; name one, or use by: hash", path="data.partition.columns")
        return Buckets(by=partition.by, columns=partition.columns, count=partition.parts)

    def same(self, other: Buckets | None) -> bool:
        """Whether both ask for the same, bounds aside."""
        return other is not None and (self.by, self.columns, self.count) == (other.by, other.columns, other.count)

    def learnt(self, table: pa.Table) -> Buckets:
        """With bounds, if it needs them and has none yet, that divide the rows of ``table`` evenly."""
        for name in self.columns:
            if name not in table.column_names:
                raise unknown_column(name, table.column_names, "data.partition.columns")
        if self.by == "hash" or self.bounds or self.count == 1:
            return self
        column = _ordered(table.column(self.columns[0]).drop_null())
        values = column.take(pc.array_sort_indices(column)).to_pylist()
        if not values:
            raise Invalid(f"{self.columns[0]!r} is empty; there is no range to cut", path="data.partition.columns")
        bounds = [values[len(values) * bucket // self.count] for bucket in range(1, self.count)]
        return msgspec.structs.replace(self, bounds=tuple(bounds))

    def cut(self, table: pa.Table) -> Sequence[pa.Table]:
        """The rows of each bucket, in their order; missing values go to the first bucket of a range."""
        if self.by == "hash":
            which = (row_hashes(table, self.columns, "modelkeep:bucket:") % np.uint64(self.count)).astype(np.int64)
        else:
            column = _ordered(table.column(self.columns[0]))
            values = column.to_numpy(zero_copy_only=False)
            missing = column.is_null().to_numpy(zero_copy_only=False)
            kind = object if pa.types.is_string(column.type) else np.float64
            values = np.where(missing, self.bounds[0] if self.bounds else 0, values).astype(kind)
            which = np.searchsorted(np.array(self.bounds, dtype=kind), values, side="right")
            which[missing] = 0
        order = np.argsort(which, kind="stable")
        edges = np.searchsorted(which[order], np.arange(self.count + 1))
        return [table.take(pa.array(order[start:stop])) for start, stop in pairwise(edges)]


SKEWED = 2.0
"""Times its even share from which a bucket counts as skewed."""


class Skew(Struct, frozen=True, kw_only=True):
    """A bucket with far more rows than its share.

    Attributes:
        bucket: Its number.
        rows: In it.
        share: Of all rows.
        times: Its rows over an even share.
    """

    bucket: int
    rows: int
    share: float
    times: float


def skewed(rows: Mapping[int, int]) -> list[Skew]:
    """The buckets that hold more than twice their even share, the largest first.

    One key cannot be divided among buckets: a key with half of the rows makes one. Nothing is worked on bucket by
    bucket as a whole, though: pieces are cut from row groups, so a skewed bucket is only more pieces.
    """
    total = sum(rows.values())
    even = total / max(len(rows), 1)
    found = [
        Skew(bucket=bucket, rows=count, share=count / total, times=count / even)
        for bucket, count in rows.items()
        if count > SKEWED * even
    ]
    return sorted(found, key=lambda skew: -skew.rows)


def _ordered(column: pa.ChunkedArray) -> pa.Array:
    """Strings as they are; numbers and times (in microseconds) as float64."""
    column = column.combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    if pa.types.is_string(column.type):
        return column
    if pa.types.is_temporal(column.type):
        column = column.cast(pa.timestamp("us", getattr(column.type, "tz", None)), safe=False).cast(pa.int64())
    return column.cast(pa.float64(), safe=False)
