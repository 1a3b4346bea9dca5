"""What a model said, lined up with the truth: the input of every metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from modelkeep.core.errors import Invalid

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Outputs:
    """A model's answers for n rows, as arrays.

    Attributes:
        label: Predicted class, (n,), of the same type as ``classes``.
        probability: (n, K) in the order of ``classes``, or (n,) for the positive class of two.
        classes: (K,) class labels in sorted order. With two, the last one is the positive class.
        value: Predicted number, (n,), for regression.
    """

    label: Array | None = None
    probability: Array | None = None
    classes: Array | None = None
    value: Array | None = None

    def take(self, index: Array) -> Outputs:
        """The rows at ``index`` (positions or a boolean mask)."""
        rows = (None if part is None else part[index] for part in (self.label, self.probability, self.value))
        label, probability, value = rows
        return Outputs(label=label, probability=probability, classes=self.classes, value=value)

    @property
    def rows(self) -> int:
        """How many rows were answered."""
        for part in (self.label, self.probability, self.value):
            if part is not None:
                return len(part)
        return 0


def positions(values: Array | Sequence[Any], classes: Array | Sequence[Any]) -> Ints:
    """Where each value stands in ``classes``; -1 where it does not. Types are reconciled (1, 1.0, True, "1")."""
    known, given = np.asarray(classes), np.asarray(values)
    if known.dtype.kind in "biuf" and given.dtype.kind in "biuf" and len(known):
        order = np.argsort(known)
        place = order[np.clip(np.searchsorted(known, given, sorter=order), 0, len(known) - 1)]
        return np.where(known[place] == given, place, -1)
    members, found = _arrow(classes), _arrow(values)
    if found.type != members.type:
        try:
            found = found.cast(members.type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            found, members = _text(found), _text(members)
    return np.asarray(pc.fill_null(pc.index_in(found, value_set=members), -1), dtype=np.int64)


def _arrow(values: Array | Sequence[Any]) -> pa.Array:
    try:
        found = pa.array(values, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        found = pa.array([str(value) for value in values])
    return found.cast(pa.string()) if pa.types.is_large_string(found.type) else found


def _text(values: pa.Array) -> pa.Array:
    return pa.array([None if value is None else str(value) for value in values.to_pylist()], pa.string())


class View:
    """Truth and answers with everything that metrics derive from them (codes, orders), computed once.

    ``weights`` matrices are (R, n): row r holds the weight of each row in evaluation r. Any function of a view and
    weights answers R evaluations at once, which is what makes the bootstrap cheap.
    """

    def __init__(self, y: Array, outputs: Outputs) -> None:
        self.y = np.asarray(y)
        self.outputs = outputs
        if outputs.rows != len(self.y):
            raise Invalid(f"{len(self.y)} true values but {outputs.rows} answers; expected as many of both")
        self._margins: tuple[Floats, tuple[Floats, Floats, Floats]] | None = None

    @cached_property
    def classes(self) -> Array:
        """The model's classes, then those seen only in the truth: (K,)."""
        given = self.outputs.classes
        if given is None:
            seen = [self.y] if self.outputs.label is None else [self.y, np.asarray(self.outputs.label)]
            return np.unique(np.concatenate(seen))
        unknown = positions(self.y, given) < 0
        if not unknown.any():
            return np.asarray(given)
        extra = sorted({str(value) for value in self.y[unknown]})
        return np.asarray([*np.asarray(given).tolist(), *extra], dtype=object)

    @cached_property
    def truth(self) -> Ints:
        """The true class of each row as a position in ``classes``."""
        return positions(self.y, self.classes)

    @cached_property
    def predicted(self) -> Ints:
        """The predicted class of each row as a position in ``classes``."""
        if self.outputs.label is not None:
            return positions(self.outputs.label, self.classes)
        return np.asarray(np.argmax(self.probability, axis=1), dtype=np.int64)

    @cached_property
    def probability(self) -> Floats:
        """(n, K) float64; classes the model does not know have probability 0."""
        given = self.outputs.probability
        if given is None:
            raise Invalid("the model gives no probabilities, which this metric needs; choose one on labels")
        given = np.asarray(given, dtype=np.float64)
        if given.ndim == 1:
            given = np.column_stack([1 - given, given])
        missing = len(self.classes) - given.shape[1]
        if missing < 0:
            raise Invalid(f"{given.shape[1]} probabilities per row but {len(self.classes)} classes; pass classes")
        return np.pad(given, ((0, 0), (0, missing))) if missing else given

    @cached_property
    def epsilon(self) -> float:
        """Smallest probability a logarithm sees: the machine epsilon of what the model gave."""
        given = np.asarray(self.outputs.probability)
        return float(np.finfo(given.dtype if given.dtype.kind == "f" else np.float64).eps)

    @cached_property
    def value(self) -> Floats:
        """(n,) predicted numbers."""
        if self.outputs.value is None:
            raise Invalid("the model gives no numbers, which this metric needs; choose one for classification")
        return np.asarray(self.outputs.value, dtype=np.float64)

    @cached_property
    def target(self) -> Floats:
        """(n,) true numbers."""
        return np.asarray(self.y, dtype=np.float64)

    @property
    def binary(self) -> bool:
        """Whether there are at most two classes."""
        return len(self.classes) <= 2

    def margins(self, weights: Floats) -> tuple[Floats, Floats, Floats]:
        """Per class: weight that is true, weight predicted, weight of both; each (R, K). Keeps the last."""
        if self._margins is None or self._margins[0] is not weights:
            size = len(self.classes)
            right = np.flatnonzero(self.truth == self.predicted)
            hit = self.truth[right]
            true: Floats = np.stack([np.bincount(self.truth, w, size) for w in weights])
            said: Floats = np.stack([np.bincount(self.predicted, w, size) for w in weights])
            both: Floats = np.stack([np.bincount(hit, w[right], size) for w in weights])
            self._margins = (weights, (true, said, both))
        return self._margins[1]

    @cached_property
    def rankings(self) -> list[Ranking]:
        """One per class that is scored: the positive one of two, or each of several against the rest."""
        kinds = [len(self.classes) - 1] if self.binary else range(len(self.classes))
        return [Ranking(self.truth == kind, self.probability[:, kind]) for kind in kinds]


class Ranking:
    """Positive and negative rows in descending order of score, with where each positive stands among both."""

    def __init__(self, positive: npt.NDArray[np.bool_], score: Floats) -> None:
        up, down = np.flatnonzero(positive), np.flatnonzero(~positive)
        self.up = up[np.argsort(-score[up])]
        self.down = down[np.argsort(-score[down])]
        own, other = -score[self.up], -score[self.down]
        self.above = np.searchsorted(other, own, "left")
        """For each positive: how many negatives score strictly higher."""
        self.upto = np.searchsorted(other, own, "right")
        """For each positive: how many negatives score at least as high."""
        self.peers = np.searchsorted(own, own, "right")
        """For each positive: how many positives score at least as high."""
