"""Reading a source's partitions into parts, here or on an engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from modelkeep.core.errors import Invalid
from modelkeep.core.ports import BlobStore, Engine, Progress
from modelkeep.data import external, sharing
from modelkeep.data import parts as parts_of
from modelkeep.data.buckets import Buckets
from modelkeep.data.external import External
from modelkeep.data.lakes import LakeSource
from modelkeep.data.parts import Draft, Part
from modelkeep.data.sharing import Known
from modelkeep.data.sources import LocalFiles, TableSource, open_source
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


class Task(NamedTuple):
    """A partition to be read at a worker.

    Attributes:
        known: Its file, when it is one of the machine that asks and workers may be on others.
        pinned: Its file of a lake's table, found once: who opens the table anew may see a later version.
    """

    partition: str
    known: Known | None
    pinned: External | None


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
            works = engine()
            tasks = self._tasks(source, fresh, sharing.elsewhere(works))
            if (known := tasks[0].known) is not None:
                sharing.ask(works, known)
            for done, (partition, parts) in enumerate(zip(fresh, works.map(self.keep, tasks), strict=True)):
                made[partition] = parts
                progress.step("snapshot", done + 1, len(fresh), partition)
            return made
        for done, partition in enumerate(fresh):
            progress.step("snapshot", done, len(fresh), partition)
            if isinstance(source, LakeSource):
                made[partition] = [self._pinned(source.files[partition], partition)]
                continue
            made[partition] = parts_of.drafts(partition, cut(partial(source.pieces, partition), self.buckets))
        progress.step("snapshot", len(fresh), len(fresh))
        return made

    def keep(self, task: Task) -> list[Part]:
        """Read a partition and keep its parts, wherever an engine works.

        Raises ``Refused`` when it lies in a file that is not seen there.
        """
        partition, known, pinned = task
        if known is not None:
            known.must_be_seen()
        if pinned is not None:
            return [self._pinned(pinned, partition)]
        source = open_source(self.data, self.base)
        return parts_of.keep(self.blobs, partition, cut(partial(source.pieces, partition), self.buckets))

    def _tasks(self, source: TableSource, fresh: Sequence[str], elsewhere: bool) -> list[Task]:
        tasks = []
        for partition in fresh:
            pinned = source.files[partition] if isinstance(source, LakeSource) else None
            path = source.path(partition) if isinstance(source, LocalFiles) else None
            if pinned is not None and "://" not in pinned.location:
                path = Path(pinned.location)
            known = Known.of("data.source", path) if elsewhere and path is not None else None
            tasks.append(Task(partition, known, pinned))
        return tasks

    def _pinned(self, file: External, partition: str) -> Part:
        return parts_of.pin(self.blobs, partition, file, external.pieces(file))


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
