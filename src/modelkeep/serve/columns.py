"""From what requests hold to the blocks a model takes: the rows of many requests become one checked batch.

A request holds its rows as ``cells`` (one flat row-major list in the order of the signature, best for few rows) or
as ``columns`` (lists by name, best for many). Nothing is checked value by value as requests come in: the whole
batch is checked at once by the signature's ``Checker``, and plain numbers take one conversion and one look.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from modelkeep.core.errors import Invalid, Problem
from modelkeep.core.ports import Model
from modelkeep.formats.batch import Batch as Blocks
from modelkeep.formats.signature import Signature
from modelkeep.formats.validate import Checker

Array = npt.NDArray[Any]
_AT_ROW = re.compile(r"inputs\.(.*)\[(\d+)\]", re.DOTALL)


class Rows:
    """The rows of one request.

    Attributes:
        count: Rows.
        cells: All values, flat, row-major, in the order of the signature; or None.
        columns: Equally long lists by name; or None. Columns the signature does not name are not here.
    """

    __slots__ = ("cells", "columns", "count")

    def __init__(
        self, count: int, cells: list[Any] | None = None, columns: Mapping[str, Sequence[Any]] | None = None
    ) -> None:
        self.count = count
        self.cells = cells
        self.columns = columns


class Inputs:
    """The inputs of one version.

    Attributes:
        names: In the order of the signature.
        types: Theirs, as in ``formats.signature.Type``.
        index: Position by name.
        required: Names that every request must give.
        plain: Whether all are numbers.
        memo: Room for doors to keep what depends only on the inputs.
    """

    def __init__(self, signature: Signature) -> None:
        self.signature = signature
        self.names = tuple(field.name for field in signature.inputs)
        self.types = tuple(field.type for field in signature.inputs)
        self.index = {name: place for place, name in enumerate(self.names)}
        self.required = tuple(field.name for field in signature.inputs if field.required)
        self.memo: dict[str, Any] = {}
        self._checkers: dict[Literal["refuse", "ignore"], Checker] = {
            "refuse": Checker(signature),
            "ignore": Checker(signature, unknown="ignore"),
        }
        self._checker = self._checkers["refuse"]
        self.plain = set(self.types) <= {"float64", "int64"}
        self._whole = [place for place, kind in enumerate(self.types) if kind == "int64"]

    def stack(self, parts: Sequence[Rows]) -> Blocks:
        """Put the rows of many requests under each other, in order, checked.

        Raises:
            Invalid: At paths like ``inputs.distance[3]``, where 3 is the row in the batch; see ``by_row``.
        """
        if self.plain and all(part.cells is not None for part in parts):
            made = self._numbers(parts)
            if made is not None:
                return made
        return self._checker.check(self._columns(parts), sum(part.count for part in parts))

    def _numbers(self, parts: Sequence[Rows]) -> Blocks | None:
        """Rows of finite numbers in one step; None when anything is odd."""
        cells: list[Any] = (
            parts[0].cells if len(parts) == 1 else list(chain.from_iterable([part.cells for part in parts]))  # type: ignore[assignment, misc]
        )
        try:
            matrix = np.array(cells)
        except (ValueError, OverflowError):
            return None
        if matrix.ndim != 1:  # lists where values belong
            return None
        if matrix.dtype != np.float64:
            if matrix.dtype.kind not in "iu":
                return None
            matrix = matrix.astype(np.float64)
        if not math.isfinite(matrix.sum()):  # one NaN or infinity shows in the sum; an overflow only costs time
            return None
        matrix = matrix.reshape(-1, len(self.names))
        if self._whole:
            part = matrix[:, self._whole]
            if (part != np.floor(part)).any():
                return None
        # the transpose of a transpose is free: the runtime takes the matrix as it is
        return Blocks(self._checker.layout, matrix.T, _no_strings(len(matrix)), whole=True)

    def _columns(self, parts: Sequence[Rows]) -> dict[str, Any]:
        width = len(self.names)
        if all(part.cells is not None for part in parts):
            cells = list(chain.from_iterable([part.cells for part in parts]))  # type: ignore[misc]
            return {name: cells[place::width] for place, name in enumerate(self.names)}
        if len(parts) == 1:
            return dict(parts[0].columns or {})
        found: dict[str, Any] = {}
        for place, name in enumerate(self.names):
            column: list[Any] = []
            for part in parts:
                if part.cells is not None:
                    column.extend(part.cells[place::width])
                else:
                    column.extend((part.columns or {}).get(name) or [None] * part.count)
            found[name] = column
        return found

    def again(self, blocks: Blocks) -> Blocks:
        """A batch of another version as this version takes it. Raises ``Invalid`` when its signature refuses."""
        mine = self._checker.layout
        if mine.numbers == blocks.layout.numbers and mine.strings == blocks.layout.strings:
            return Blocks(mine, blocks.numbers, blocks.strings, whole=blocks.whole)
        return self._checkers["ignore"].check(dict(blocks), blocks.rows)

    def named(self, given: Mapping[str, Sequence[Any]], *, ignore_unknown: bool = False) -> Rows:
        """A request given as lists by name: known names, none missing, equal lengths.

        Raises:
            Invalid: With every problem found.
        """
        count = len(next(iter(given.values()), ()))
        problems = [
            Problem(f"inputs.{name}", f"has {len(values)} rows where another has {count}")
            for name, values in given.items()
            if len(values) != count
        ]
        strangers = [] if given.keys() <= self.index.keys() else [name for name in given if name not in self.index]
        if not ignore_unknown:
            problems += [Problem(f"inputs.{name}", self.unknown()) for name in strangers]
        problems += self.missing(given)
        if count == 0 and not problems:
            problems.append(Problem("inputs", "hold no rows"))
        if problems:
            raise Invalid(problems[:20])
        if strangers:
            given = {name: values for name, values in given.items() if name in self.index}
        return Rows(count, columns=given)

    def missing(self, given: Mapping[str, Any]) -> list[Problem]:
        """Required inputs that are not there."""
        return [Problem(f"inputs.{name}", "is missing") for name in self.required if name not in given]

    def unknown(self) -> str:
        """What to say of a name that is no input."""
        more = f", ... ({len(self.names)} in all)" if len(self.names) > 20 else ""
        return f"is no input; expected {', '.join(self.names[:20])}{more}"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A version in memory, verified and warm.

    Attributes:
        model: Predicts.
        inputs: What it takes.
        runtime: What runs it.
    """

    model: Model
    inputs: Inputs
    runtime: str

    @property
    def signature(self) -> Signature:
        return self.inputs.signature


def by_row(problems: Sequence[Problem]) -> dict[int, list[Problem]]:
    """Problems of a batch by their row; empty when one of them is not about a row."""
    found: dict[int, list[Problem]] = {}
    for problem in problems:
        at = _AT_ROW.fullmatch(problem.path)
        if at is None:
            return {}
        found.setdefault(int(at[2]), []).append(Problem(at[1], problem.message))
    return found


def shorten(value: Any) -> str:
    """A value as an error shows it: never long, whatever was sent."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >> 200:
        return f"an integer of {abs(value).bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


_NO_STRINGS = [np.empty((0, rows), dtype=object) for rows in range(256)]


def _no_strings(rows: int) -> Array:
    return _NO_STRINGS[rows] if rows < len(_NO_STRINGS) else np.empty((0, rows), dtype=object)
