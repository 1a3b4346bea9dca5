"""Filling missing values while cleaning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from modelkeep.core.errors import Invalid
from modelkeep.data.statistics import Exact, Values
from modelkeep.spec.steps import FillMissing

Mask = npt.NDArray[np.bool_]
State = Any


def fill(
    table: pa.Table, values: Mapping[str, Any], rows: Mapping[str, pa.Array] | None, path: str
) -> tuple[pa.Table, Mask]:
    """The table with missing values (null or NaN) filled, and the rows that were.

    Args:
        values: By column what to fill with; all pieces are brought to the type this makes.
        rows: By column a value for each missing one instead, in order of the rows; null where there is none.

    Raises:
        Invalid: A value that does not fit its column.
    """
    touched = np.zeros(table.num_rows, dtype=bool)
    for name, value in values.items():
        column = table.column(name)
        gone = np.asarray(column.is_null(nan_is_null=True).to_numpy())
        if gone.any() and pa.types.is_floating(column.type):
            column = pc.if_else(pa.array(gone), pa.scalar(None, column.type), column)
        if rows is not None:
            made = pc.replace_with_mask(column.combine_chunks(), pa.array(gone), rows[name].cast(column.type))
            gone &= ~np.asarray(made.is_null().to_numpy(zero_copy_only=False))
        else:
            made = _filled(column, value, name, path)
        touched |= gone
        table = table.set_column(table.schema.get_field_index(name), name, made)
    return table, touched


def partial(column: pa.ChunkedArray, strategy: str) -> tuple[int, State]:
    """How many values are missing, and what the strategy needs of the others; None when they have no such."""
    gone = int(pc.sum(column.is_null(nan_is_null=True)).as_py() or 0)
    if strategy == "constant":
        return gone, None
    if pa.types.is_floating(column.type) and gone:
        column = pc.if_else(column.is_null(nan_is_null=True), pa.scalar(None, column.type), column)
    found = column.drop_null() if gone else column
    if strategy == "mode":
        counts = pc.value_counts(found)
        return gone, Counter(
            dict(zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True))
        )
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        return gone, None
    values = found.cast(pa.float64()).to_numpy()
    return gone, Exact.of(values) if strategy == "mean" else Values.of(values)


def merge(a: tuple[int, State], b: tuple[int, State]) -> tuple[int, State]:
    """Of both pieces."""
    left, right = a[1], b[1]
    if left is None or right is None:
        return a[0] + b[0], left or right
    return a[0] + b[0], left + right if isinstance(left, Counter) else left.merge(right)


def statistic(step: FillMissing, state: State, name: str, path: str) -> Any:
    """What missing values of a column are filled with. Raises ``Invalid`` where there is no such value."""
    if state is None:
        raise Invalid(f"{name!r} holds no numbers, so it has no {step.strategy}", path=path, hint="use mode")
    if isinstance(state, Counter):
        empty = not state
    else:
        empty = not (state.count if isinstance(state, Exact) else state.total)
    if empty:
        raise Invalid(f"{name!r} has no value at all, so it has no {step.strategy}", path=path, hint="exclude it")
    if isinstance(state, Counter):
        most = max(state.values())
        return min(value for value, count in state.items() if count == most)
    return float(state.mean) if isinstance(state, Exact) else state.quantile(0.5)


def _filled(column: pa.ChunkedArray, value: Any, name: str, path: str) -> pa.ChunkedArray:
    if isinstance(value, float) and pa.types.is_integer(column.type):
        column = column.cast(pa.float64())
    try:
        return pc.fill_null(column, pa.scalar(value, column.type))
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError) as error:
        raise Invalid(
            f"{value!r} cannot fill {name!r}, which is of type {column.type}", path=f"{path}.value"
        ) from error
