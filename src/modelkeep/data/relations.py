"""Relational work over all rows of a table: first of equal rows, forward fills, joins, quantiles.

Written once, as Narwhals expressions over whatever a ``Frames`` gives: DuckDB here, which spills to the disk; an
engine may bring its own (Spark does). Frames hold narrow tables, such as hashes with the place of their rows.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import duckdb
import narwhals as nw
import pyarrow as pa

from modelkeep.core import memory, scratch
from modelkeep.core.errors import Unavailable
from modelkeep.core.ports import Engine
from modelkeep.data.hashing import without_zones
from modelkeep.spec.filters import quote_identifier as quote

LazyFrame = nw.LazyFrame[Any]


class Frames(Protocol):
    """Where relational work is done. Promises: a table may be larger than memory."""

    def table(self, pieces: Iterable[pa.Table]) -> LazyFrame:
        """The rows of all pieces, which have one schema. At least one piece."""
        ...

    def collect(self, frame: LazyFrame) -> pa.Table:
        """The rows of a result that fits in memory."""
        ...

    def close(self) -> None:
        """Forget the tables."""
        ...

    def __enter__(self) -> Frames: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@runtime_checkable
class Relational(Protocol):
    """An engine that does relational work itself."""

    def frames(self) -> Frames:
        """A place for it."""
        ...


def frames_of(engine: Engine) -> Frames:
    """Where relational work is done beside this engine."""
    return engine.frames() if isinstance(engine, Relational) else DuckFrames()


class DuckFrames:
    """DuckDB on a temporary database of this machine, in bounded memory.

    Args:
        limit: Bytes it may hold before it spills; a share of the budget unless given.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._folder = scratch.folder("frames")
        held = limit or max(memory.budget() // 4, 64 << 20)
        config: dict[str, Any] = {
            "python_enable_replacements": "false",
            "autoload_known_extensions": "false",
            "memory_limit": f"{held // (1 << 20)}MiB",
            "temp_directory": str(self._folder / "spilled"),
            "preserve_insertion_order": "false",
        }
        self._db = duckdb.connect(str(self._folder / "tables.duckdb"), config=config)
        self._count = 0

    def table(self, pieces: Iterable[pa.Table]) -> LazyFrame:
        name = f"t{self._count}"
        self._count += 1
        made = False
        for piece in pieces:
            self._db.register("piece", without_zones(piece))
            self._run(f"INSERT INTO {name} FROM piece" if made else f"CREATE TABLE {name} AS FROM piece")
            self._db.unregister("piece")
            made = True
        frame: LazyFrame = nw.from_native(self._db.table(name))
        return frame

    def collect(self, frame: LazyFrame) -> pa.Table:
        return self._run(frame)

    def close(self) -> None:
        self._db.close()
        scratch.discard(self._folder)

    def __enter__(self) -> DuckFrames:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, work: str | LazyFrame) -> Any:
        try:
            return self._db.execute(work) if isinstance(work, str) else nw.to_native(work).to_arrow_table()
        except (duckdb.IOException, duckdb.OutOfMemoryException) as error:
            said = str(error).splitlines()[0]
            raise Unavailable(
                f"relational work ran out of room: {said}",
                hint="free space in the folder for temporary files (TMPDIR), or raise MODELKEEP_MEMORY",
            ) from error


def repeated(frame: LazyFrame, by: Sequence[str], order: str) -> LazyFrame:
    """The ``order`` of rows that equal one of smaller order in these columns, missing values being equal."""
    firsts = frame.group_by(*by).agg(nw.col(order).min())
    return frame.select(order).join(firsts.select(order), on=order, how="anti")


def filled_forward(frame: LazyFrame, column: str, order: Sequence[str]) -> LazyFrame:
    """With the last value before it in order where ``column`` is missing."""
    return frame.with_columns(nw.col(column).fill_null(strategy="forward").over(order_by=list(order)))


def counted(frame: LazyFrame, column: str) -> LazyFrame:
    """How often each value of a column occurs, ``n``; missing values are left out."""
    return frame.filter(~nw.col(column).is_null()).group_by(column).agg(nw.len().alias("n"))


def quantiles(frames: Frames, frame: LazyFrame, column: str, shares: Sequence[float]) -> list[float | None]:
    """Exact quantiles by linear interpolation, as NumPy's default; None of no rows.

    Only the values at the two ranks around each quantile leave the engine.
    """
    counts = counted(frame, column).with_columns(nw.col("n").cast(nw.Int64))
    ends = counts.with_columns(nw.col("n").cum_sum().over(order_by=column).alias("upto"))
    total = frames.collect(counts.select(nw.col("n").sum())).column(0)[0].as_py()
    total = int(total or 0)  # DuckDB's sums are wide integers
    if not total:
        return [None] * len(shares)
    places = [(total - 1) * share for share in shares]
    ranks = sorted({rank for place in places for rank in (int(place), min(int(place) + 1, total - 1))})
    holds = [(nw.col("upto") > rank) & (nw.col("upto") - nw.col("n") <= rank) for rank in ranks]
    rows = frames.collect(ends.filter(functools.reduce(lambda a, b: a | b, holds)).select(column, "n", "upto"))
    found = sorted((int(row["upto"] - row["n"]), int(row["upto"]), float(row[column])) for row in rows.to_pylist())
    at = {rank: next(value for start, stop, value in found if start <= rank < stop) for rank in ranks}
    low = [at[int(place)] for place in places]
    high = [at[min(int(place) + 1, total - 1)] for place in places]
    return [a + (b - a) * (place - int(place)) for a, b, place in zip(low, high, places, strict=True)]


def quoted(names: Sequence[str]) -> str:
    """Names as SQL lists them."""
    return ", ".join(quote(name) for name in names)
