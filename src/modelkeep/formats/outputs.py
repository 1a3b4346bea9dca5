"""What a model gave: arrays by name, and in which form, where MLflow's scoring protocol answers by that.

MLflow's server writes what a model returns as it is: an array as a list, a DataFrame or Series as records, a dict
of arrays as an object of lists. Everybody else wants arrays by name, so the form is kept beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Number
from typing import Any, Literal

from msgspec import Struct

from modelkeep.formats.batch import Array
from modelkeep.formats.feed import named


class Form(Struct, array_like=True, frozen=True):
    """How MLflow's server would write the outputs of a model.

    Attributes:
        kind: ``records`` an object for each row, ``columns`` an object of lists, ``lists`` a list of lists.
        keys: Of the objects: one for each output, or for each value of the only one.
        flat: Whether a record holds the only value of an output of shape (n, 1), rather than a list of it.
    """

    kind: Literal["records", "columns", "lists"]
    keys: tuple[str, ...] = ()
    flat: bool = False


class Outputs(dict[str, Array]):
    """Arrays by output name, first axis rows, with their form."""

    def __init__(self, columns: Mapping[str, Array], form: Form) -> None:
        super().__init__(columns)
        self.form = form


def form_of(outputs: Mapping[str, Array]) -> Form | None:
    """The form of outputs; None for those that are plain values."""
    return outputs.form if isinstance(outputs, Outputs) else None


def formed(columns: dict[str, Array], form: Form | None) -> dict[str, Array]:
    """Arrays with a form, or as they are when there is none."""
    return columns if form is None else Outputs(columns, form)


def records(columns: dict[str, Array]) -> dict[str, Array]:
    """Several outputs as a record for each row; one as its values."""
    return Outputs(columns, Form("records", tuple(columns))) if len(columns) > 1 else columns


def returned(found: Any, rows: int) -> dict[str, Array]:
    """What a ``python_function`` returned.

    Raises:
        ModelkeepError: As ``feed.named``.
    """
    if isinstance(found, list) and found and all(isinstance(row, Mapping) for row in found):
        return _maps(found, rows)
    columns = named(found, rows)
    if hasattr(found, "to_dict") and hasattr(found, "columns"):
        return Outputs(columns, Form("records", tuple(columns)))
    if hasattr(found, "to_frame") and hasattr(found, "name"):  # a Series: a table of one column
        return Outputs(columns, Form("records", ("0" if found.name is None else str(found.name),)))
    if isinstance(found, Mapping):
        return Outputs(columns, Form("columns", tuple(columns)))
    return Outputs(columns, Form("lists")) if isinstance(found, tuple) else columns


def _maps(found: list[Mapping[Any, Any]], rows: int) -> dict[str, Array]:
    """Records: numbers of one type as a matrix, else an output for each key, None where a record lacks it."""
    keys = list(dict.fromkeys(key for row in found for key in row))
    types = {type(value) for row in found for value in row.values()}
    same = (
        len(types) == 1 and issubclass(next(iter(types)), Number) and all(len(row) == len(keys) for row in found)
    )
    if same:
        return Outputs(named(found, rows), Form("records", tuple(map(str, sorted(keys)))))
    columns = {str(key): [row.get(key) for row in found] for key in keys}
    return Outputs(named(columns, rows), Form("records", tuple(columns)))
