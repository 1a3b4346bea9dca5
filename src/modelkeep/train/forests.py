"""Forests whose trees grow in parts, on any engine, and are merged into one.

Each tree has a seed of its own, drawn in order from the forest's (scikit-learn, ``BaseForest.fit``). A part draws
those of the trees before its own too, as a forest that is grown further does, so the merged forest is, tree for
tree, the one that a single fit grows. Every worker holds all training rows: it is the trees that are divided.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

from sklearn.base import clone

from modelkeep.core.ports import Engine, Progress

TASKS = 4
"""Parts for each slot of the engine, so that a slow worker holds up little."""


def divides(estimator: Any) -> bool:
    """Whether an unfitted estimator's trees can grow apart; scores out of the bag need all of them at once."""
    from sklearn import ensemble  # slow to import, and most estimators are none

    names = ("RandomForestClassifier", "RandomForestRegressor", "ExtraTreesClassifier", "ExtraTreesRegressor")
    forests = [getattr(ensemble, name) for name in names]  # not what users derive from them, with a fit of its own
    return type(estimator) in forests and estimator.n_estimators > 1 and not estimator.oob_score


def grow(estimator: Any, matrix: Any, target: Any, engine: Engine, progress: Progress | None) -> Any:
    """The fitted forest.

    Args:
        estimator: Unfitted; it is not changed.
        matrix: (n, features), dense or sparse.
        target: (n,).

    Raises:
        Exception: Whatever scikit-learn's fit raises, and what ``Engine.map`` does.
    """
    count = estimator.n_estimators
    parts = min(count, TASKS * engine.slots())
    bounds = [count * at // parts for at in range(parts + 1)]
    shared = engine.put((estimator, matrix, target))
    spans = pairwise(bounds)
    grown = list(engine.map(partial(_grown, shared), spans, progress=progress, name="trees"))
    forest = grown[0]
    forest.estimators_ = [tree for part in grown for tree in part.estimators_]
    return forest.set_params(
        **{name: getattr(estimator, name) for name in ("n_estimators", "n_jobs", "warm_start")}
    )


def _grown(shared: Callable[[], tuple[Any, Any, Any]], span: tuple[int, int]) -> Any:
    """A forest that has only the trees of a span."""
    estimator, matrix, target = shared()
    begin, end = span
    forest = clone(estimator).set_params(n_estimators=end, n_jobs=1, warm_start=True)
    forest.estimators_ = [None] * begin
    with warnings.catch_warnings():
        # weights "balanced" are of all rows here, as they are in a single fit
        warnings.filterwarnings("ignore", message="class_weight presets")
        forest.fit(matrix, target)
    forest.estimators_ = forest.estimators_[begin:]
    return forest
