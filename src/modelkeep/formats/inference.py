"""The signature of a model from the rows it was trained on. Needs Arrow, which reading a signature does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc
from msgspec import structs

from modelkeep.core.errors import Invalid, Problem
from modelkeep.formats.signature import Field, Label, Signature, Task, Type, outputs_of

MAX_CATEGORIES = 50
"""Most distinct values of a column that are kept as its categories."""


def infer(
    table: pa.Table,
    inputs: Sequence[str],
    task: Task,
    classes: Sequence[Label] | None = (),
    *,
    strict: Sequence[str] = (),
) -> Signature:
    """The signature of a model trained on these rows.

    Args:
        table: The training rows.
        inputs: The model's inputs, in order.
        task: What it predicts.
        classes: Sorted labels.
        strict: Inputs whose unseen categories must be refused.

    Raises:
        Invalid: A column is of a type no model takes; lists all of them.
    """
    fields = infer_fields(table, inputs, strict)
    labels = tuple(classes or ())
    return Signature(inputs=fields, outputs=outputs_of(task, labels), task=task, classes=labels)


def infer_fields(table: pa.Table, inputs: Sequence[str], strict: Sequence[str] = ()) -> tuple[Field, ...]:
    """A field for each input, with what the rows hold.

    Raises:
        Invalid: A column is of a type no model takes; lists all of them.
    """
    problems = [
        Problem(
            f"data.{name}", f"columns of type {table.schema.field(name).type} cannot be inputs; cast or exclude it"
        )
        for name in inputs
        if _type(table.schema.field(name).type) is None
    ]
    if problems:
        raise Invalid(problems)
    return tuple(_field(name, table.column(name), name in strict) for name in inputs)


def merge_fields(a: Sequence[Field], b: Sequence[Field]) -> tuple[Field, ...]:
    """What the rows of both parts hold."""
    return tuple(_merged(left, right) for left, right in zip(a, b, strict=True))


def bounded(fields: Sequence[Field], ranges: Mapping[str, tuple[float | None, float | None]]) -> tuple[Field, ...]:
    """The fields, of which those named refuse values outside of a range.

    Args:
        fields: As inferred; numbers and timestamps can be named.
        ranges: By name the lowest and the highest value, where somebody says so; else those of training hold. What
            was seen in training is never outside.
    """
    return tuple(_bounded(field, *ranges[field.name]) if field.name in ranges else field for field in fields)


def _bounded(field: Field, low: float | None, high: float | None) -> Field:
    lows = [end for end in (low, field.min) if end is not None]
    highs = [end for end in (high, field.max) if end is not None]
    return structs.replace(field, min=min(lows, default=None), max=max(highs, default=None), strict=True)


def _merged(a: Field, b: Field) -> Field:
    lows = [end for end in (a.min, b.min) if end is not None]
    highs = [end for end in (a.max, b.max) if end is not None]
    categories = None
    if a.categories is not None and b.categories is not None:
        both = tuple(sorted({*a.categories, *b.categories}))
        categories = both if a.strict or len(both) <= MAX_CATEGORIES else None
    return structs.replace(
        a,
        required=a.required and b.required,
        min=min(lows, default=None),
        max=max(highs, default=None),
        categories=categories,
    )


def _type(kind: pa.DataType) -> Type | None:
    types = pa.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_boolean(kind):
        return "bool"
    if types.is_integer(kind):
        return "int64"
    if types.is_floating(kind) or types.is_decimal(kind) or types.is_null(kind):
        return "float64"
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return "string"
    return "timestamp" if types.is_timestamp(kind) or types.is_date(kind) else None


def _field(name: str, column: pa.ChunkedArray, strict: bool) -> Field:
    kind = _type(column.type) or "string"
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    missing = column.null_count > 0
    if kind == "string":
        return Field(
            name=name, type=kind, required=not missing, categories=_categories(column, strict), strict=strict
        )
    if kind == "bool":
        return Field(name=name, type=kind, required=not missing)
    if kind == "timestamp":
        column = column.cast(pa.timestamp("us"), safe=False).cast(pa.int64())
    elif pa.types.is_floating(column.type):
        finite = pc.is_finite(column)
        missing = missing or not pc.all(pc.invert(pc.is_nan(column)), min_count=0).as_py()
        column = column.filter(finite)
    ends = pc.min_max(column).as_py() if not pa.types.is_null(column.type) else {"min": None, "max": None}
    low, high = (None if end is None else float(end) for end in (ends["min"], ends["max"]))
    return Field(name=name, type=kind, required=not missing, min=low, max=high)


def _categories(column: pa.ChunkedArray, strict: bool) -> tuple[str, ...] | None:
    """Sorted distinct values, when few (always when strict). A sample tells prose apart without a full pass."""
    if not strict and pc.count_distinct(column.slice(0, 5000)).as_py() > MAX_CATEGORIES:
        return None
    found = pc.unique(column).drop_null().to_pylist()
    return tuple(sorted(found)) if strict or len(found) <= MAX_CATEGORIES else None
