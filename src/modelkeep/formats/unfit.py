"""Why a fitted pipeline refuses rows: which column, which rows, and what of them. Looked for only once it did.

scikit-learn says ``Input X contains NaN`` of a matrix; who sent the rows knows columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import Pipeline

from modelkeep.core.errors import Invalid, Problem
from modelkeep.formats.steps import columns_of

SHOWN = 5
"""Rows named of a column."""

_SAID = {"KBinsDiscretizer": "bin", "OneHotEncoder": "encode", "OrdinalEncoder": "encode"}


@dataclass(frozen=True)
class Unfit:
    """Values of a column that a step does not take.

    Attributes:
        column: An input, or the feature that was made of some.
        rows: Their places, rising.
        what: Is wrong with them.
        hint: What to do.
    """

    column: str
    rows: npt.NDArray[np.intp]
    what: str
    hint: str


def found(pipeline: Any, frame: pd.DataFrame) -> list[Unfit]:
    """What of a frame a pipeline of feature steps and a model does not take; nothing where it is not known.

    Args:
        pipeline: Fitted: a ColumnTransformer, or one and an estimator.
        frame: The rows that it refused.
    """
    features, model = pipeline, None
    if isinstance(pipeline, Pipeline):
        features, model = pipeline[0], pipeline[-1]
    if not isinstance(features, ColumnTransformer):
        return [] if model is None else list(_not_finite(frame.columns, frame, model))
    refused = of_branches(features.transformers_, frame)
    if refused or model is None:
        return refused
    try:
        return list(_not_finite(features.get_feature_names_out(), features.transform(frame), model))
    except Exception:  # it has been refused already, with an error of its own
        return []


def of_branches(branches: Iterable[tuple[str, Any, Any]], frame: pd.DataFrame) -> list[Unfit]:
    """The same of feature steps alone, as a ColumnTransformer names them: name, fitted transformer, columns."""
    return [unfit for _, part, names in branches for unfit in _of_branch(part, frame, names)]


def told(unfit: Sequence[Unfit], rows: int, start: int = 0) -> Invalid:
    """The error of rows of a table.

    Args:
        unfit: At least one.
        rows: Of the table, so many were looked at.
        start: The place in the table of the first one.
    """
    problems = []
    for one in unfit:
        places = ", ".join(str(row + start) for row in one.rows[:SHOWN].tolist())
        more = ", ..." if len(one.rows) > SHOWN else ""
        problems.append(
            Problem("features", f"{one.column!r} {one.what}, in {len(one.rows)} of {rows} rows ({places}{more})")
        )
    return Invalid(problems, hint=unfit[0].hint)


def told_of_request(unfit: Sequence[Unfit], most: int) -> Invalid:
    """The error of a request: a problem for each value, at most ``most``."""
    problems = [Problem(f"inputs.{one.column}[{row}]", one.what) for one in unfit for row in one.rows.tolist()]
    return Invalid(problems[:most])


def _of_branch(part: Any, frame: pd.DataFrame, columns: Any) -> Iterator[Unfit]:
    if isinstance(part, str):
        return
    names = [columns] if isinstance(columns, str) else list(columns)
    block: Any = frame[columns]
    for step in [step for _, step in part.steps] if isinstance(part, Pipeline) else [part]:
        try:
            after = step.transform(block)
        except Exception:  # whatever it was, the values say why
            yield from _of_step(step, block, names)
            return
        names = [str(name) for name in step.get_feature_names_out(names)]
        block = after


def _of_step(step: Any, block: Any, names: Sequence[str]) -> Iterator[Unfit]:
    said = _SAID.get(type(step).__name__, type(step).__name__)
    strict = getattr(step, "handle_unknown", "") == "error"
    for place, (name, column) in enumerate(zip(names, columns_of(block), strict=True)):
        if strict:
            known = np.asarray(step.categories_[place])
            wrong = ~pd.Series(np.asarray(column)).isin(known).to_numpy()
            if wrong.any():
                what = f"is {_shown(np.asarray(column)[wrong][0])}, which was never seen in training"
                hint = "say unseen: ignore, or filter or correct those rows under data.clean"
                yield Unfit(name, np.flatnonzero(wrong), what, hint)
        elif len(rows := np.flatnonzero(pd.isna(np.asarray(column)))):
            hint = f"add an impute step for {name!r} before it, or drop_missing under data.clean"
            yield Unfit(name, rows, f"is missing, which {said} does not take", hint)


def _shown(value: Any) -> str:
    if pd.isna(value) or value == "":
        return "missing"
    return repr(value if isinstance(value, str) else float(value))


def _not_finite(names: Any, matrix: Any, model: Any) -> Iterator[Unfit]:
    """Of the features that the model saw."""
    if sparse.issparse(matrix):
        matrix = matrix.tocsc()
        wrong = [np.sort(c.indices[~np.isfinite(c.data)]) for c in (matrix[:, i] for i in range(matrix.shape[1]))]
    else:
        wrong = [np.flatnonzero(_wrong(column)) for column in columns_of(matrix)]
    for name, rows in zip(names, wrong, strict=True):
        if len(rows):
            yield Unfit(
                str(name),
                rows.astype(np.intp),
                f"is missing or infinite, which {type(model).__name__} does not take",
                f"add an impute step for {str(name)!r}, or use hist_gradient_boosting, which takes missing values",
            )


def _wrong(column: Any) -> npt.NDArray[np.bool_]:
    values = np.asarray(column)
    return ~np.isfinite(values) if values.dtype.kind == "f" else np.asarray(pd.isna(values))
