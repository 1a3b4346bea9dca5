"""What an estimator with scikit-learn's interface predicts."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import is_classifier

from modelkeep.core.errors import Invalid
from modelkeep.formats.signature import Label, Task


def kind_of(estimator: Any) -> tuple[Task, tuple[Label, ...]]:
    """The task of a fitted estimator and its classes, if it tells classes apart.

    Raises:
        Invalid: It cannot predict.
    """
    if not hasattr(estimator, "predict"):
        raise Invalid(f"a {type(estimator).__name__} cannot predict", hint="log a pipeline that ends in a model")
    classes = getattr(estimator, "classes_", None)
    if (is_classifier(estimator) or hasattr(estimator, "predict_proba")) and isinstance(classes, np.ndarray):
        return "classification", tuple(classes.tolist())
    if hasattr(estimator, "score_samples") and hasattr(estimator, "offset_"):
        return "anomaly", ()
    return "regression", ()
