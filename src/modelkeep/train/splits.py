"""Which rows are fitted on and which are held out while searching."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from modelkeep.core.errors import Invalid
from modelkeep.train.training import Training

Fold = tuple[Training, Training]
"""Rows to fit on, rows to score on."""

Positions = npt.NDArray[np.intp]

HOLDOUT = 0.2
HOLDOUT_MOST = 50_000
"""Rows that tell models apart well enough; more only cost time."""


class Folds:
    """Folds of the same rows, each taken when it is first asked for. Travels as the rows and their positions.

    Args:
        data: All rows.
        positions: Of each fold the rows to fit on and those to score on.
    """

    def __init__(self, data: Training, positions: Sequence[tuple[Positions, Positions]]) -> None:
        self._data, self._positions = data, tuple(positions)
        self._taken: dict[int, Fold] = {}

    def __len__(self) -> int:
        return len(self._positions)

    def __iter__(self) -> Iterator[Fold]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, number: int) -> Fold:
        if number not in self._taken:
            fit, held = self._positions[number]
            self._taken[number] = self._data.take(fit), self._data.take(held)
        return self._taken[number]

    def __getstate__(self) -> dict[str, Any]:
        return {"_data": self._data, "_positions": self._positions, "_taken": {}}


def cross_validation(data: Training, folds: int, seed: int) -> Folds:
    """Folds of about equal size; each keeps the shares of the classes.

    Raises:
        Invalid: Fewer rows than folds.
    """
    if not 2 <= folds <= data.rows:
        raise Invalid(
            f"{folds} folds of {data.rows} rows; expected from 2 to the number of rows", path="train.tune.folds"
        )
    member = np.empty(data.rows, dtype=np.int64)
    member[_by_class(data, seed)[0]] = np.arange(data.rows) % folds
    return Folds(data, [(np.flatnonzero(member != fold), np.flatnonzero(member == fold)) for fold in range(folds)])


def holdout(data: Training, seed: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Positions to fit on (in an order whose every prefix keeps the shares of the classes) and to score on."""
    order = stratified_order(data, seed)
    held = min(HOLDOUT_MOST, max(1, round(data.rows * HOLDOUT)))
    return order[:-held], np.sort(order[-held:])


def growing_holdout(data: Training, seed: int, *, prune: bool) -> Folds:
    """One hold-out, fitted on a ninth, a third, then all of the other rows, so that a bad trial ends early.

    Without pruning, or with too few rows for a ninth to say anything, only on all.
    """
    fit, held = holdout(data, seed)
    sizes = [len(fit) // 9, len(fit) // 3, len(fit)] if prune and len(fit) >= 9_000 else [len(fit)]
    return Folds(data, [(np.sort(fit[:size]), held) for size in sizes])


def stratified_order(data: Training, seed: int) -> npt.NDArray[np.intp]:
    """A shuffled order in which each class is spread evenly, so that every prefix and suffix keeps the shares."""
    rows, counts = _by_class(data, seed)
    within = np.arange(data.rows) - np.repeat(np.cumsum(counts) - counts, counts)
    return rows[np.argsort((within + 0.5) / np.repeat(counts, counts), kind="stable")]


def _by_class(data: Training, seed: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64]]:
    """Shuffled positions, sorted by class, and the rows of each class; without classes all rows are of one."""
    shuffled: npt.NDArray[np.intp] = np.random.default_rng(seed).permutation(data.rows)
    if data.task != "classification" or data.target is None:
        return shuffled, np.array([data.rows])
    codes: npt.NDArray[Any] = np.unique(data.target, return_inverse=True)[1]
    return shuffled[np.argsort(codes[shuffled], kind="stable")], np.bincount(codes)
