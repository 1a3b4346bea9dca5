"""Arrow columns as the arrays and frames that feature steps work on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from modelkeep.data.columns import Kind, type_kind


def to_frame(table: pa.Table, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Columns as the transformers see them: numbers as float64, strings as objects with the empty string for
    missing, booleans as bool (float64 when some are missing), times as datetime64[us] UTC."""
    made: dict[str, Any] = {}
    for name in table.column_names if columns is None else columns:
        column, kind = table.column(name), type_kind(table.schema.field(name).type)
        if kind == "time":
            made[name] = _micros(column).to_numpy()
        elif kind == "boolean" and not column.null_count:
            made[name] = column.to_numpy()
        elif kind == "other":
            made[name] = pd.Series(column.to_pylist(), dtype=object)
        else:
            values = plain(column, kind)
            made[name] = pd.Series(values, dtype=object) if values.dtype == object else values
    return pd.DataFrame(made, copy=False)


def plain(column: pa.ChunkedArray, kind: Kind) -> npt.NDArray[Any]:
    """One column as float64 with NaN (seconds for times) or as objects that are all ``str``; shape (n,)."""
    if kind in ("categorical", "text"):
        return strings(column)
    if kind == "time":
        micros = _micros(column).to_numpy()
        seconds = micros.astype(np.int64) / 1e6
        seconds[np.isnat(micros)] = np.nan
        return np.asarray(seconds)
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8())
    return np.asarray(column.cast(pa.float64(), safe=False).to_numpy(), dtype=np.float64)


def strings(column: pa.ChunkedArray) -> npt.NDArray[np.object_]:
    """Object array (n,) of ``str``, missing as the empty string; equal strings are one object."""
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    coded = column.unify_dictionaries().combine_chunks()
    coded = coded.combine_chunks() if isinstance(coded, pa.ChunkedArray) else coded
    names = np.array([*coded.dictionary.to_pylist(), ""], dtype=object)
    codes = coded.indices.fill_null(len(names) - 1) if coded.null_count else coded.indices
    taken: npt.NDArray[np.object_] = names[codes.to_numpy(zero_copy_only=False)]
    return taken


def _micros(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_timestamp(column.type) and column.type.tz:
        column = column.cast(pa.timestamp(column.type.unit, "UTC"), safe=False)
    return column.cast(pa.timestamp("us"), safe=False)
