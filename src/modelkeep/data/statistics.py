"""Mergeable statistics of blocks of columns, each as ``of(block)``, ``merge(other)`` and what it tells.

Merging is associative and commutative: any way of cutting the rows into parts gives the same result
(floating-point sums to rounding).
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from operator import mul
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MAX_DISTINCT = 1 << 20
"""Distinct values kept exactly; beyond it values are rounded to fewer bits."""


@dataclass(frozen=True)
class Moments:
    """Count, mean, squared deviations and extremes of k columns, ignoring NaN; arrays of shape (k,).

    Merged after Chan, Golub and LeVeque (1979), "Updating formulae and a pairwise algorithm".
    """

    count: Ints
    mean: Floats
    squares: Floats
    low: Floats
    high: Floats

    @classmethod
    def of(cls, block: Floats) -> Moments:
        """Of an array of shape (n, k)."""
        rows, width = block.shape
        present = ~np.isnan(block)
        count = present.sum(axis=0)
        if not rows:
            nan = np.full(width, np.nan)
            return cls(count, np.zeros(width), np.zeros(width), nan, nan)
        whole = bool((count == rows).all())
        filled = block if whole else np.where(present, block, 0.0)
        mean = filled.sum(axis=0) / np.maximum(count, 1)
        away = filled - mean
        if not whole:
            away[~present] = 0.0
        squares = np.einsum("ij,ij->j", away, away)
        return cls(count, mean, squares, np.fmin.reduce(block, axis=0), np.fmax.reduce(block, axis=0))

    def merge(self, other: Moments) -> Moments:
        """Of both blocks together."""
        count = self.count + other.count
        share = other.count / np.maximum(count, 1)
        gap = other.mean - self.mean
        return Moments(
            count,
            self.mean + gap * share,
            self.squares + other.squares + gap * gap * self.count * share,
            np.fmin(self.low, other.low),
            np.fmax(self.high, other.high),
        )

    @property
    def variance(self) -> Floats:
        """Population variance."""
        made: Floats = self.squares / np.maximum(self.count, 1)
        return made


@dataclass(frozen=True)
class Exact:
    """Count, sum and sum of squares of finite numbers as whole numbers of the smallest unit, without any rounding.

    What rows are changed by must not depend on the partitioning even in its last bit: a row's hash would.

    Attributes:
        count: How many.
        total: In units of ``2 ** -UNIT``.
        squares: In units of ``2 ** -(2 * UNIT)``.
        wild: The sum of infinities, 0 without any.
    """

    count: int = 0
    total: int = 0
    squares: int = 0
    wild: float = 0.0

    UNIT: ClassVar[int] = 1126
    """The exponent of the last bit of the smallest float64, its 53 bits counted in full."""

    @classmethod
    def of(cls, column: Floats, *, squares: bool = False) -> Exact:
        """Of an array of shape (n,), ignoring NaN; without ``squares`` there is no spread."""
        present = column[~np.isnan(column)]
        finite = present[np.isfinite(present)]
        shares, exponents = np.frexp(finite)
        whole = np.ldexp(shares, 53).astype(np.int64)
        order = np.argsort(exponents, kind="stable")
        levels, starts = np.unique(exponents[order], return_index=True)
        total, squared = 0, 0
        for level, group in zip(levels.tolist(), np.split(whole[order], starts[1:]), strict=False):
            shift = level - 53 + cls.UNIT
            total += ((int((group >> 27).sum()) << 27) + int((group & ((1 << 27) - 1)).sum())) << shift
            if squares:
                squared += sum(map(mul, group.tolist(), group.tolist())) << (2 * shift)
        return cls(len(present), total, squared, float(present[~np.isfinite(present)].sum()))

    def merge(self, other: Exact) -> Exact:
        """Of both columns together."""
        return Exact(
            self.count + other.count,
            self.total + other.total,
            self.squares + other.squares,
            self.wild + other.wild,
        )

    @property
    def mean(self) -> float:
        """The nearest number to the mean; 0 of nothing."""
        if self.wild:
            return self.wild
        return float(Fraction(self.total, max(self.count, 1) << self.UNIT))

    @property
    def deviation(self) -> float:
        """Population standard deviation, of what was seen with ``squares``."""
        away = self.squares * self.count - self.total * self.total
        try:
            return math.sqrt(Fraction(away, max(self.count, 1) ** 2 << (2 * self.UNIT)))
        except OverflowError:
            return math.inf


@dataclass(frozen=True)
class Values:
    """The distinct numbers of one column and how often each occurs, NaN apart.

    Exact up to ``MAX_DISTINCT`` distinct values. Beyond it the lowest ``dropped`` bits of the mantissa are
    cleared, with the smallest ``dropped`` that suffices for the whole: the result never depends on the
    partitioning, and the relative error is below ``2 ** (dropped - 52)``.
    """

    values: Floats
    counts: Ints
    missing: int = 0
    dropped: int = 0

    @classmethod
    def of(cls, column: Floats) -> Values:
        """Of an array of shape (n,)."""
        column = np.ascontiguousarray(column, dtype=np.float64)
        present = column[~np.isnan(column)]
        values, counts = np.unique(present, return_counts=True)
        return cls(values, counts, len(column) - len(present)).fitted()

    def merge(self, other: Values) -> Values:
        """Of both columns together."""
        dropped = max(self.dropped, other.dropped)
        values = np.concatenate([_cleared(self.values, dropped), _cleared(other.values, dropped)])
        counts = np.concatenate([self.counts, other.counts])
        return Values(*_summed(values, counts), self.missing + other.missing, dropped).fitted()

    def fitted(self) -> Values:
        """The same with as many bits dropped as the limit demands."""
        values, counts, dropped = self.values, self.counts, self.dropped
        while len(values) > MAX_DISTINCT:
            dropped += 1
            values, counts = _summed(_cleared(values, dropped), counts)
        return Values(values, counts, self.missing, dropped)

    @property
    def total(self) -> int:
        """How many values, NaN not counted."""
        return int(self.counts.sum())

    def quantile(self, q: float) -> float:
        """By linear interpolation, as NumPy's default (Hyndman and Fan type 7)."""
        position = (self.total - 1) * q
        low = int(np.floor(position))
        first, second = self.value(low), self.value(min(low + 1, self.total - 1))
        return first + (second - first) * (position - low)

    def inverted_cdf(self, q: float) -> float:
        """The averaged inverse of the distribution function (Hyndman and Fan type 2)."""
        position = self.total * q
        low = int(np.floor(position))
        last = self.total - 1
        if position == low and 0 < low <= last:
            return (self.value(low - 1) + self.value(low)) / 2
        return self.value(min(low, last))

    def mode(self) -> float:
        """The most frequent value; the smallest of several."""
        return float(self.values[int(np.argmax(self.counts))])

    def value(self, rank: int) -> float:
        """The value of this rank, from 0 for the smallest."""
        return float(self.values[int(np.searchsorted(np.cumsum(self.counts), rank, side="right"))])


