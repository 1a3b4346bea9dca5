"""Turning what an estimator raises into an error that names the field and says what to do."""

from __future__ import annotations

import re
import traceback
from typing import Any

import numpy as np
from scipy import sparse

from modelkeep.core.errors import Invalid, ModelkeepError, Unavailable, UserCodeFailed
from modelkeep.train.algorithms import Algorithm
from modelkeep.train.training import Training

_PARAMETER = re.compile(r"The '(\w+)' parameter of (\w+)")


def explain(error: Exception, algorithm: Algorithm, data: Training) -> ModelkeepError:
    """The error to raise in place of ``error``, which came out of ``estimator.fit``.

    Rows are looked at only now, so a fit that works pays nothing for it.
    """
    if isinstance(error, ModelkeepError):
        return error
    if isinstance(error, MemoryError):
        return Unavailable(
            f"{algorithm.name} ran out of memory on {data.rows} rows x {data.matrix.shape[1]} features",
            hint="use fewer features or rows, or a leaner algorithm such as sgd or hist_gradient_boosting",
        )
    text = str(error)
    named = _PARAMETER.search(text)
    if named:
        return Invalid(_one_line(text), path=f"train.params.{named[1]}")
    if isinstance(error, ValueError):
        unfit = _unfit_columns(data)
        if unfit and any(word in text for word in ("NaN", "infinity", "missing")):
            return Invalid(
                f"{algorithm.name} does not take missing or infinite values, and there are some in {unfit}",
                path="features",
                hint="add an impute step for those columns, or use hist_gradient_boosting, which takes them",
            )
        if "Negative values" in text:
            return Invalid(
                f"{algorithm.name} counts, so it does not take negative values",
                path="features",
                hint="use scale: {method: minmax}, or gaussian_naive_bayes",
            )
    frames = traceback.format_list(traceback.extract_tb(error.__traceback__)[-3:])
    if algorithm.family.classes:
        return Invalid(f"{algorithm.name} could not be fitted: {_one_line(text)}", path="train")
    return UserCodeFailed(
        f"fitting {algorithm.name} failed", traceback="".join(frames) + f"{type(error).__name__}: {text}"
    )


def _unfit_columns(data: Training) -> str:
    matrix = data.matrix
    if sparse.issparse(matrix):
        matrix = matrix.tocsc()
        counts = np.array(
            [
                np.count_nonzero(~np.isfinite(matrix.data[a:b]))
                for a, b in zip(matrix.indptr, matrix.indptr[1:], strict=False)
            ]
        )
    elif matrix.dtype.kind == "f":
        counts = np.count_nonzero(~np.isfinite(matrix), axis=0)
    else:
        return ""
    bad = np.flatnonzero(counts)
    names = _feature_names(data.features, matrix.shape[1])
    shown = ", ".join(f"{names[i]} ({counts[i]} rows)" for i in bad[:5])
    return shown + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")


def _feature_names(transformer: Any, count: int) -> list[str]:
    try:
        return [str(name) for name in transformer.get_feature_names_out()]
    except (AttributeError, ValueError, TypeError):
        return [f"feature {index}" for index in range(count)]


def _one_line(text: str) -> str:
    return " ".join(text.split("\n", maxsplit=1)[0].split())
