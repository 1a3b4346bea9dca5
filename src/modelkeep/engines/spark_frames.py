"""Relational work on Spark: the same expressions as on DuckDB, over tables that its executors hold."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from types import TracebackType
from typing import Any

import narwhals as nw
import pyarrow as pa
import pyarrow.parquet as pq

from modelkeep.core import scratch
from modelkeep.core.errors import Unavailable
from modelkeep.data.hashing import without_zones
from modelkeep.data.relations import LazyFrame

SCRATCH = "MODELKEEP_SCRATCH"
"""A folder that the driver and all executors see, for tables on their way to Spark."""


class SparkFrames:
    """A Spark session as a place for relational work (``data.relations.Frames``).

    Tables reach the executors as Parquet files in the folder ``MODELKEEP_SCRATCH``, or on a Spark of this machine
    in a temporary one. A cluster without such a folder gets them through the driver, which then holds them.

    Args:
        session: A ``SparkSession``; left as it is.
    """

    def __init__(self, session: Any) -> None:
        self._session = session
        shared = os.environ.get(SCRATCH) or None
        near = shared is not None or session.sparkContext.master.startswith("local")
        self._folder = scratch.folder("frames", shared) if near else None
        self._count = 0

    def table(self, pieces: Iterable[pa.Table]) -> LazyFrame:
        if self._folder is None:
            parts = [self._session.createDataFrame(without_zones(piece)) for piece in pieces]
            found = functools.reduce(lambda a, b: a.unionByName(b), parts)
        else:
            place = self._folder / f"t{self._count}"
            place.mkdir()
            self._count += 1
            for number, piece in enumerate(pieces):
                pq.write_table(without_zones(piece), place / f"{number:06}.parquet", compression="zstd")
            found = self._session.read.parquet(str(place))
        frame: LazyFrame = nw.from_native(found)
        return frame

    def collect(self, frame: LazyFrame) -> pa.Table:
        try:
            return nw.to_native(frame).toArrow()
        except Exception as error:
            lines = str(error).strip().splitlines()
            raise Unavailable(f"relational work failed on Spark: {lines[0] if lines else error!r}") from error

    def close(self) -> None:
        if self._folder is not None:
            scratch.discard(self._folder)

    def __enter__(self) -> SparkFrames:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
