"""Which rows are fitted on and which are held out while searching."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from modelkeep.core.errors import Invalid
from modelkeep.train.training import Training

Fold = tuple[Training, Training]
"""Rows to fit on, rows to score on."""

HOLDOUT = 0.2
HOLDOUT_MOST = 50_000
"""Rows that tell models apart well enough; more only cost time."""


def cross_validation(data: Training, folds: int, seed: int) -> list[Fold]:
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
    return [
        (data.take(np.flatnonzero(member != fold)), data.take(np.flatnonzero(member == fold)))
        for fold in range(folds)
    ]


def holdout(data: Training, seed: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Positions to fit on (in an order whose every prefix keeps the shares of the classes) and to score on."""
    order = stratified_order(data, seed)
    held = min(HOLDOUT_MOST, max(1, round(data.rows * HOLDOUT)))
    return order[:-held], np.sort(order[-held:])


def growing_holdout(data: Training, seed: int, *, prune: bool) -> list[Fold]:
    """One hold-out, fitted on a ninth, a third, then all of the other rows, so that a bad trial ends early.

    Without pruning, or with too few rows for a ninth to say anything, only on all.
    """
    fit, held = holdout(data, seed)
    test = data.take(held)
    sizes = [len(fit) // 9, len(fit) // 3, len(fit)] if prune and len(fit) >= 9_000 else [len(fit)]
    return [(data.take(np.sort(fit[:size])), test) for size in sizes]


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
