"""What flows between feature steps: columns as requested, or one matrix of numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from modelkeep.formats.onnx.graph import ML, Graph, Unconvertible, tensor

MISSING = ""
"""How a missing string enters a graph; ONNX strings cannot be null."""

Kind = Literal["number", "bool", "string", "timestamp"]


@dataclass(frozen=True, slots=True)
class Column:
    """One input column, not yet taken from its packed input.

    Attributes:
        name: Of the input.
        kind: What it holds; a timestamp is microseconds since 1970, NaN for missing.
        text: Whether the steps after see it as strings.
        replaced: Replacements of strings made so far, in order: what, by what.
    """

    name: str
    kind: Kind
    text: bool
    replaced: tuple[tuple[str, str], ...] = ()

    def said(self, text: str) -> str:
        """What a string has become after all replacements."""
        for old, new in self.replaced:
            text = new if text == old else text
        return text

    def replacing(self, pairs: Iterable[tuple[str, str]]) -> Column:
        """The same column with more replacements."""
        return replace(self, replaced=(*self.replaced, *pairs))


@dataclass(frozen=True, slots=True)
class Columns:
    """Input columns side by side."""

    columns: tuple[Column, ...]

    @property
    def width(self) -> int:
        """How many columns."""
        return len(self.columns)

    def take(self, index: Sequence[int]) -> Columns:
        """Some of them, in that order."""
        return Columns(tuple(self.columns[i] for i in index))


@dataclass(frozen=True, slots=True)
class Matrix:
    """A float64 tensor [rows, width]."""

    name: str
    width: int


Value = Columns | Matrix


class Inputs:
    """The graph's packed inputs; a column gets its place when it is first used.

    Two tensors rather than one per column: ONNX Runtime takes about a microsecond for each, so thirty columns cost
    six times as much as one matrix of thirty.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.numbers: list[str] = []
        self.strings: list[str] = []

    def number(self, column: Column) -> int:
        """Its place in ``numbers``."""
        if column.kind == "string":
            raise Unconvertible(f"column {column.name!r} holds strings, numbers are needed")
        return _place(self.numbers, column.name)

    def string(self, column: Column) -> str:
        """The column as a vector of strings: [rows]."""
        if column.kind != "string":
            raise Unconvertible(f"column {column.name!r} holds no strings")
        return self.graph.column("strings", _place(self.strings, column.name))

    def matrix(self, value: Value) -> Matrix:
        """The value as numbers."""
        if isinstance(value, Matrix):
            return value
        for column in value.columns:
            if column.text or column.kind == "timestamp":
                raise Unconvertible(f"column {column.name!r} holds {column.kind}s, numbers are needed")
        index = [self.number(column) for column in value.columns]
        return Matrix(self.graph.columns("numbers", index), value.width)


def _place(names: list[str], name: str) -> int:
    if name not in names:
        names.append(name)
    return names.index(name)


def codes(
    inputs: Inputs,
    value: Value,
    index: int,
    categories: npt.NDArray[Any],
    *,
    output: npt.NDArray[Any],
    unknown: Any,
) -> str:
    """Look up one column in its categories.

    Args:
        inputs: The packed inputs.
        value: Where the column is.
        index: Which column.
        categories: Known categories, (k,); NaN or None stands for missing.
        output: What each category becomes, (k,), int64 or float64.
        unknown: What everything else becomes.

    Returns:
        A vector [rows] of the output's type.
    """
    if isinstance(value, Columns) and value.columns[index].kind == "timestamp":
        raise Unconvertible(f"column {value.columns[index].name!r} holds timestamps, categories are needed")
    if isinstance(value, Columns) and value.columns[index].kind == "string":
        return _string_codes(inputs, value.columns[index], categories, output, unknown)
    graph = inputs.graph
    if isinstance(value, Matrix):
        numbers, x = categories.astype(np.float64), graph.column(value.name, index)
    else:
        column = value.columns[index]
        x = graph.column("numbers", inputs.number(column))
        numbers = np.array([_number(item, column) for item in categories], np.float64)
    missing = np.isnan(numbers)
    found = _lookup(graph, x, tensor(numbers[~missing]), output[~missing], unknown)
    if not missing.any():
        return found
    return graph.op("Where", graph.op("IsNaN", x), graph.const(output[missing][0]), found)


def _string_codes(
    inputs: Inputs, column: Column, categories: npt.NDArray[Any], output: npt.NDArray[Any], unknown: Any
) -> str:
    known = {MISSING if _absent(item) else str(item): place for place, item in enumerate(categories)}
    raw = dict.fromkeys([*known, *(old for old, _ in column.replaced)])
    pairs = [(text, known[column.said(text)]) for text in raw if column.said(text) in known]
    keys = np.array([text for text, _ in pairs], dtype=object)
    values = output[np.array([place for _, place in pairs], np.int64)]
    return _lookup(inputs.graph, inputs.string(column), tensor(keys), values, unknown)


def _number(category: Any, column: Column) -> float:
    """The number whose text a category is, when a column of numbers was made strings."""
    if _absent(category):
        return float("nan")
    if not column.text:
        return float(category)
    if column.replaced and any(column.said(old) == str(category) for old, _ in column.replaced):
        raise Unconvertible(f"column {column.name!r} holds numbers whose texts were replaced")
    if category in ("True", "False"):
        return float(category == "True")
    try:
        return float("nan") if category == MISSING else float(category)
    except ValueError:
        raise Unconvertible(f"column {column.name!r} holds numbers, but {category!r} is a category") from None


def _absent(item: Any) -> bool:
    return item is None or (isinstance(item, float) and np.isnan(item))


def _lookup(graph: Graph, x: str, keys: Any, values: npt.NDArray[Any], unknown: Any) -> str:
    if not len(values):
        raise Unconvertible("an encoder knows no category")
    return graph.op(
        "LabelEncoder",
        x,
        domain=ML,
        keys_tensor=keys,
        values_tensor=tensor(values),
        default_tensor=tensor(np.array([unknown], values.dtype)),
    )
