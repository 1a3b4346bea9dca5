"""Small mergeable summaries of one column: how many distinct values, which are frequent, mean and spread.

All are ``state = of(values)``, ``merge(a, b)``; merging in any order and grouping gives the same answer: exactly
for counts, within rounding for moments, within the stated error for the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from modelkeep.stats.outputs import Floats

Hashes = npt.NDArray[np.uint64]

KEPT_HASHES = 2048
"""Relative standard error 1 / sqrt(2046) = 2.2 %; exact below that many distinct values."""
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(values: Hashes) -> Hashes:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): equal in, equal out, bits well spread."""
    mixed = values + _GOLDEN
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def hash_numbers(values: Floats) -> Hashes:
    """A stable 64-bit hash of each number; 0.0 and -0.0 are one."""
    return mix((values + 0.0).view(np.uint64))


def hash_strings(values: pa.StringArray) -> Hashes:
    """A stable 64-bit hash of each string: multilinear over its bytes (Lemire and Kaser 2014), then mixed.

    Args:
        values: Without nulls.
    """
    count = len(values)
    if count == 0:
        return np.empty(0, np.uint64)
    values = pa.concat_arrays([values.cast(pa.large_binary())])  # offsets from zero, in 64 bits
    offsets = np.frombuffer(values.buffers()[1], np.int64, count + 1, values.offset * 8)
    data = np.frombuffer(values.buffers()[2] or b"", np.uint8)[offsets[0] : offsets[-1]]
    starts = offsets[:-1] - offsets[0]
    sizes = np.diff(offsets)
    place = np.arange(len(data), dtype=np.uint64) - np.repeat(starts, sizes).astype(np.uint64)
    terms = (data.astype(np.uint64) + np.uint64(1)) * (mix(place) | np.uint64(1))
    total = np.zeros(count, np.uint64)
    filled = sizes > 0
    if filled.any():
        total[filled] = np.add.reduceat(terms, starts[filled])
    return mix(total)


@dataclass(frozen=True)
class Distinct:
    """How many different values: the k smallest hashes seen (Bar-Yossef et al. 2002; Beyer et al. 2007)."""

    hashes: Hashes = field(default_factory=lambda: np.empty(0, np.uint64))

    @classmethod
    def of(cls, hashes: Hashes) -> Distinct:
        """From the hashes of values, repeated or not."""
        if len(hashes) > 4 * KEPT_HASHES:
            # A quick cut: the smallest 4k hashes hold the k smallest distinct ones unless values repeat a lot.
            cut = np.partition(hashes, 4 * KEPT_HASHES)[: 4 * KEPT_HASHES]
            found = np.unique(cut)
            if len(found) >= KEPT_HASHES:
                return cls(found[:KEPT_HASHES])
        return cls(np.unique(hashes)[:KEPT_HASHES])

    def merge(self, other: Distinct) -> Distinct:
        """Of both together."""
        return Distinct(np.unique(np.concatenate([self.hashes, other.hashes]))[:KEPT_HASHES])

    @property
    def count(self) -> int:
        """The estimate; exact while fewer values were seen than hashes are kept."""
        if len(self.hashes) < KEPT_HASHES:
            return len(self.hashes)
        return round((KEPT_HASHES - 1) / (float(self.hashes[-1]) / 2.0**64))