def counts_of(column: npt.NDArray[np.object_]) -> Counter[str]:
    """How often each string of an object array of shape (n,) occurs."""
    codes, known = pd.factorize(column)
    return Counter(dict(zip(known.tolist(), np.bincount(codes, minlength=len(known)).tolist(), strict=True)))


def counts_in(column: pa.ChunkedArray) -> Counter[str]:
    """The same of an Arrow column, where a missing string is the empty one."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    found = pc.value_counts(column)
    names, counts = found.field("values").to_pylist(), found.field("counts").to_pylist()
    made: Counter[str] = Counter()
    for name, count in zip(names, counts, strict=True):
        made["" if name is None else name] += count
    return made


def merged_counts(a: Counter[str], b: Counter[str]) -> Counter[str]:
    """Of both columns together."""
    return a + b


def mode_of(counts: Counter[str]) -> str:
    """The most frequent string; the smallest of several."""
    most = max(counts.values())
    return min(name for name, count in counts.items() if count == most)


def _summed(values: Floats, counts: Ints) -> tuple[Floats, Ints]:
    distinct, where = np.unique(values, return_inverse=True)
    return distinct, np.bincount(where, weights=counts, minlength=len(distinct)).astype(np.int64)


def _cleared(values: Floats, dropped: int) -> Floats:
    if not dropped:
        return values
    mask = np.uint64((0xFFFFFFFFFFFFFFFF << dropped) & 0xFFFFFFFFFFFFFFFF)
    cleared: Floats = (values.view(np.uint64) & mask).view(np.float64)
    return cleared
