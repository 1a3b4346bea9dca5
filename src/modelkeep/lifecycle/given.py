"""Rows of a table as a model's signature takes them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from modelkeep.core.errors import Invalid
from modelkeep.formats.signature import Signature


def as_array(column: pa.ChunkedArray) -> Any:
    """A column as the signature's check takes it: numbers with NaN for gaps, times, objects for texts.

    Lists, or lists of lists, are one array (rows, ...) where all are of one length.
    """
    kind = column.type
    if _is_list(kind):
        return _tensor(column)
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return column.cast(pa.timestamp("us")).to_numpy()
    if pa.types.is_boolean(kind) and column.null_count:
        return column.cast(pa.int8()).cast(pa.float64()).to_numpy()
    if pa.types.is_null(kind):
        return np.full(len(column), None, dtype=object)
    return column.to_numpy()


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _tensor(column: pa.ChunkedArray) -> Any:
    """Rows of lists as one array; as objects where they are of several lengths, which no signature takes."""
    values = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    shape = [len(values)]
    while _is_list(values.type):
        lengths = pc.unique(pc.list_value_length(values)).to_pylist()
        if len(lengths) > 1 or None in lengths:
            found = np.empty(len(column), dtype=object)
            found[:] = column.to_pylist()
            return found
        shape.append(lengths[0] if lengths else 0)
        values = values.flatten()
    return as_array(pa.chunked_array([values])).reshape(shape)


def check_given(signature: Signature, names: Collection[str]) -> None:
    """Refuse rows for a model of which nobody knows what rows it takes. Raises ``Invalid``."""
    (request,) = signature.inputs[:1]
    if signature.verbatim and request.name not in names:
        raise Invalid(
            "the model has no signature that says which rows it takes, so it is given whole requests of MLflow's",
            path=f"inputs.{request.name}",
            hint=f"-v '{request.name}={{\"inputs\": ...}}', or rows with a column {request.name!r} of such texts",
        )
