"""How good a model is: every metric with its interval, for all rows and per slice, and the curves as data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from msgspec import Struct

from modelkeep.stats import curves
from modelkeep.stats.bootstrap import Estimate, intervals
from modelkeep.stats.metrics import METRICS, applicable
from modelkeep.stats.outputs import Outputs
from modelkeep.train.fitting import primary_metric
from modelkeep.train.slices import groups

CONFIDENCE = 0.95
MOST_CLASSES = 50
"""Classes up to which a confusion matrix and curves are kept."""


class Interval(Struct, frozen=True, kw_only=True):
    """A metric, or a difference of two. JSON-able ``stats.bootstrap.Estimate``: None where that holds NaN.

    Attributes:
        value: On the rows as they are.
        low: Lower end.
        high: Upper end.
        rows: How many rows it rests on.
    """

    value: float | None
    low: float | None
    high: float | None
    rows: int

    @classmethod
    def of(cls, estimate: Estimate) -> Interval:
        """From an estimate."""
        value, low, high = (
            float(part) if math.isfinite(part) else None for part in (estimate.value, estimate.low, estimate.high)
        )
        return cls(value=value, low=low, high=high, rows=estimate.rows)


class Slice(Struct, frozen=True, kw_only=True):
    """The rows with one value of a column.

    Attributes:
        value: The column's value as text; a range for numbers of many values.
        rows: How many.
        metrics: By name.
    """

    value: str
    rows: int
    metrics: dict[str, Interval]


class Evaluation(Struct, frozen=True, kw_only=True):
    """What is known of a model from rows it was not fitted on. JSON-able.

    Attributes:
        task: ``classification``, ``regression`` or ``anomaly``.
        metric: The one looked at first.
        rows: How many rows.
        confidence: Of every interval.
        metrics: By name, in the catalogue's order.
        slices: By column, the largest group first.
        confusion: ``classes`` and ``counts`` (rows true, columns predicted); empty unless classes were predicted.
        roc: Per scored class ``x`` (false positive rate), ``y`` (true positive rate), ``threshold``.
        pr: Per scored class ``x`` (recall), ``y`` (precision), ``threshold``.
        calibration: Per scored class ``x`` (stated), ``y`` (observed), ``rows``.
        residuals: For regression, by decile of the prediction: ``predicted`` mean, ``actual`` mean, and the
            5, 50 and 95 % quantiles of actual minus predicted.
    """

    task: str
    metric: str
    rows: int
    confidence: float
    metrics: dict[str, Interval]
    slices: dict[str, tuple[Slice, ...]] = {}
    confusion: dict[str, Any] = {}
    roc: dict[str, dict[str, list[float]]] = {}
    pr: dict[str, dict[str, list[float]]] = {}
    calibration: dict[str, dict[str, list[float]]] = {}
    residuals: dict[str, list[float]] = {}


def evaluate(
    y: npt.NDArray[Any] | None,
    outputs: Outputs,
    task: str,
    table: pa.Table | None = None,
    slices: Sequence[str] = (),
    *,
    metric: str = "",
    replicates: int = 200,
    seed: int = 0,
) -> Evaluation:
    """Evaluate answers against the truth.

    Args:
        y: Truth (n,); None for an anomaly detector without labels, which gives no metrics.
        outputs: Answers for the same rows.
        task: ``classification``, ``regression`` or ``anomaly``.
        table: The same rows, for the slice columns.
        slices: Columns to look into; groups with at least 100 rows count.
        metric: The one looked at first; empty picks by task.
        replicates: Bootstrap resamples behind each interval.
        seed: Of the resamples.

    Raises:
        Invalid: Unequal lengths, no such slice column, or a metric that is not for this task.
    """
    main = primary_metric(metric, task, None if outputs.classes is None else outputs.classes.tolist())
    if y is None:
        return Evaluation(task=task, metric=main, rows=outputs.rows, confidence=CONFIDENCE, metrics={})
    names = metric_names(task, outputs)
    by_column: dict[str, tuple[Slice, ...]] = {}
    for column in slices if table is not None else ():
        by_column[column] = tuple(
            Slice(
                value=value, rows=len(rows), metrics=_measure(names, y[rows], outputs.take(rows), replicates, seed)
            )
            for value, rows in groups(table, column).items()
        )
    return Evaluation(
        task=task,
        metric=main,
        rows=len(y),
        confidence=CONFIDENCE,
        metrics=_measure(names, y, outputs, replicates, seed),
        slices=by_column,
        **(_residuals(y, outputs) if task == "regression" else _pictures(y, outputs, task)),
    )


def metric_names(task: str, outputs: Outputs) -> list[str]:
    """The metrics these answers allow; an anomaly score ranks but is no probability, so none that need one."""
    if task != "anomaly":
        return applicable(task, outputs)
    return [
        name
        for name in applicable("classification", outputs)
        if METRICS[name].needs == "label" or name in ("roc_auc", "pr_auc")
    ]


def _measure(
    names: Sequence[str], y: npt.NDArray[Any], outputs: Outputs, replicates: int, seed: int
) -> dict[str, Interval]:
    found = intervals(names, y, outputs, confidence=CONFIDENCE, replicates=replicates, seed=seed)
    return {name: Interval.of(estimate) for name, estimate in found.items()}


def _pictures(y: npt.NDArray[Any], outputs: Outputs, task: str) -> dict[str, Any]:
    if outputs.classes is not None and len(outputs.classes) > MOST_CLASSES:
        return {}
    found: dict[str, Any] = {"confusion": curves.confusion(y, outputs)}
    if outputs.probability is not None and len(y):
        found |= {"roc": curves.roc_curve(y, outputs), "pr": curves.pr_curve(y, outputs)}
        if task == "classification":
            found["calibration"] = curves.calibration_curve(y, outputs)
    return found


def _residuals(y: npt.NDArray[Any], outputs: Outputs) -> dict[str, Any]:
    predicted = np.asarray(outputs.value, dtype=np.float64)
    actual = np.asarray(y, dtype=np.float64)
    if not len(actual):
        return {}
    parts = np.array_split(np.argsort(predicted, kind="stable"), min(10, len(actual)))
    tails = np.array([np.quantile(actual[part] - predicted[part], [0.05, 0.5, 0.95]) for part in parts])
    told = {
        "predicted": [float(predicted[part].mean()) for part in parts],
        "actual": [float(actual[part].mean()) for part in parts],
    }
    told |= dict(zip(("q05", "q50", "q95"), tails.T.tolist(), strict=True))
    return {"residuals": told}
