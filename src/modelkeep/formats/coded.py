"""A classifier that only tells classes 0 to k - 1 apart, made to tell any labels apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, clone
from sklearn.utils import get_tags

Array = npt.NDArray[Any]


class CodedClassifier(MetaEstimatorMixin, ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Gives its classifier each label's place among the sorted labels, as XGBoost wants them.

    Args:
        estimator: Unfitted; it is not changed.

    Attributes:
        classes_: (k,) sorted labels.
        estimator_: Fitted on places (n,), int64.
    """

    def __init__(self, estimator: Any) -> None:
        self.estimator = estimator

    def fit(self, X: Any, y: Array, by: Callable[[Any, Any, Array], Any] | None = None) -> CodedClassifier:
        """Fit on a matrix (n, features) and labels (n,).

        Args:
            by: Fits the classifier on a matrix and places and returns it; None uses its own ``fit``.
        """
        self.classes_, places = np.unique(y, return_inverse=True)
        own = clone(self.estimator)
        self.estimator_ = own.fit(X, places) if by is None else by(own, X, places)
        return self

    def predict(self, X: Any) -> Array:
        """The likeliest label of each row, (n,)."""
        return np.asarray(self.classes_[self.predict_proba(X).argmax(axis=1)])

    def predict_proba(self, X: Any) -> Array:
        """(n, k), in the order of ``classes_``."""
        return np.asarray(self.estimator_.predict_proba(X))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags = get_tags(self.estimator).input_tags
        return tags
