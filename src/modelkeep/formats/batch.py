"""Rows on their way into a model: blocks that runtimes take without copying, columns for everyone else.

Every input is an array (n,), or (n, *shape) when it is a tensor: float64 for numbers, int64 for required whole
numbers, bool for required truth values, ``datetime64[us]`` (UTC) for timestamps, objects (``str``) for strings.
Missing is NaN (so optional whole numbers and truth values are float64), NaT, or None.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from modelkeep.formats.signature import Field, Signature

Array = npt.NDArray[Any]
_NOTHING = np.array(None, dtype=object)


class Layout:
    """Where each input of a signature lies in a batch's blocks. Made once per model.

    Attributes:
        numbers: Names of the numeric inputs, in the order of the signature; ``strings`` of the others.
        number_at: The first row of each in its block; ``string_at`` likewise.
        number_rows: Of the block of numbers, one for each value of a row; ``string_rows`` likewise.
    """

    def __init__(self, signature: Signature) -> None:
        self.signature = signature
        self.fields = {field.name: field for field in signature.inputs}
        self.numbers = [field.name for field in signature.inputs if field.type != "string"]
        self.strings = [field.name for field in signature.inputs if field.type == "string"]
        self.number_at, self.number_rows = self._places(self.numbers)
        self.string_at, self.string_rows = self._places(self.strings)

    def _places(self, names: Sequence[str]) -> tuple[dict[str, int], int]:
        """The first row of each input in a block, and how many rows the block has."""
        found, at = {}, 0
        for name in names:
            found[name] = at
            at += self.fields[name].size
        return found, at

    def span(self, name: str) -> slice:
        """The rows of an input in its block."""
        at = (self.string_at if name in self.string_at else self.number_at)[name]
        return slice(at, at + self.fields[name].size)

    def pack(self, columns: Mapping[str, Any]) -> Batch:
        """A batch of columns that are arrays already; returns batches of this layout as they are.

        Raises:
            KeyError: An input is not there.
        """
        if isinstance(columns, Batch):
            return columns
        rows = len(columns[self.signature.inputs[0].name])
        numbers = np.empty((self.number_rows, rows))
        for name in self.numbers:
            numbers[self.span(name)] = as_number(columns[name]).reshape(rows, self.fields[name].size).T
        strings = np.empty((self.string_rows, rows), dtype=object)
        for name in self.strings:
            texts = np.asarray(columns[name], dtype=object)
            strings[self.span(name)] = texts.reshape(rows, self.fields[name].size).T
        return Batch(self, numbers, strings)


class Batch(Mapping[str, Array]):
    """Rows as two blocks, and as columns on demand.

    Attributes:
        numbers: (numeric values of a row, n) float64; timestamps in microseconds since 1970 UTC; NaN is missing.
        strings: (string values of a row, n) objects; None is missing.
        whole: Whether no string is missing.
        params: What the model is told beside the rows, as ``formats.params.packed`` makes it; mostly empty.
    """

    __slots__ = ("layout", "numbers", "params", "strings", "whole")

    def __init__(
        self, layout: Layout, numbers: Array, strings: Array, *, whole: bool = False, params: bytes = b""
    ) -> None:
        self.layout = layout
        self.numbers = numbers
        self.strings = strings
        self.whole = whole
        self.params = params

    @property
    def rows(self) -> int:
        """How many rows."""
        return int(self.numbers.shape[1] if len(self.numbers) else self.strings.shape[1])

    def take(self, index: Any) -> Batch:
        """The rows at ``index`` (an array of places or a slice)."""
        numbers, strings = self.numbers[:, index], self.strings[:, index]
        return Batch(self.layout, numbers, strings, whole=self.whole, params=self.params)

    def matrix(self, places: Sequence[int], *, whole: bool = False) -> npt.NDArray[np.float64]:
        """Some numeric inputs as a C-contiguous matrix (n, k). ``whole`` says that they are all, in order."""
        whole = whole or (len(places) == len(self.numbers) and _in_order(places))
        block = self.numbers if whole else self.numbers[places]
        return np.ascontiguousarray(block.T)

    def texts(self, places: Sequence[int] | slice) -> Array:
        """Some string inputs as a C-contiguous matrix (n, s) of ``str``, the empty string for missing."""
        whole = not isinstance(places, slice) and len(places) == len(self.strings) and _in_order(places)
        block = self.strings if whole else self.strings[places]
        made = np.ascontiguousarray(block.T)
        if not self.whole:
            gone = np.equal(made, _NOTHING)
            if gone.any():
                made = np.where(gone, "", made)
        return made

    def __getitem__(self, name: str) -> Array:
        layout, field = self.layout, self.layout.fields[name]
        if field.shape:
            block = self.strings if name in layout.string_at else self.numbers
            found: Array = block[layout.span(name)].T.reshape(self.rows, *field.shape)
            return found if name in layout.string_at else from_number(found, field)
        if name in layout.string_at:
            return np.asarray(self.strings[layout.string_at[name]])
        return from_number(self.numbers[layout.number_at[name]], field)

    def __iter__(self) -> Iterator[str]:
        return iter(self.layout.fields)

    def __len__(self) -> int:
        return len(self.layout.fields)


def _in_order(places: Sequence[int]) -> bool:
    return all(place == position for position, place in enumerate(places))


def as_number(column: Any) -> npt.NDArray[np.float64]:
    """A column of numbers, truth values or timestamps as float64 with NaN for missing."""
    array = np.asarray(column)
    if array.dtype.kind == "M":
        micros = array.astype("datetime64[us]")
        return np.where(np.isnat(micros), np.nan, micros.astype(np.int64).astype(np.float64))
    return array.astype(np.float64)


def from_number(row: npt.NDArray[np.float64], field: Field) -> Array:
    """The column of a field from its row of a block, or from its rows as an array (n, *shape)."""
    if field.type == "timestamp":
        missing = np.isnan(row)
        made = np.where(missing, 0.0, row).astype(np.int64).astype("datetime64[us]")
        made[missing] = np.datetime64("NaT")
        return made
    if field.required and field.type == "int64":
        return row.astype(np.int64)
    if field.required and field.type == "bool":
        return row.astype(np.bool_)
    return row
