"""Groups of rows by the values of a column: where a good average may hide a bad model."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from modelkeep.core.errors import Invalid

ENOUGH = 100
"""Fewest rows of a group that is looked at."""
MOST = 100
"""Groups kept per column, the largest first."""
BINS = 4

Rows = npt.NDArray[np.intp]


def groups(table: pa.Table, column: str, *, enough: int = ENOUGH) -> dict[str, Rows]:
    """Positions of the rows with each value of a column, the largest group first.

    Numbers of more than ``MOST`` different values, and times, are cut at their quartiles. Missing values are a
    group of their own, named ``(missing)``.

    Args:
        table: Holds the column.
        column: Its name.
        enough: Groups with fewer rows are left out.

    Raises:
        Invalid: No such column.
    """
    if column not in table.column_names:
        raise Invalid(
            f"no column {column!r} to slice by; there are {', '.join(table.column_names[:50])}", path="gates"
        )
    names, codes = _coded(table.column(column))
    order = np.argsort(codes, kind="stable")
    counts = np.bincount(codes, minlength=len(names))
    ends = np.cumsum(counts)
    largest = sorted(range(len(names)), key=lambda code: (-counts[code], names[code]))[:MOST]
    return {
        names[code]: np.sort(order[ends[code] - counts[code] : ends[code]])
        for code in largest
        if counts[code] >= enough
    }


def _coded(column: pa.ChunkedArray) -> tuple[list[str], npt.NDArray[np.int64]]:
    kind = column.type
    if pa.types.is_temporal(kind):
        column = column.cast(pa.int32() if pa.types.is_date32(kind) or pa.types.is_time32(kind) else pa.int64())
        return _quartiles(column)
    number = pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind)
    if number and pc.count_distinct(column).as_py() > MOST:
        return _quartiles(column)
    flat = column.combine_chunks()
    coded = flat if pa.types.is_dictionary(flat.type) else pc.dictionary_encode(flat, null_encoding="mask")
    if isinstance(coded, pa.ChunkedArray):
        coded = coded.unify_dictionaries().combine_chunks()
    names = [_name(value) for value in coded.dictionary.to_pylist()]
    codes = pc.fill_null(coded.indices, len(names)).to_numpy(zero_copy_only=False)
    return [*names, "(missing)"], codes.astype(np.int64)


def _quartiles(column: pa.ChunkedArray) -> tuple[list[str], npt.NDArray[np.int64]]:
    values = column.cast(pa.float64(), safe=False).to_numpy()
    known = np.isfinite(values)
    if not known.any():
        return ["(missing)"], np.zeros(len(values), dtype=np.int64)
    edges = np.unique(np.quantile(values[known], np.linspace(0, 1, BINS + 1)))
    codes = np.searchsorted(edges[1:-1], values, "right")
    names = [f"{low:g} to {high:g}" for low, high in pairwise(edges)] or [f"{edges[0]:g}"]
    return [*names, "(missing)"], np.where(known, codes, len(names)).astype(np.int64)


def _name(value: object) -> str:
    return "(missing)" if isinstance(value, float) and math.isnan(value) else str(value)
