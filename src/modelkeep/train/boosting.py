"""Boosted trees of XGBoost and LightGBM, fitted data-parallel where the engine's libraries can.

Each worker holds a share of the rows; what is added up between them in every round is the histograms of gradients
(Chen and Guestrin 2016, section 3; Ke et al. 2017), so the trees differ from those of one machine only by how
columns are cut into bins and by the order of sums.
"""

from __future__ import annotations

from typing import Any

from modelkeep.core.ports import Boosts, Engine
from modelkeep.formats.coded import CodedClassifier

_CLASSES = {"xgboost": ("XGBClassifier", "XGBRegressor"), "lightgbm": ("LGBMClassifier", "LGBMRegressor")}


def divides(estimator: Any) -> bool:
    """Whether an unfitted estimator is one whose rows can be divided; not what users derive from them."""
    kind = type(estimator.estimator if isinstance(estimator, CodedClassifier) else estimator)
    return kind.__name__ in _CLASSES.get(kind.__module__.partition(".")[0], ())


def grow(estimator: Any, matrix: Any, target: Any, engine: Engine) -> Any:
    """The fitted estimator, of the same class.

    Args:
        estimator: Unfitted.
        matrix: (n, features), dense or sparse.
        target: (n,).

    Raises:
        Refused: A worker has no such library, or another version.
        Unavailable: Workers were lost again and again.
        Exception: Whatever the library's fit raises.
    """
    if not isinstance(engine, Boosts):
        return estimator.fit(matrix, target)
    if isinstance(estimator, CodedClassifier):
        return estimator.fit(matrix, target, by=engine.boost)
    return engine.boost(estimator, matrix, target)