@dataclass(frozen=True)
class Frequent:
    """The most frequent values.

    The true count of a kept value lies in [count, count + slack]; a value not kept occurs at most ``slack`` times
    (the bookkeeping of Misra and Gries 1982, merged as in Agarwal et al. 2012).

    Attributes:
        counts: Count by value.
        slack: How much may be missing from any one count; 0 while all values are kept.
    """

    counts: Mapping[Any, int] = field(default_factory=dict)
    slack: int = 0

    @classmethod
    def of(cls, values: list[Any], counts: npt.NDArray[np.int64], keep: int) -> Frequent:
        """From different values and their counts; keeps the ``keep`` most frequent."""
        slack = 0
        if len(counts) > keep:
            order = np.argsort(-counts, kind="stable")
            slack, order = int(counts[order[keep]]), order[:keep]
            values, counts = [values[place] for place in order], counts[order]
        return cls(dict(zip(values, counts.tolist(), strict=True)), slack)

    def merge(self, other: Frequent, keep: int) -> Frequent:
        """Of both together."""
        total = dict(self.counts)
        for value, count in other.counts.items():
            total[value] = total.get(value, 0) + count
        merged = Frequent.of(list(total), np.fromiter(total.values(), np.int64, len(total)), keep)
        return Frequent(merged.counts, merged.slack + self.slack + other.slack)

    def top(self, count: int) -> list[tuple[Any, int]]:
        """The most frequent, in falling order; equal counts in order of their text."""
        return sorted(self.counts.items(), key=lambda item: (-item[1], str(item[0])))[:count]


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations, merged as in Chan, Golub and LeVeque (1979)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    low: float = float("inf")
    high: float = float("-inf")

    @classmethod
    def of(cls, values: Floats) -> Moments:
        """Of finite values."""
        if len(values) == 0:
            return cls()
        mean = float(values.mean())
        off = values - mean
        return cls(
            len(values), mean, float(np.einsum("i,i->", off, off)), float(values.min()), float(values.max())
        )

    def merge(self, other: Moments) -> Moments:
        """Of both together."""
        count = self.count + other.count
        if not self.count or not other.count:
            return self if self.count else other
        gap = other.mean - self.mean
        return Moments(
            count,
            self.mean + gap * other.count / count,
            self.squares + other.squares + gap * gap * self.count * other.count / count,
            min(self.low, other.low),
            max(self.high, other.high),
        )

    @property
    def std(self) -> float:
        """Standard deviation of a sample (n - 1); NaN below two values."""
        return float(np.sqrt(self.squares / (self.count - 1))) if self.count > 1 else float("nan")


@dataclass(frozen=True)
class Comoments:
    """Joint moments of columns over the rows where both of a pair are present; merged pair by pair.

    Attributes:
        names: The columns, c of them.
        count: (c, c) rows where both are present.
        mean: (c, c) mean of column i over the rows where j is present too.
        square: (c, c) sum of squared deviations of column i over those rows.
        product: (c, c) sum of products of both deviations over those rows.
    """

    names: tuple[str, ...] = ()
    count: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    mean: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    square: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    product: Floats = field(default_factory=lambda: np.zeros((0, 0)))

    @classmethod
    def of(cls, columns: Mapping[str, Floats]) -> Comoments:
        """Of equally long columns; NaN and infinity are missing."""
        size = len(columns)
        count, total, square, product = (np.zeros((size, size)) for _ in range(4))
        rows = len(next(iter(columns.values()))) if columns else 0
        centre = np.array([_middle(values) for values in columns.values()])
        for start in range(0, rows, 65_536):
            block = np.stack([values[start : start + 65_536] for values in columns.values()]) - centre[:, None]
            present = np.isfinite(block)
            block[~present] = 0.0
            here = present.astype(np.float64)
            count += here @ here.T
            total += block @ here.T
            square += block**2 @ here.T
            product += block @ block.T
        share = total / np.maximum(count, 1)
        square -= count * share**2
        product -= count * share * share.T
        return cls(tuple(columns), count, centre[:, None] + share, square, product)

    def merge(self, other: Comoments) -> Comoments:
        """Of both together, over the columns of either."""
        names = tuple(dict.fromkeys([*self.names, *other.names]))
        one, two = self._spread(names), other._spread(names)
        count = one.count + two.count
        weight = two.count / np.maximum(count, 1)
        gap = two.mean - one.mean
        square = one.square + two.square + gap**2 * one.count * weight
        product = one.product + two.product + gap * gap.T * one.count * weight
        return Comoments(names, count, one.mean + gap * weight, square, product)

    def _spread(self, names: tuple[str, ...]) -> Comoments:
        if names == self.names:
            return self
        place = [names.index(name) for name in self.names]
        grid = np.ix_(place, place)
        wide = [np.zeros((len(names), len(names))) for _ in self.matrices]
        for matrix, own in zip(wide, self.matrices, strict=True):
            matrix[grid] = own
        return Comoments(names, *wide)

    @property
    def matrices(self) -> tuple[Floats, Floats, Floats, Floats]:
        """All four, in the order of the fields."""
        return self.count, self.mean, self.square, self.product

    def correlations(self) -> Floats:
        """(c, c) Pearson correlations; NaN for a pair with fewer than two rows, and of a constant column."""
        varies = self.square > 1e-20 * self.count * self.mean**2  # below that there is only rounding
        scale = np.sqrt(np.where(varies & varies.T, self.square * self.square.T, 0))
        with np.errstate(divide="ignore", invalid="ignore"):
            found = np.where((self.count > 1) & (scale > 0), self.product / scale, np.nan)
        return np.asarray(np.clip(found, -1, 1))


def _middle(values: Floats) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else 0.0
