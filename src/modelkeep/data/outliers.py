"""Outliers: how far out is too far, from mergeable statistics or an isolation forest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from modelkeep.data.statistics import Moments, Values
from modelkeep.spec.steps import ClipOutliers, DropOutliers

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_DEFAULT = {"zscore": 3.0, "iqr": 1.5, "quantile": 0.01, "isolation_forest": 0.01}


def far_out(step: DropOutliers | ClipOutliers, table: pa.Table, columns: Sequence[str]) -> Mask:
    """Rows with an outlier in any column; a missing value is none. Shape (rows,)."""
    values = {name: _values(table.column(name)) for name in columns}
    if step.method == "isolation_forest":
        return _isolated(np.column_stack(list(values.values())), _limit(step))
    touched = np.zeros(table.num_rows, dtype=bool)
    for column in values.values():
        low, high = bounds(step, column)
        touched |= (column < low) | (column > high)
    return touched


def clip(step: ClipOutliers, table: pa.Table, columns: Sequence[str]) -> tuple[pa.Table, Mask]:
    """The table with outliers moved to the nearest bound, and the rows that were. Whole numbers stay whole."""
    touched = np.zeros(table.num_rows, dtype=bool)
    for name in columns:
        column = table.column(name)
        values = _values(column)
        low, high = bounds(step, values)
        if pa.types.is_integer(column.type):
            low, high = np.ceil(low), np.floor(high)
        out = (values < low) | (values > high)
        if out.any():
            touched |= out
            made = pa.array(np.clip(values, low, high), from_pandas=True).cast(column.type)
            table = table.set_column(table.schema.get_field_index(name), name, made)
    return table, touched


def bounds(step: DropOutliers | ClipOutliers, values: Floats) -> tuple[float, float]:
    """The smallest and largest value that is no outlier; infinities are left out of the statistics."""
    limit = _limit(step)
    finite = np.where(np.isfinite(values), values, np.nan)
    if step.method == "zscore":
        found = Moments.of(finite.reshape(-1, 1))
        away = limit * float(np.sqrt(found.variance[0]))
        return float(found.mean[0]) - away, float(found.mean[0]) + away
    counted = Values.of(finite)
    if not counted.total:
        return -np.inf, np.inf
    if step.method == "iqr":
        first, third = counted.quantile(0.25), counted.quantile(0.75)
        return first - limit * (third - first), third + limit * (third - first)
    return counted.quantile(limit), counted.quantile(1 - limit)


def _limit(step: DropOutliers | ClipOutliers) -> float:
    return _DEFAULT[step.method] if step.limit is None else step.limit


def _values(column: pa.ChunkedArray) -> Floats:
    return np.asarray(column.cast(pa.float64(), safe=False).to_numpy(), dtype=np.float64)


def _isolated(block: Floats, share: float) -> Mask:
    """The share of rows that random splits isolate soonest: Liu, Ting and Zhou (2008), "Isolation Forest"."""
    from sklearn.ensemble import IsolationForest

    finite = np.where(np.isfinite(block), block, np.nan)
    center = np.nanmedian(finite, axis=0) if len(finite) else np.zeros(block.shape[1])
    filled = np.where(np.isnan(finite), np.nan_to_num(center), finite)
    scores = IsolationForest(random_state=0).fit(filled).score_samples(filled)
    made = np.zeros(len(block), dtype=bool)
    made[np.argsort(scores, kind="stable")[: round(len(block) * share)]] = True
    return made
