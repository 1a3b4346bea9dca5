"""Tensors of fixed shape as columns: one for each value of a row."""

from __future__ import annotations

from collections.abc import Sequence

from modelkeep.core.errors import Invalid
from modelkeep.formats.signature import Type


def column_names(name: str, shape: Sequence[int]) -> list[str]:
    """A name for each value of a tensor's row: ``x_0``, ``x_1``, or ``x`` itself when there is but one."""
    size = size_of(shape)
    return [name] if size == 1 else [f"{name}_{place}" for place in range(size)]


MOST = 4096
"""Values a row of a tensor may have, for each is a column here."""


def size_of(shape: Sequence[int]) -> int:
    """Values of a row of this shape. Raises ``Invalid`` when they are too many to be columns."""
    size = 1
    for length in shape:
        size *= length
    if size > MOST:
        raise Invalid(f"a row of shape {list(shape)} has {size} values, more than the {MOST} that can be columns")
    return size


def type_of(dtype: str) -> Type:
    """The type of a column of a tensor."""
    if dtype in ("str", "object"):
        return "string"
    if dtype == "bool":
        return "bool"
    return "int64" if dtype.lstrip("u").startswith("int") else "float64"
