"""Filling missing values while cleaning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from modelkeep.core.errors import Invalid
from modelkeep.data.columns import unknown_column
from modelkeep.data.statistics import Moments, Values
from modelkeep.spec.steps import FillMissing

Mask = npt.NDArray[np.bool_]


def fill(
    step: FillMissing, table: pa.Table, columns: Sequence[str], time: str, path: str
) -> tuple[pa.Table, Mask]:
    """The table with missing values (null or NaN) filled, and the rows that were.

    A mean or median over whole numbers makes the column one of floats.

    Raises:
        Invalid: A strategy that does not fit the column, or a column without any value.
    """
    touched = np.zeros(table.num_rows, dtype=bool)
    order = _order(table, time, path) if step.strategy == "forward" else None
    for name in columns:
        column = table.column(name)
        gone = np.asarray(column.is_null(nan_is_null=True).to_numpy())
        if not gone.any():
            continue
        if pa.types.is_floating(column.type):
            column = pc.if_else(pa.array(gone), pa.scalar(None, column.type), column)
        if order is not None:
            back = np.empty(len(order), dtype=np.int64)
            back[order] = np.arange(len(order))
            made = pc.fill_null_forward(column.take(pa.array(order))).take(pa.array(back))
            gone &= ~made.is_null().to_numpy()
        else:
            value = step.value if step.strategy == "constant" else _statistic(step, column, name, path)
            made = _filled(column, value, name, path)
        touched |= gone
        table = table.set_column(table.schema.get_field_index(name), name, made)
    return table, touched


def _statistic(step: FillMissing, column: pa.ChunkedArray, name: str, path: str) -> Any:
    found = column.drop_null()
    if not len(found):
        raise Invalid(f"{name!r} has no value at all, so it has no {step.strategy}", path=path, hint="exclude it")
    if step.strategy == "mode":
        counts = pc.value_counts(found)
        most = counts.filter(pc.equal(counts.field("counts"), pc.max(counts.field("counts")))).field("values")
        return min(most.to_pylist())
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise Invalid(f"{name!r} holds no numbers, so it has no {step.strategy}", path=path, hint="use mode")
    values = found.cast(pa.float64()).to_numpy()
    return (
        float(Moments.of(values.reshape(-1, 1)).mean[0])
        if step.strategy == "mean"
        else Values.of(values).quantile(0.5)
    )


def _filled(column: pa.ChunkedArray, value: Any, name: str, path: str) -> pa.ChunkedArray:
    if isinstance(value, float) and pa.types.is_integer(column.type):
        column = column.cast(pa.float64())
    try:
        return pc.fill_null(column, pa.scalar(value, column.type))
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError) as error:
        raise Invalid(
            f"{value!r} cannot fill {name!r}, which is of type {column.type}", path=f"{path}.value"
        ) from error


def _order(table: pa.Table, time: str, path: str) -> npt.NDArray[np.int64]:
    if not time:
        raise Invalid("filling forward needs the order of time; name the column under data.time", path=path)
    if time not in table.column_names:
        raise unknown_column(time, table.column_names, "data.time")
    rows = pa.table({"time": table.column(time), "row": np.arange(table.num_rows)})
    order: npt.NDArray[np.int64] = pc.sort_indices(
        rows, sort_keys=[("time", "ascending"), ("row", "ascending")]
    ).to_numpy()
    return order
