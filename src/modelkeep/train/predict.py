"""What a fitted model says about rows, as the arrays that metrics take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pyarrow as pa
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import Pipeline

from modelkeep.core.errors import ModelkeepError, UserCodeFailed
from modelkeep.stats.outputs import Outputs
from modelkeep.train.encoding import refused, to_frame, transformed
from modelkeep.train.task import Class

CHUNK = 250_000
"""Rows transformed and predicted at once, to bound memory."""


def outputs(
    pipeline: Any, table: pa.Table, inputs: Sequence[str], task: str, classes: Sequence[Class] | None = None
) -> Outputs:
    """Predict a table.

    Args:
        pipeline: A fitted scikit-learn Pipeline (or anything with its methods) of a DataFrame.
        table: At least the columns ``inputs``.
        inputs: In the order of fitting.
        task: ``classification``, ``regression`` or ``anomaly``.
        classes: Sorted labels the model was fitted on; the columns of ``probability`` follow them.

    Returns:
        Classification: ``label`` (n,), ``probability`` (n, K) where the model gives any, ``classes`` (K,).
        Regression: ``value`` (n,). Anomaly: ``label`` (n,) True where anomalous, and the anomaly score (higher is
        more anomalous) both as ``value`` (n,) and as the ``probability`` (n,) that rankings go by.

    Raises:
        Invalid: Some rows hold what a feature step or the model does not take; names columns and rows.
        UserCodeFailed: The model, or a function of the user's, raised otherwise.
    """
    starts = range(0, max(1, table.num_rows), CHUNK)
    parts = [_of_piece(pipeline, table.slice(start, CHUNK), inputs, task, classes, start) for start in starts]
    return parts[0] if len(parts) == 1 else joined(parts)


def _of_piece(
    pipeline: Any, table: pa.Table, inputs: Sequence[str], task: str, classes: Sequence[Class] | None, start: int
) -> Outputs:
    try:
        if isinstance(pipeline, Pipeline) and len(pipeline) == 2 and isinstance(pipeline[0], ColumnTransformer):
            return of_estimator(pipeline[1], transformed(pipeline[0], table, inputs), task, classes)
        return of_estimator(pipeline, to_frame(table, inputs), task, classes)
    except ModelkeepError:
        raise
    except Exception as error:
        told = refused(error, pipeline, table, inputs, start)
        if isinstance(told, ModelkeepError):
            raise told from error
        text = f"{type(error).__name__}: {error}"
        raise UserCodeFailed("the model could not predict these rows", traceback=text) from error


def of_estimator(estimator: Any, X: Any, task: str, classes: Sequence[Class] | None = None) -> Outputs:
    """The same for one block of rows in whatever form the estimator takes."""
    if task == "regression":
        return Outputs(value=np.asarray(estimator.predict(X), dtype=np.float64).reshape(-1))
    if task == "anomaly":
        score = -np.asarray(estimator.score_samples(X), dtype=np.float64)
        anomalous = score > -_offset(estimator)
        return Outputs(label=anomalous, probability=score, classes=np.array([False, True]), value=score)
    known = np.asarray(classes if classes is not None else estimator.classes_)
    if not hasattr(estimator, "predict_proba"):
        return Outputs(label=np.asarray(estimator.predict(X)).reshape(-1), classes=known)
    probability = np.asarray(estimator.predict_proba(X))
    own = np.asarray(getattr(estimator, "classes_", known))
    if len(own) != len(known):  # a fold may lack a rare class
        full = np.zeros((len(probability), len(known)), probability.dtype)
        full[:, np.searchsorted(known, own)] = probability
        probability = full
    return Outputs(label=known[probability.argmax(axis=1)], probability=probability, classes=known)


def _offset(estimator: Any) -> float:
    """Where the estimator draws the line between normal and anomalous, on the scale of ``score_samples``."""
    last = estimator[-1] if hasattr(estimator, "steps") else estimator
    return float(getattr(last, "offset_", -0.5))


def joined(parts: Sequence[Outputs]) -> Outputs:
    """The answers of pieces of a table as those of the whole."""
    columns: dict[str, Any] = {}
    for name in (field.name for field in fields(Outputs) if field.name != "classes"):
        first = getattr(parts[0], name)
        columns[name] = None if first is None else np.concatenate([getattr(part, name) for part in parts])
    return Outputs(**columns, classes=parts[0].classes)
