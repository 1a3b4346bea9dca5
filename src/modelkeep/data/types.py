"""Few column types, so that parts written by different tools agree; and how types of parts unify."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from modelkeep.core.errors import Invalid


def canonical(table: pa.Table, fault: Callable[[str], Invalid]) -> pa.Table:
    """The same rows with canonical types: int64, float64, string, bool, timestamp[us], date32, null.

    Raises:
        Invalid: Two columns of one name, or a value that its canonical type cannot hold.
    """
    names = table.column_names
    if len(set(names)) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        raise fault(f"two columns are called {double!r}")
    fields = [pa.field(field.name, canonical_type(field.type)) for field in table.schema]
    if all(a.type == b.type for a, b in zip(fields, table.schema, strict=True)):
        return table.replace_schema_metadata()
    columns = []
    for field, column in zip(fields, table.columns, strict=True):
        try:
            safe = not pa.types.is_temporal(field.type)  # nanoseconds are cut to microseconds
            columns.append(column if column.type == field.type else _cast(column, field.type, safe))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise fault(
                f"column {field.name!r} of type {column.type} does not fit {field.type}: {error}"
            ) from error
    return pa.table(columns, schema=pa.schema(fields))


def canonical_type(kind: pa.DataType) -> pa.DataType:
    """The canonical type that holds the values of ``kind``."""
    types = pa.types
    if types.is_dictionary(kind):
        return canonical_type(kind.value_type)
    if types.is_integer(kind):
        return pa.int64()
    if types.is_floating(kind) or types.is_decimal(kind):
        return pa.float64()
    if types.is_large_string(kind) or types.is_string_view(kind):
        return pa.string()
    if types.is_timestamp(kind):
        return pa.timestamp("us", "UTC" if kind.tz else None)
    return pa.date32() if types.is_date(kind) else kind


def wider(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    """The canonical type that holds both; None when there is none."""
    if a == b or pa.types.is_null(b):
        return a
    if pa.types.is_null(a):
        return b
    pair = {a, b}
    if pair == {pa.int64(), pa.float64()}:
        return pa.float64()
    if pa.date32() in pair and pa.timestamp("us") in pair:
        return pa.timestamp("us")
    return None


def unify(schemas: list[tuple[str, pa.Schema]]) -> pa.Schema:
    """One schema for all parts: columns in order of appearance, a missing one is null there.

    Args:
        schemas: Each part's name, for errors, and its canonical schema.

    Raises:
        Invalid: A column whose types do not go together, with both parts and types.
    """
    found: dict[str, tuple[pa.DataType, str]] = {}
    for part, schema in schemas:
        for field in schema:
            kind, where = found.get(field.name, (field.type, part))
            both = wider(kind, field.type)
            if both is None:
                raise Invalid(
                    f"column {field.name!r} is {kind} in {where} and {field.type} in {part}",
                    path="data.source",
                    hint="make the files agree, or leave one of them out of the source",
                )
            found[field.name] = (both, where if both == kind else part)
    return pa.schema([pa.field(name, kind) for name, (kind, _) in found.items()])


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The rows under a wider schema; columns the table lacks are null."""
    if table.schema.equals(schema):
        return table
    columns = []
    held = set(table.column_names)
    for field in schema:
        if field.name in held:
            column = table.column(field.name)
            columns.append(column if column.type == field.type else column.cast(field.type))
        else:
            columns.append(pa.chunked_array([pa.nulls(table.num_rows, field.type)]))
    return pa.table(columns, schema=schema)


def _cast(column: pa.ChunkedArray, kind: pa.DataType, safe: bool) -> pa.ChunkedArray:
    if pa.types.is_decimal(column.type):
        safe = False
    if pa.types.is_dictionary(column.type) and column.type.value_type != kind:
        column = column.cast(column.type.value_type)
    return pc.cast(column, kind, safe=safe)
