"""The names a declaration may use, and the nearest one to a name it may not."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

TASKS = ("classification", "regression", "anomaly")

_BOTH = frozenset({"classification", "regression"})
_CLASSES = frozenset({"classification"})
_NUMBERS = frozenset({"regression"})

ALGORITHM_TASKS: dict[str, frozenset[str]] = {
    "auto": _BOTH,
    "linear": _NUMBERS,
    "ridge": _NUMBERS,
    "lasso": _NUMBERS,
    "logistic_regression": _CLASSES,
    "sgd": _BOTH,
    "linear_out_of_core": _BOTH,
    "multinomial_naive_bayes": _CLASSES,
    "gaussian_naive_bayes": _CLASSES,
    "linear_svm": _BOTH,
    "svm": _BOTH,
    "decision_tree": _BOTH,
    "random_forest": _BOTH,
    "extra_trees": _BOTH,
    "gradient_boosting": _BOTH,
    "hist_gradient_boosting": _BOTH,
    "xgboost": _BOTH,
    "lightgbm": _BOTH,
    "knn": _BOTH,
    "mlp": _BOTH,
    "isolation_forest": frozenset({"anomaly"}),
}
"""What each short name can be trained for."""

ALGORITHMS = tuple(ALGORITHM_TASKS)

CLASSIFICATION_METRICS = (
    "accuracy",
    *(
        f"{name}{average}"
        for name in ("precision", "recall", "f1")
        for average in ("", "_macro", "_micro", "_weighted")
    ),
    "balanced_accuracy",
    "mcc",
    "roc_auc",
    "pr_auc",
    "log_loss",
    "brier",
    "calibration_error",
    "top_2_accuracy",
    "top_3_accuracy",
    "top_5_accuracy",
)
REGRESSION_METRICS = ("mse", "rmse", "mae", "mape", "r2", "pinball")
METRICS = (*CLASSIFICATION_METRICS, *REGRESSION_METRICS)

LATENCIES = ("latency_ms.p50", "latency_ms.p95", "latency_ms.p99")
"""Time of one prediction in milliseconds, at a percentile; known for a package and for live traffic."""

QUANTITIES = ("error_rate", *LATENCIES)
"""What is measured of live traffic."""

COLUMN_GROUPS = ("numeric", "categorical", "text", "all")
CAST_TYPES = ("int", "float", "string", "bool", "timestamp", "date")
DATE_PARTS = ("year", "month", "day", "weekday", "hour", "minute", "dayofyear")
COLUMN_TYPES = ("int", "float", "string", "bool", "timestamp", "date")
ENGINES = ("local", "local://", "ray", "ray://", "dask://", "spark", "spark://")


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The name most like ``name`` (Ratcliff-Obershelp, as ``difflib``), or None when nothing is like it."""
    known = list(names)
    # Long nonsense cannot be near anything, and difflib is quadratic.
    if len(name) > 200:
        return None
    found = get_close_matches(name.lower(), [item.lower() for item in known], n=1, cutoff=0.6)
    if not found:
        return None
    return next(item for item in known if item.lower() == found[0])


def unknown(name: str, names: Iterable[str], what: str) -> str:
    """One sentence about a name that is not known: what was found, the nearest, what would be right."""
    known = list(names)
    near = nearest(name, known)
    shown = name if len(name) <= 80 else name[:77] + "..."
    if near is not None:
        return f"{shown!r} - did you mean {near!r}?"
    listed = ", ".join(known[:24]) + (", ..." if len(known) > 24 else "")
    return f"{shown!r} is not {what}; expected {'one of ' if len(known) > 1 else ''}{listed}"
