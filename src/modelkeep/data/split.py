"""What is kept for evaluation: by hash of the key, at random, or the latest in time."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from modelkeep.core.errors import Invalid
from modelkeep.data.cleaning import missing
from modelkeep.data.columns import unknown_column
from modelkeep.data.hashing import row_hashes
from modelkeep.data.outliers import numbers
from modelkeep.data.statistics import Values
from modelkeep.data.streams import Held, Stream, fold
from modelkeep.spec.declaration import Split

SALT = "modelkeep:split:1:"
"""Part of every key's hash. Changing it would move rows between training and evaluation: never do."""

Mask = npt.NDArray[np.bool_]
UInts = npt.NDArray[np.uint64]

_BLOCK = 1 << 20


@dataclass(frozen=True)
class Division:
    """Which side a row falls on, whatever piece it is in.

    Attributes:
        split: As declared.
        keys, time: Columns.
        seed: Of a random split.
        bound: Random: hashes of places below it are kept for evaluation. Time: the first moment that is.
        starts: Random: the place of each piece's first row.
    """

    split: Split
    keys: tuple[str, ...]
    time: str
    seed: int
    bound: Any = None
    starts: tuple[int, ...] = ()

    def test_rows(self, table: pa.Table, number: int) -> Mask:
        """Which rows of a piece are kept for evaluation, shape (rows,)."""
        if self.split.by == "key":
            hashes = row_hashes(table, self.keys or table.column_names, SALT)
            by_key: Mask = hashes < np.uint64(self.split.test * 2.0**64)
            return by_key
        if self.split.by == "random":
            start = self.starts[number]
            return np.asarray(_hashes(self.seed, start, start + table.num_rows) < self.bound)
        if not table.num_rows:
            return np.zeros(0, dtype=bool)
        times = _ordered(table.column(self.time))
        late = pc.greater_equal(times, self.bound) if isinstance(self.bound, str) else numbers(times) >= self.bound
        return np.asarray(late)


def division(split: Split, stream: Stream, keys: Sequence[str], time: str, seed: int = 0) -> Division:
    """How the rows of a stream are divided.

    By key a row's side depends on its own key alone, so it never changes when the table grows; the share is met
    on average. Without a key the whole row is hashed. At random exactly the share is kept. By time the latest
    share of rows is kept, and rows of the same moment are never divided; with more than a million distinct moments
    the bound between the sides is rounded down, by microseconds.

    Raises:
        Invalid: No such column, or the time is missing somewhere.
    """
    if not 0 < split.test < 1:
        raise Invalid(
            f"{split.test:g} is no share of rows; expected more than 0 and less than 1", path="data.split.test"
        )
    names = stream.head.column_names
    for name in keys if split.by == "key" else ():
        if name not in names:
            raise unknown_column(name, names, "data.key")
    bound: Any = None
    starts: tuple[int, ...] = ()
    if split.by == "random":
        counts = list(stream.map(_count, []))
        starts = (0, *itertools.accumulate(counts))
        rows = sum(counts)
        bound = _smallest(seed, rows, round(rows * split.test))
    elif split.by == "time":
        bound = _first_late(stream, split.test, time)
    return Division(split, tuple(keys), time, seed, bound, starts)


def must_divide(rows: int, kept: int) -> None:
    """Refuse a division that leaves one side empty. Raises ``Invalid``."""
    if rows and kept in (0, rows):
        raise Invalid(
            f"all {rows} rows fall on the side of {'evaluation' if kept else 'training'}",
            path="data.split",
            hint="give more rows, another share, or split by: random",
        )


def test_rows(table: pa.Table, split: Split, keys: Sequence[str], time: str, seed: int = 0) -> Mask:
    """Which rows of one table are kept for evaluation, shape (rows,); see ``division``.

    Raises:
        Invalid: As ``division`` does, or one side would be empty.
    """
    made = division(split, Held.of(table), keys, time, seed).test_rows(table, 0)
    must_divide(table.num_rows, int(made.sum()))
    return made


def _count(table: pa.Table, number: int) -> int:
    return int(table.num_rows)


def _hashes(seed: int, start: int, stop: int) -> UInts:
    """A number for each place: SplitMix64 of Steele, Lea and Flood (2014), which gives no number twice."""
    place = np.arange(start, stop, dtype=np.uint64)
    mixed = (place + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64((seed * 0xD1342543DE82EF95) % 2**64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    made: UInts = mixed ^ (mixed >> np.uint64(31))
    return made


def _smallest(seed: int, rows: int, count: int) -> np.uint64:
    """The bound below which exactly ``count`` of the places' hashes lie, found in flat memory."""
    if not 0 < count < rows:
        return np.uint64(0) if count <= 0 else np.uint64(2**64 - 1)
    blocks = range(0, rows, _BLOCK)
    shift = np.uint64(48)
    found = np.zeros(1 << 16, dtype=np.int64)
    for start in blocks:
        top = (_hashes(seed, start, min(start + _BLOCK, rows)) >> shift).astype(np.int64)
        found += np.bincount(top, minlength=1 << 16)
    below = np.cumsum(found)
    bin_ = int(np.searchsorted(below, count, side="right"))
    rank = count - (int(below[bin_ - 1]) if bin_ else 0)
    inside = []
    for start in blocks:
        hashes = _hashes(seed, start, min(start + _BLOCK, rows))
        inside.append(hashes[(hashes >> shift) == bin_])
    bound: np.uint64 = np.sort(np.concatenate(inside))[rank]
    return bound


def _first_late(stream: Stream, share: float, time: str) -> Any:
    if not time:
        raise Invalid("a split by time needs the time column", path="data.time")
    if time not in stream.head.column_names:
        raise unknown_column(time, stream.head.column_names, "data.time")
    gone, found = fold(stream, partial(_moments, time), _merged, [time])
    if gone:
        raise Invalid(
            f"{gone} rows have no {time!r}; they have no place in a split by time",
            path="data.time",
            hint=f"add '- drop_missing: {{columns: [{time}]}}' under data.clean",
        )
    if isinstance(found, Values):
        return found.value(int(found.total * (1 - share))) if found.total else 0.0
    rank, seen = int(sum(found.values()) * (1 - share)), 0
    for value in sorted(found):
        seen += found[value]
        if seen > rank:
            return value
    return ""


def _moments(time: str, table: pa.Table, number: int) -> tuple[int, Any]:
    column = table.column(time)
    ordered = _ordered(column)
    if pa.types.is_string(ordered.type):
        counts = pc.value_counts(ordered.drop_null())
        pairs = zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True)
        return int(missing(column).sum()), Counter(dict(pairs))
    return int(missing(column).sum()), Values.of(numbers(ordered))


def _merged(a: tuple[int, Any], b: tuple[int, Any]) -> tuple[int, Any]:
    return a[0] + b[0], a[1].merge(b[1]) if isinstance(a[1], Values) else a[1] + b[1]


def _ordered(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Times in microseconds since 1970; numbers and strings as they are."""
    if pa.types.is_temporal(column.type):
        column = column.cast(pa.timestamp("us", getattr(column.type, "tz", None)), safe=False).cast(pa.int64())
    return column
