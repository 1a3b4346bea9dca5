"""Tensors of fixed shape as inputs: columns of their values where they are few, else one input of that shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

from modelkeep.core.errors import Invalid, Problem
from modelkeep.formats.signature import Field, Type

COLUMNS = 4096
"""Most values of a row that become columns, each watched on its own."""
MOST = 1 << 24
"""Most values of a row: as many as a request of 64 MB carries in single precision."""


def column_names(name: str, shape: Sequence[int]) -> list[str]:
    """A name for each value of a tensor's row: ``x_0``, ``x_1``, or ``x`` itself when there is but one."""
    size = size_of(shape)
    return [name] if size == 1 else [f"{name}_{place}" for place in range(size)]


def as_columns(shapes: Sequence[Sequence[int]]) -> bool:
    """Whether tensors of these shapes of a row become columns: single values, and one vector that is not too long.

    Anything else keeps its shape: clients know such tensors by their names, and nobody watches pixels one by one.
    """
    sizes = [size for shape in shapes if (size := size_of(shape)) > 1]
    return len(sizes) <= 1 and max(sizes, default=1) <= COLUMNS and all(len(shape) <= 1 for shape in shapes)


def fields_of(name: str, dtype: str, shape: Sequence[int], *, columns: bool) -> list[Field]:
    """The inputs of a tensor: its columns, or itself."""
    if columns:
        return [Field(name=column, type=type_of(dtype)) for column in column_names(name, shape)]
    kept = tuple(shape) if len(shape) > 1 or size_of(shape) > 1 else ()
    return [Field(name=name, type=type_of(dtype), shape=kept)]


def size_of(shape: Sequence[int]) -> int:
    """Values of a row of this shape. Raises ``Invalid`` when they are more than any request can carry."""
    size = math.prod(shape)
    if size > MOST:
        raise Invalid(
            f"a row of shape {list(shape)} has {size} values, more than the {MOST} that a request carries"
        )
    return size


def type_of(dtype: str) -> Type:
    """The type of a column of a tensor."""
    if dtype in ("str", "object"):
        return "string"
    if dtype == "bool":
        return "bool"
    return "int64" if dtype.lstrip("u").startswith("int") else "float64"


def flattened(rows: Sequence[Any], shape: Sequence[int], path: str, first: int = 0) -> list[Any]:
    """The values of rows given as nested lists, row-major.

    Args:
        shape: Of one row.
        first: The number of the first row, for errors.

    Raises:
        Invalid: At ``path[3]``, where 3 is the first row of another shape; names both shapes.
    """
    level = list(rows)
    for length in shape:
        if not all(type(item) is list and len(item) == length for item in level):
            raise _misshapen(rows, shape, path, first)
        level = list(chain.from_iterable(level))
    if list in set(map(type, level)):
        raise _misshapen(rows, shape, path, first)
    return level


def _misshapen(rows: Sequence[Any], shape: Sequence[int], path: str, first: int) -> Invalid:
    wanted = list(shape)
    for place, row in enumerate(rows, first):
        found = _shape(row)
        if found != wanted:
            given = "lists of unequal lengths" if found is None else f"shape {found}"
            return Invalid([Problem(f"{path}[{place}]", f"has {given}, expected shape {wanted}")])
    raise AssertionError("some row has another shape")


def _shape(value: Any) -> list[int] | None:
    """The shape of nested lists; None when they have none."""
    found: list[int] = []
    level = [value]
    while any(type(item) is list for item in level):
        lengths = {len(item) if type(item) is list else -1 for item in level}
        if len(lengths) > 1:
            return None
        found.append(lengths.pop())
        level = list(chain.from_iterable(level))
    return found
