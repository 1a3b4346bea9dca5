"""Outliers: how far out is too far, from mergeable statistics or an isolation forest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from modelkeep.data.statistics import Exact, Values
from modelkeep.spec.steps import ClipOutliers, DropOutliers

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Bounds = Mapping[str, tuple[float, float]]
"""By column the smallest and largest value that is no outlier."""

_DEFAULT = {"zscore": 3.0, "iqr": 1.5, "quantile": 0.01, "isolation_forest": 0.01}


def far_out(bounds: Bounds, table: pa.Table) -> Mask:
    """Rows with an outlier in any column; a missing value is none. Shape (rows,)."""
    touched = np.zeros(table.num_rows, dtype=bool)
    for name, (low, high) in bounds.items():
        values = numbers(table.column(name))
        touched |= (values < low) | (values > high)
    return touched


def clip(bounds: Bounds, table: pa.Table) -> tuple[pa.Table, Mask]:
    """The table with outliers moved to the nearest bound, and the rows that were. Whole numbers stay whole."""
    touched = np.zeros(table.num_rows, dtype=bool)
    held = set(table.column_names)
    for name, (low, high) in bounds.items():
        if name not in held:
            continue
        column = table.column(name)
        values = numbers(column)
        if pa.types.is_integer(column.type):
            low, high = np.ceil(low), np.floor(high)
        out = (values < low) | (values > high)
        if out.any():
            touched |= out
            made = pa.array(np.clip(values, low, high), from_pandas=True).cast(column.type)
            table = table.set_column(table.schema.get_field_index(name), name, made)
    return table, touched


def partial(column: pa.ChunkedArray, method: str) -> Exact | Values:
    """What the bounds of a column rest on; infinities are left out."""
    values = numbers(column)
    finite = np.where(np.isfinite(values), values, np.nan)
    return Exact.of(finite, squares=True) if method == "zscore" else Values.of(finite)


def bounds(step: DropOutliers | ClipOutliers, state: Any) -> tuple[float, float]:
    """The smallest and largest value that is no outlier."""
    away = limit(step)
    if isinstance(state, Exact):
        width = away * state.deviation
        return state.mean - width, state.mean + width
    if not state.total:
        return -np.inf, np.inf
    if step.method == "iqr":
        first, third = state.quantile(0.25), state.quantile(0.75)
        return first - away * (third - first), third + away * (third - first)
    return state.quantile(away), state.quantile(1 - away)


def limit(step: DropOutliers | ClipOutliers) -> float:
    """How far out is too far, or the share of rows."""
    return _DEFAULT[step.method] if step.limit is None else step.limit


def numbers(column: pa.ChunkedArray) -> Floats:
    """The column as float64, missing as NaN."""
    return np.asarray(column.cast(pa.float64(), safe=False).to_numpy(), dtype=np.float64)


def block(table: pa.Table, columns: tuple[str, ...], centers: Floats | None = None) -> Floats:
    """Columns side by side, what is not finite as NaN or as its column's center; shape (rows, columns)."""
    found = np.column_stack([numbers(table.column(name)) for name in columns])
    finite = np.where(np.isfinite(found), found, np.nan)
    return finite if centers is None else np.where(np.isnan(finite), centers, finite)


def forest(rows: Floats) -> Any:
    """Random splits that isolate outliers soon: Liu, Ting and Zhou (2008), "Isolation Forest"."""
    from sklearn.ensemble import IsolationForest

    return IsolationForest(random_state=0).fit(rows)
