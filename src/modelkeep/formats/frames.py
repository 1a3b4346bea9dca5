"""Checked columns as the DataFrame that training saw, and tables as columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from modelkeep.formats.batch import Batch
from modelkeep.formats.signature import Signature


def frame_of(batch: Batch) -> pd.DataFrame:
    """A batch as the DataFrame that training saw: made by Arrow in both places, so strings and holes are alike."""
    made: dict[str, pa.Array] = {}
    for field in batch.layout.signature.inputs:
        column = batch[field.name]
        if field.type == "string":
            made[field.name] = pa.array(column, pa.string())
        elif field.type == "bool" and not field.required:
            missing = np.isnan(column)
            made[field.name] = pa.array(np.where(missing, 0.0, column) != 0, mask=missing)
        else:
            made[field.name] = pa.array(column)
    frame: pd.DataFrame = pa.table(made).to_pandas(date_as_object=False)
    return frame


def columns_of(table: pa.Table, signature: Signature) -> dict[str, Any]:
    """The inputs that a table has, as arrays in the form ``formats.batch`` describes."""
    there = set(table.column_names)
    return {f.name: _column(table.column(f.name), f.type) for f in signature.inputs if f.name in there}


def _column(column: pa.ChunkedArray, kind: str) -> Any:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if kind == "timestamp":
        return (
            column.cast(pa.timestamp("us", tz=getattr(column.type, "tz", None)), safe=False)
            .to_numpy()
            .astype("datetime64[us]")
        )
    if kind == "string":
        return column.to_numpy(zero_copy_only=False)
    if column.null_count or pa.types.is_decimal(column.type) or pa.types.is_null(column.type):
        return pc.fill_null(column.cast(pa.float64()), np.nan).to_numpy()
    return column.to_numpy()
