"""From what requests hold to the blocks a model takes: the rows of many requests become one checked batch.

A request holds its rows as ``cells`` (one flat row-major list in the order of the signature, best for few rows),
as ``columns`` (lists or arrays by name, best for many) or as a ``block`` (an array of numbers, as raw tensors
come). Nothing is checked value by value as requests come in: the whole batch is checked at once by the signature's
``Checker``, and plain numbers take one conversion and one look.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from modelkeep.core.errors import Invalid, Problem
from modelkeep.core.ports import Model
from modelkeep.formats.batch import Batch as Blocks
from modelkeep.formats.signature import Signature
from modelkeep.formats.tensors import flattened
from modelkeep.formats.validate import Checker

Array = npt.NDArray[Any]
_LARGE = 512
_AT_ROW = re.compile(r"inputs\.(.*)\[(\d+)\]", re.DOTALL)


class Rows:
    """The rows of one request.

    Attributes:
        count: Rows.
        cells: All values, flat, row-major, in the order of the signature; or None.
        columns: Equally long lists or arrays by name, of a tensor's rows lists of its values or (n, ...); or None.
            Columns the signature does not name are not here.
        block: (values of a row, n) numbers in the order of the signature; or None.
    """

    __slots__ = ("block", "cells", "columns", "count")

    def __init__(
        self,
        count: int,
        cells: list[Any] | None = None,
        columns: Mapping[str, Sequence[Any] | Array] | None = None,
        block: Array | None = None,
    ) -> None:
        self.count = count
        self.cells = cells
        self.columns = columns
        self.block = block


class Inputs:
    """The inputs of one version.

    Attributes:
        names: In the order of the signature.
        types: Theirs, as in ``formats.signature.Type``.
        width: Values of a row.
        shaped: Whether some input is a tensor, of which a row has several values.
        index: Position by name.
        required: Names that every request must give.
        plain: Whether all are numbers.
        memo: Room for doors to keep what depends only on the inputs.
    """

    def __init__(self, signature: Signature) -> None:
        self.signature = signature
        self.names = tuple(field.name for field in signature.inputs)
        self.types = tuple(field.type for field in signature.inputs)
        self.width = sum(field.size for field in signature.inputs)
        self.shaped = any(field.shape for field in signature.inputs)
        ends = list(accumulate(field.size for field in signature.inputs))
        self._spans = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
        self.index = {name: place for place, name in enumerate(self.names)}
        self.required = tuple(field.name for field in signature.inputs if field.required)
        self.memo: dict[str, Any] = {}
        self._checkers: dict[Literal["refuse", "ignore"], Checker] = {
            "refuse": Checker(signature),
            "ignore": Checker(signature, unknown="ignore"),
        }
        self._checker = self._checkers["refuse"]
        self._bounds = self._checker.bounds
        self.plain = set(self.types) <= {"float64", "int64"}
        whole = [span for span, kind in zip(self._spans, self.types, strict=True) if kind == "int64"]
        self._whole = [place for span in whole for place in range(span.start, span.stop)]

    def stack(self, parts: Sequence[Rows]) -> Blocks:
        """Put the rows of many requests under each other, in order, checked.

        Raises:
            Invalid: At paths like ``inputs.distance[3]``, where 3 is the row in the batch; see ``by_row``.
        """
        if self.plain:
            made = self._numbers(parts)
            if made is not None:
                return made
        return self._checker.check(self._columns(parts), sum(part.count for part in parts))

    def pack(self, rows: Rows) -> None:
        """Make the cells of a large request a block, while they are still in the processor's cache.

        Waiting as Python objects they would take five times the memory, and push each other out of it.
        """
        if self.plain and rows.cells is not None and len(rows.cells) >= _LARGE:
            rows.block = self._parsed([rows.cells])
            if rows.block is not None:
                rows.cells = None

    def _numbers(self, parts: Sequence[Rows]) -> Blocks | None:
        """Rows of finite numbers within their bounds in one step; None when anything is odd."""
        lists = [part.cells for part in parts]
        if all(lists):
            block = self._parsed(lists)  # type: ignore[arg-type]
        elif any(part.columns is not None for part in parts):
            return None
        else:
            found = [self._parsed([part.cells or []]) if part.block is None else part.block for part in parts]
            whole = [one for one in found if one is not None]
            if len(whole) < len(found):
                return None
            block = whole[0] if len(whole) == 1 else np.concatenate(whole, axis=1)
        if block is None:
            return None
        numbers = block.astype(np.float64, copy=not block.flags.aligned)  # a tensor may lie anywhere in a body
        # one NaN or infinity shows in the sum; an overflow only costs time
        if not math.isfinite(np.add.reduce(numbers, axis=None)):
            return None
        if self._whole and block.dtype.kind == "f":
            part = numbers[self._whole]
            if (part != np.floor(part)).any():
                return None
        if self._bounds is not None:
            low, high = self._bounds
            if (np.minimum.reduce(numbers, axis=1) < low).any() or (
                np.maximum.reduce(numbers, axis=1) > high
            ).any():
                return None
        return Blocks(self._checker.layout, numbers, _no_strings(numbers.shape[1]), whole=True)

    def _parsed(self, lists: Sequence[list[Any]]) -> Array | None:
        """Flat lists of cells as (values of a row, n); None unless all are numbers.

        The transpose of a row-major matrix, so that a runtime that wants the matrix transposes for nothing.
        """
        cells = lists[0] if len(lists) == 1 else list(chain.from_iterable(lists))
        flat = np.empty(len(cells))
        try:
            # the fastest way from Python numbers to an array; texts, gaps and lists are no numbers to it
            struct.pack_into(f"{len(cells)}d", flat.data, 0, *cells)
        except (struct.error, TypeError, OverflowError):
            return None
        return flat.reshape(-1, self.width).T

    def _columns(self, parts: Sequence[Rows]) -> dict[str, Any]:
        width = self.width
        if all(part.cells is not None for part in parts) and not self.shaped:
            cells = list(chain.from_iterable([part.cells for part in parts]))  # type: ignore[misc]
            return {name: cells[place::width] for place, name in enumerate(self.names)}
        if len(parts) == 1 and parts[0].columns is not None:
            return dict(parts[0].columns)
        return {
            name: _joined([self._column(part, place) for part in parts]) for place, name in enumerate(self.names)
        }

    def _column(self, part: Rows, place: int) -> Sequence[Any] | Array:
        span, shape = self._spans[place], self.signature.inputs[place].shape
        if part.block is not None:
            return part.block[span].T if shape else part.block[span.start]
        if part.cells is not None:
            if shape:
                starts = range(span.start, len(part.cells), self.width)
                return [part.cells[start : start + span.stop - span.start] for start in starts]
            return part.cells[span.start :: self.width]
        found = (part.columns or {}).get(self.names[place])
        return [None] * part.count if found is None else found

    def again(self, blocks: Blocks) -> Blocks:
        """A batch of another version as this version takes it. Raises ``Invalid`` when its signature refuses."""
        mine = self._checker.layout
        theirs = blocks.layout
        if (mine.number_at, mine.number_rows, mine.string_at, mine.string_rows) == (
            theirs.number_at,
            theirs.number_rows,
            theirs.string_at,
            theirs.string_rows,
        ):
            return Blocks(mine, blocks.numbers, blocks.strings, whole=blocks.whole, params=blocks.params)
        made = self._checkers["ignore"].check(dict(blocks), blocks.rows)
        made.params = blocks.params
        return made

    def named(self, given: Mapping[str, Sequence[Any]], *, ignore_unknown: bool = False) -> Rows:
        """A request given as lists by name: known names, none missing, equal lengths, a tensor's rows nested.

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
        return self._flat(count, given) if self.shaped else Rows(count, columns=given)

    def _flat(self, count: int, given: Mapping[str, Sequence[Any]]) -> Rows:
        """The rows of tensors as lists of their values. Raises ``Invalid`` when they are of another shape."""
        columns = dict(given)
        for field in self.signature.inputs:
            if field.shape:
                values = flattened(given[field.name], field.shape, f"inputs.{field.name}")
                if len(self.names) == 1:
                    return Rows(count, cells=values)
                columns[field.name] = [values[at : at + field.size] for at in range(0, len(values), field.size)]
        return Rows(count, columns=columns)

    def missing(self, given: Mapping[str, Any]) -> list[Problem]:
        """Required inputs that are not there."""
        return [Problem(f"inputs.{name}", "is missing") for name in self.required if name not in given]

    def unknown(self) -> str:
        """What to say of a name that is no input."""
        more = f", ... ({len(self.names)} in all)" if len(self.names) > 20 else ""
        return f"is no input; expected {', '.join(self.names[:20])}{more}"


