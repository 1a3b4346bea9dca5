"""How each feature step is fitted: ``partial`` of a block, ``merge`` of two, ``finish`` into transformers.

A block is an array of shape (rows, columns) of what the steps before made: float64 with NaN, or objects that are
all ``str``. Encoders whose fitted state scikit-learn keeps private are finished by scikit-learn itself, fitted on
one small matrix that has the same statistics.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import (
    MinMaxScaler,
    RobustScaler,
    StandardScaler,
)

from modelkeep.core.errors import Invalid
from modelkeep.data.statistics import Moments, Values, counts_of, merged_counts, mode_of

Block = npt.NDArray[Any]
State = Any


@dataclass(frozen=True)
class Fitter:
    """One feature step over one group of columns.

    Attributes:
        step: What was declared.
        columns: The group's columns in the table, for errors.
        path: The step's path in the declaration, for errors.
        base: The declaration's folder, for the user's functions.
    """

    step: Any
    columns: tuple[str, ...]
    path: str
    base: Path

    takes: ClassVar[tuple[str, ...]] = ("numeric",)
    """Kinds of block it works on: ``numeric``, ``string``, ``time``."""
    gives: ClassVar[str] = "numeric"
    """Kind of block it makes; ``final`` when no step can follow."""
    counts: ClassVar[bool] = False
    """Whether all it learns of strings is how often each occurs."""

    def partial(self, block: Block) -> State:
        """The statistics of a block; None when there is nothing to learn."""
        return None

    def merge(self, a: State, b: State) -> State:
        """The statistics of both blocks."""
        return None

    def finish(self, state: State) -> list[Any]:
        """The fitted transformers, in order.

        Raises:
            Invalid: The rows do not allow it.
        """
        raise NotImplementedError

    def empty(self, index: int, count: int) -> Invalid:
        """The error for a column without any value."""
        names = self.columns if len(self.columns) == count else (f"feature {i}" for i in range(count))
        name = list(names)[index]
        return Invalid(
            f"{name!r} has no value in any training row", path=self.path, hint=f"add {name!r} to data.exclude"
        )


def each(a: list[Any], b: list[Any], merge: Callable[[Any, Any], Any]) -> list[Any]:
    return [merge(left, right) for left, right in zip(a, b, strict=True)]


def distinct(block: Block) -> list[Any]:
    """Per column the distinct values with their counts: ``Values`` for numbers, a ``Counter`` for strings."""
    if block.dtype == object:
        return [counts_of(block[:, index]) for index in range(block.shape[1])]
    return [Values.of(block[:, index]) for index in range(block.shape[1])]


def merge_distinct(a: list[Any], b: list[Any]) -> list[Any]:
    return each(a, b, lambda x, y: x.merge(y) if isinstance(x, Values) else merged_counts(x, y))


class ImputeFitter(Fitter):
    """``SimpleImputer`` with the statistic of the rows."""

    takes = ("numeric", "string")
    gives = "same"

    def partial(self, block: Block) -> State:
        if self.step.strategy == "constant":
            return block.dtype == object, block.shape[1]
        if block.dtype == object or self.step.strategy in ("median", "mode"):
            return distinct(block)
        return Moments.of(block)

    def merge(self, a: State, b: State) -> State:
        if self.step.strategy == "constant":
            return a
        return a.merge(b) if isinstance(a, Moments) else merge_distinct(a, b)

    def finish(self, state: State) -> list[Any]:
        if self.step.strategy == "constant":
            return self._constant(*state)
        if isinstance(state, Moments):
            lacking = np.flatnonzero(state.count == 0)
            if len(lacking):
                raise self.empty(int(lacking[0]), len(state.count))
            return [SimpleImputer(strategy="mean").fit(state.mean.reshape(1, -1))]
        row: list[Any] = []
        for index, found in enumerate(state):
            if isinstance(found, Counter):
                if self.step.strategy != "mode":
                    raise Invalid(
                        f"{self.columns[index]!r} holds strings, which have no {self.step.strategy}",
                        path=self.path,
                        hint="use strategy: mode or constant",
                    )
                found = Counter({name: count for name, count in found.items() if name})
            if not (found.total if isinstance(found, Values) else found):
                raise self.empty(index, len(state))
            if isinstance(found, Values):
                row.append(found.mode() if self.step.strategy == "mode" else found.quantile(0.5))
            else:
                row.append(mode_of(found))
        strategy = "most_frequent" if self.step.strategy == "mode" else "median"
        if isinstance(state[0], Values):
            return [SimpleImputer(strategy=strategy).fit(np.array([row], dtype=np.float64))]
        return [SimpleImputer(missing_values="", strategy=strategy).fit(np.array([row], dtype=object))]

    def _constant(self, strings: bool, width: int) -> list[Any]:
        value = self.step.value
        if strings:
            value = "missing" if value is None else str(value)
            row = np.array([["x"] * width], dtype=object)
            return [SimpleImputer(missing_values="", strategy="constant", fill_value=value).fit(row)]
        if isinstance(value, str):
            raise Invalid(
                f"{self.columns[0]!r} holds numbers; the constant is {value!r}",
                path=f"{self.path}.value",
                hint="give a number",
            )
        filled = SimpleImputer(strategy="constant", fill_value=0.0 if value is None else float(value))
        return [filled.fit(np.zeros((1, width)))]


class ScaleFitter(Fitter):
    """``StandardScaler``, ``MinMaxScaler`` or ``RobustScaler`` from moments or quantiles."""

    def partial(self, block: Block) -> State:
        return distinct(block) if self.step.method == "robust" else Moments.of(block)

    def merge(self, a: State, b: State) -> State:
        return a.merge(b) if isinstance(a, Moments) else merge_distinct(a, b)

    def finish(self, state: State) -> list[Any]:
        counts = state.count if isinstance(state, Moments) else np.array([found.total for found in state])
        lacking = np.flatnonzero(counts == 0)
        if len(lacking):
            raise self.empty(int(lacking[0]), len(counts))
        if isinstance(state, Moments):
            return [self._standard(state)] if self.step.method == "standard" else [self._minmax(state)]
        scaler = RobustScaler()
        scaler.center_ = np.array([found.quantile(0.5) for found in state])
        scaler.scale_ = np.array([found.quantile(0.75) - found.quantile(0.25) for found in state])
        scaler.scale_[scaler.scale_ < 10 * np.finfo(np.float64).eps] = 1.0
        scaler.n_features_in_ = len(state)
        return [scaler]

    @staticmethod
    def _standard(state: Moments) -> Any:
        scaler = StandardScaler()
        scaler.n_features_in_ = len(state.count)
        scaler.n_samples_seen_ = int(state.count[0]) if (state.count == state.count[0]).all() else state.count
        scaler.mean_, scaler.var_ = state.mean, state.variance
        # A column counts as constant when its variance is within the rounding of its mean, as in scikit-learn.
        noise = state.count * np.finfo(np.float64).eps
        constant = scaler.var_ <= noise * scaler.var_ + (noise * state.mean) ** 2
        scaler.scale_ = np.where(constant, 1.0, np.sqrt(scaler.var_))
        return scaler

    @staticmethod
    def _minmax(state: Moments) -> Any:
        scaler = MinMaxScaler().fit(np.vstack([state.low, state.high]))
        scaler.n_samples_seen_ = int(state.count.max())
        return scaler
