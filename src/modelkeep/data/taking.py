"""Reading a source's partitions into parts, here or on an engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa

from modelkeep.core.errors import Invalid
from modelkeep.core.ports import BlobStore, Engine, Progress
from modelkeep.data import parts as parts_of
from modelkeep.data.buckets import Buckets
from modelkeep.data.lakes import LakeSource
from modelkeep.data.parts import Draft, Part
from modelkeep.data.sources import TableSource, open_source
from modelkeep.data.types import conform, unify
from modelkeep.spec.declaration import Data

LOOKED_AT = 8
"""Partitions whose first rows tell how a range is cut evenly."""

MUCH = 256 << 20
"""Bytes of files from which an engine reads them."""


def cut(read: Callable[[], Iterator[pa.Table]], buckets: Buckets | None) -> Callable[[], parts_of.Pieces]:
    """Gives the rows piece by piece, each cut into buckets where there are any."""
    if buckets is None:
        return lambda: ([piece] for piece in read())
    return lambda: (buckets.cut(piece) for piece in read())


@dataclass(frozen=True)
class Reading:
    """How partitions become parts. Can be pickled.

    Attributes:
        blobs: Where parts are kept.
        data: Names the source.
        base: The declaration's folder.
        buckets: How rows are partitioned by columns.
    """

    blobs: BlobStore
    data: Data
    base: Path
    buckets: Buckets | None

    def partitions(
        self,
        source: TableSource,
        fresh: Sequence[str],
        progress: Progress,
        engine: Callable[[], Engine] | None,
    ) -> dict[str, Sequence[Part | Draft]]:
        """The parts of partitions of the source: kept when an engine reads them, else drafts."""
        made: dict[str, Sequence[Part | Draft]] = {}
        if isinstance(source, LakeSource) and self.buckets is not None:
            raise Invalid("a table that is pinned where it lies cannot be partitioned anew", path="data.partition")
        if engine is not None:
            for done, (partition, parts) in enumerate(zip(fresh, engine().map(self.keep, fresh), strict=True)):
                made[partition] = parts
                progress.step("snapshot", done + 1, len(fresh), partition)
            return made
        for done, partition in enumerate(fresh):
            progress.step("snapshot", done, len(fresh), partition)
            if isinstance(source, LakeSource):
                made[partition] = [self._pinned(source, partition)]
                continue
            made[partition] = parts_of.drafts(partition, cut(partial(source.pieces, partition), self.buckets))
        progress.step("snapshot", len(fresh), len(fresh))
        return made

    def keep(self, partition: str) -> list[Part]:
        """Read a partition and keep its parts, wherever an engine works."""
        source = open_source(self.data, self.base)
        if isinstance(source, LakeSource):
            return [self._pinned(source, partition)]
        return parts_of.keep(self.blobs, partition, cut(partial(source.pieces, partition), self.buckets))

    def _pinned(self, source: LakeSource, partition: str) -> Part:
        return parts_of.pin(self.blobs, partition, source.files[partition], source.pieces(partition))


def looked_at(source: TableSource, partitions: Sequence[str]) -> pa.Table:
    """The first rows of some partitions, evenly chosen among all."""
    every = -(-len(partitions) // LOOKED_AT)
    found = [next(source.pieces(partition)) for partition in partitions[::every]]
    schema = unify([(name, table.schema) for name, table in zip(partitions[::every], found, strict=True)])
    return pa.concat_tables([conform(table, schema) for table in found])


def much(fresh: Sequence[str], prints: Mapping[str, str]) -> bool:
    """Whether reading these partitions is work for an engine: many functions' parts, or large files."""
    sizes = [prints[partition].partition("-")[0] for partition in fresh]
    if not all(size.isdigit() for size in sizes):
        return len(fresh) > 1
    return len(fresh) > 1 and sum(map(int, sizes)) >= MUCH