class Apart(Protocol):
    """What runs a model outside of this process."""

    def status(self) -> dict[str, Any]:
        """JSON types: how it stands, for the health report."""
        ...


@dataclass(frozen=True, slots=True)
class Loaded:
    """A version in memory, verified and warm.

    Attributes:
        model: Predicts.
        inputs: What it takes.
        runtime: What runs it.
        apart: The processes it runs in, when it does not run in this one.
    """

    model: Model
    inputs: Inputs
    runtime: str
    apart: Apart | None = None

    @property
    def waits(self) -> bool:
        """Whether predicting may wait, for another process or for loading: then never on the event loop."""
        return bool(getattr(self.model, "waits", False))

    @property
    def repeatable(self) -> bool:
        """Whether the same rows may be predicted more than once."""
        return bool(getattr(self.model, "repeatable", True))

    @property
    def once(self) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
        """Predicts, and repeats nothing by itself; raises ``Lost`` where the process is gone."""
        found: Callable[[Mapping[str, Any]], Mapping[str, Any]] = getattr(self.model, "once", self.model.predict)
        return found

    @property
    def here(self) -> bool:
        """Whether the model is loaded now."""
        return bool(getattr(self.model, "here", True))

    @property
    def loads(self) -> int:
        """How often the model was loaded."""
        return int(getattr(self.model, "loads", 1))

    @property
    def watch(self) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
        """Predicts for a shadow: in the place of nobody who answers (``residency.NoRoom``)."""
        found: Callable[[Mapping[str, Any]], Mapping[str, Any]] = getattr(self.model, "watch", self.model.predict)
        return found

    def bring(self, *, shadow: bool = False) -> None:
        """Load the model now, unless it is there. Blocks. Raises what loading raises.

        Args:
            shadow: Whether for a shadow only: then in the place of nobody who answers (``residency.NoRoom``).
        """
        if not self.here:
            self.model.bring(shadow=shadow)  # type: ignore[attr-defined]

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


def _joined(pieces: list[Any]) -> list[Any] | Array:
    """Pieces of one column under each other: an array when all are, else a list."""
    if all(isinstance(piece, np.ndarray) for piece in pieces):
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    return list(chain.from_iterable(p.tolist() if isinstance(p, np.ndarray) else p for p in pieces))


def shorten(value: Any) -> str:
    """A value as an error shows it: never long, whatever was sent."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >> 200:
        return f"an integer of {abs(value).bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


_NO_STRINGS = [np.empty((0, rows), dtype=object) for rows in range(256)]


def _no_strings(rows: int) -> Array:
    return _NO_STRINGS[rows] if rows < len(_NO_STRINGS) else np.empty((0, rows), dtype=object)
