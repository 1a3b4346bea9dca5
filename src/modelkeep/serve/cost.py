"""What a batch will take, learned from what the last ones took."""

from __future__ import annotations

import math

_WEIGHT = 0.1
_ODD = 10.0
_TINY = 1e-3
_GROWTH = 8.0
_FORGET = 1.01


class Cost:
    """Seconds of a batch as ``fixed + per_row * rows``: exponentially weighted least squares over past batches.

    While all batches have the same size nothing says how the time splits: an eighth of it counts as the rows', and
    batches may grow eightfold to find out. One that takes many times what was expected (a machine that stalled)
    counts as ten times that, so that it takes several to change the picture. A row never costs more than it did in
    the best of the last batches: what they take beyond that is theirs, however much their times scatter.

    Attributes:
        fixed: Seconds whatever the number of rows; infinite before the first batch.
        per_row: Seconds for each row.
    """

    __slots__ = ("_best", "_covariance", "_largest", "_rows", "_seconds", "_variance", "fixed", "per_row")

    def __init__(self) -> None:
        self.fixed = math.inf
        self.per_row = 0.0
        self._best = math.inf
        self._largest = self._rows = self._seconds = self._variance = self._covariance = 0.0

    def estimate(self, rows: int) -> float:
        """Seconds that a batch of so many rows will take; infinite before the first one."""
        return self.fixed + self.per_row * rows

    def rows_within(self, seconds: float) -> int:
        """Most rows expected to take at most so long, without a leap beyond what was seen; at least one.

        As long as ``fixed`` may be spent on rows in any case: smaller batches would mostly be overhead.
        """
        if self.fixed == math.inf:
            return int(_GROWTH)
        seconds = max(seconds, 2 * self.fixed)
        if self.fixed + self.per_row >= seconds:
            return 1
        most = _GROWTH * max(self._largest, 1.0)
        return int(min((seconds - self.fixed) / self.per_row, most) if self.per_row > 0 else most)

    def observe(self, rows: int, seconds: float) -> None:
        """A batch has been predicted."""
        self._best = min(_FORGET * self._best, seconds / rows)
        self._largest = max(0.999 * self._largest, float(rows))
        if self.fixed == math.inf:
            self._rows, self._seconds = float(rows), seconds
            self.per_row = seconds / rows / _GROWTH
        else:
            seconds = min(seconds, _ODD * self.estimate(rows) + 1e-6)
            more, longer = rows - self._rows, seconds - self._seconds
            self._rows += _WEIGHT * more
            self._seconds += _WEIGHT * longer
            self._variance = (1 - _WEIGHT) * (self._variance + _WEIGHT * more * more)
            self._covariance = (1 - _WEIGHT) * (self._covariance + _WEIGHT * more * longer)
        average = self._seconds / self._rows
        if self._variance > _TINY * self._rows * self._rows:
            self.per_row = min(max(self._covariance / self._variance, 0.0), average)
        else:
            self.per_row = min(self.per_row, average)
        self.per_row = min(self.per_row, self._best)
        self.fixed = max(self._seconds - self.per_row * self._rows, 0.0)
