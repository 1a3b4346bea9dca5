"""Captured rows of a window, and what they hold."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from modelkeep.core.ports import BlobStore
from modelkeep.monitor.ingest import rows_of
from modelkeep.registry.captures import Capture
from modelkeep.stats.outputs import Array, Outputs

INPUT, OUTPUT = "in.", "out."


class Traffic:
    """Reads captured parts, each once while it is needed.

    Args:
        blobs: Where they are kept.
        columns: Only these columns; None reads all.
    """

    def __init__(self, blobs: BlobStore, columns: Sequence[str] | None = None) -> None:
        self._read = lru_cache(maxsize=64)(lambda part: rows_of(blobs, part, columns))

    def between(self, parts: Sequence[Capture], start: float, end: float) -> pa.Table | None:
        """Rows with a time in ``[start, end)``; None when there are none."""
        low, high = (pa.scalar(round(at * 1e6), pa.timestamp("us", tz="UTC")) for at in (start, end))
        tables = []
        for part in parts:
            if not part.digest or part.end < start or part.start >= end:
                continue
            rows = self._read(part)
            if part.start < start or part.end >= end:
                at = rows.column("time")
                rows = rows.filter(pc.and_(pc.greater_equal(at, low), pc.less(at, high)))
            if rows.num_rows:
                tables.append(rows)
        return pa.concat_tables(tables, promote_options="permissive") if tables else None


def inputs_of(rows: pa.Table) -> pa.Table:
    """The model's inputs by their own names."""
    names = [name for name in rows.column_names if name.startswith(INPUT)]
    return rows.select(names).rename_columns([name.removeprefix(INPUT) for name in names])


def profiled(rows: pa.Table) -> pa.Table:
    """What a window's profile describes: ``in.*``, ``out.*`` and the confidence (greatest probability)."""
    names = [name for name in rows.column_names if name.startswith((INPUT, OUTPUT)) and name != "out.probability"]
    table = rows.select(names)
    stated = probabilities(rows)
    return table if stated is None else table.append_column("out.confidence", pa.array(stated.max(axis=1)))


def probabilities(rows: pa.Table) -> Array | None:
    """(n, K) float64; None when the model gives none, or rows differ in length."""
    if "out.probability" not in rows.column_names or rows.num_rows == 0:
        return None
    column = rows.column("out.probability").combine_chunks()
    flat = np.asarray(pc.list_flatten(column).to_numpy(zero_copy_only=False), dtype=np.float64)
    size = len(flat) // rows.num_rows
    if size == 0 or pc.any(pc.not_equal(pc.fill_null(pc.list_value_length(column), -1), size)).as_py():
        return None
    return flat.reshape(rows.num_rows, size)


def outputs_of(rows: pa.Table, classes: Sequence[Any]) -> Outputs:
    """The model's answers.

    Args:
        classes: In the order of the probabilities; without them probabilities are left out.
    """
    if "out.prediction" in rows.column_names:
        return Outputs(value=rows.column("out.prediction").to_numpy())
    label = rows.column("out.label").to_numpy() if "out.label" in rows.column_names else None
    stated = probabilities(rows)
    if stated is None or len(classes) != stated.shape[1]:
        return Outputs(label=label, classes=np.asarray(classes) if len(classes) else None)
    return Outputs(label=label, probability=stated, classes=np.asarray(classes))


def truth_of(labels: Sequence[str], numeric: bool) -> tuple[Array, Array]:
    """Labels from JSON text: values, and which can be used (not null; a number where one is due)."""
    values = [msgspec.json.decode(text) for text in labels]
    if not numeric:
        usable = np.array([isinstance(value, bool | int | float | str) for value in values], dtype=bool)
        kept = [value for value, fits in zip(values, usable, strict=True) if fits]
        one_type = len({type(value) for value in kept}) <= 1
        return np.array(kept if one_type else [str(value) for value in kept]), usable
    usable = np.array([isinstance(value, int | float) for value in values], dtype=bool)
    return np.array([float(v) for v, fits in zip(values, usable, strict=True) if fits]), usable
