"""Tables as streams of pieces: steps with what they learnt, over pieces held in memory or read when needed.

A step sees one piece at a time. What it must know of all rows (a mean, which rows occur before) it has learnt in
an earlier pass, as ``partial`` of a piece and ``merge`` of two; so the same steps give the same rows in one table,
in many pieces, and on any engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from msgspec import Struct

from modelkeep.core.here import Here
from modelkeep.core.ports import Engine

Mask = npt.NDArray[np.bool_]
S = TypeVar("S")
R = TypeVar("R")

LOOK = 10_000
"""Rows from the start of a table that tell what its columns are."""

SAMPLES = 5


class Outcome(Struct, frozen=True, kw_only=True):
    """What a step makes of a piece: either rows to keep, or changed columns and the rows they changed in.

    Attributes:
        table: With changed columns, all rows.
        touched: Shape (rows,).
        drop: Whether the touched rows go.
        reasons: Why each touched row goes to quarantine instead, in order; None when they do not.
        columns: What the step looks at, shown first.
        found: What the step counted, merged by its ``told``.
    """

    table: pa.Table
    touched: Mask
    drop: bool = False
    reasons: pa.Array | None = None
    columns: tuple[str, ...] = ()
    found: Any = None


class Step(Protocol):
    """A step that knows what it needs to know. Can be pickled."""

    def apply(self, table: pa.Table, number: int) -> Outcome:
        """Work on the piece with this number."""
        ...

    def needs(self, columns: frozenset[str] | None) -> frozenset[str] | None:
        """The columns it needs before it, for these after it; None means all."""
        ...


class Note(Struct, frozen=True, kw_only=True):
    """What a step did to a piece. ``before`` and ``after`` show up to five touched rows."""

    rows: int
    touched: int
    drop: bool
    before: list[dict[str, Any]]
    after: list[dict[str, Any]]
    aside: pa.Table | None = None
    found: Any = None


REASON = "reason"
"""The column of a quarantine that says why a row is there."""


def run(step: Step, table: pa.Table, number: int, *, quiet: bool = False) -> tuple[pa.Table, Note | None]:
    """One step on one piece: the rows left, and what to note of it; nothing when ``quiet``."""
    made = step.apply(table, number)
    count = int(made.touched.sum())
    left = made.table.filter(pa.array(~made.touched)) if made.drop and count else made.table
    if quiet:
        return left, None
    shown = np.flatnonzero(made.touched)[:SAMPLES] if count else np.empty(0, np.int64)
    aside = None
    if made.reasons is not None and count:
        aside = table.filter(pa.array(made.touched)).append_column(REASON, made.reasons)
    first = np.arange(len(shown)) if aside is not None else shown
    return left, Note(
        rows=table.num_rows,
        touched=count,
        drop=made.drop,
        before=sample(table if aside is None else aside, first, made.columns),
        after=[] if made.drop else sample(made.table, shown, made.columns),
        aside=aside,
        found=made.found,
    )


class Stream(Protocol):
    """A table in pieces with steps on it.

    Attributes:
        head: The rows at its start, at least ``LOOK`` of them if it has so many; with the columns of all.
        engine: Where pieces are worked on.
    """

    @property
    def head(self) -> pa.Table: ...

    @property
    def engine(self) -> Engine: ...

    @property
    def count(self) -> int:
        """How many pieces."""
        ...

    def then(self, step: Step) -> Stream:
        """With one more step."""
        ...

    def map(self, work: Callable[[pa.Table, int], R], columns: Sequence[str] | None = None) -> Iterator[R]:
        """``work`` of each piece after the steps and its number, in order; ``columns`` are all it looks at."""
        ...

    def each(self, work: Callable[[pa.Table, int], R]) -> Iterator[tuple[R, list[Note]]]:
        """``work`` of each piece, and what each step noted of it, in order."""
        ...


def fold(
    stream: Stream, work: Callable[[pa.Table, int], S], merge: Callable[[S, S], S], columns: Sequence[str] | None
) -> S:
    """``merge`` of ``work`` of all pieces, from first to last; one result and one state are held at once."""
    results = stream.map(work, columns)
    state = next(results)
    for result in results:
        state = merge(state, result)
    return state


@dataclass(frozen=True)
class Held:
    """Pieces in memory: each step runs once, as soon as it is added."""

    tables: tuple[pa.Table, ...]
    notes: tuple[tuple[Note, ...], ...] = ()
    engine: Engine = field(default_factory=Here)

    @staticmethod
    def of(*tables: pa.Table) -> Held:
        """A stream of these pieces, which have one schema."""
        return Held(tables, ((),) * len(tables))

    @property
    def count(self) -> int:
        return len(self.tables)

    @property
    def head(self) -> pa.Table:
        return self.tables[0] if len(self.tables) == 1 else _first(self.tables)

    def then(self, step: Step) -> Held:
        made = [run(step, table, number) for number, table in enumerate(self.tables)]
        notes = [(*before, note) for before, (_, note) in zip(self.notes, made, strict=True) if note is not None]
        return replace(self, tables=tuple(table for table, _ in made), notes=tuple(notes))

    def map(self, work: Callable[[pa.Table, int], R], columns: Sequence[str] | None = None) -> Iterator[R]:
        return map(work, self.tables, range(len(self.tables)))

    def each(self, work: Callable[[pa.Table, int], R]) -> Iterator[tuple[R, list[Note]]]:
        for number, table in enumerate(self.tables):
            yield work(table, number), list(self.notes[number])


Read = Callable[[Sequence[str] | None], pa.Table]
"""Reads a piece, or some of its columns. Can be pickled."""


@dataclass(frozen=True)
class Lazy:
    """Pieces that are read when needed: each pass runs all steps again, on the columns it looks at."""

    pieces: tuple[Read, ...]
    engine: Engine
    steps: tuple[Step, ...] = ()
    lead: tuple[pa.Table, ...] = ()

    @staticmethod
    def of(pieces: Sequence[Read], engine: Engine) -> Lazy:
        """A stream of these pieces, which have one schema; at least one."""
        return Lazy(tuple(pieces), engine)._led(())

    @property
    def count(self) -> int:
        return len(self.pieces)

    @property
    def head(self) -> pa.Table:
        return _first(self.lead)

    def then(self, step: Step) -> Lazy:
        lead = tuple(run(step, table, number, quiet=True)[0] for number, table in enumerate(self.lead))
        return replace(self, steps=(*self.steps, step))._led(lead)

    def map(self, work: Callable[[pa.Table, int], R], columns: Sequence[str] | None = None) -> Iterator[R]:
        wanted = None if columns is None else frozenset(columns)
        for step in reversed(self.steps):
            wanted = step.needs(wanted)
        if wanted is not None and not wanted:
            wanted = frozenset(self.lead[0].column_names[:1])  # a table without columns has no rows
        shared = self.engine.put(self.steps)
        return self.engine.map(partial(_worked, work, shared, wanted), enumerate(self.pieces))

    def each(self, work: Callable[[pa.Table, int], R]) -> Iterator[tuple[R, list[Note]]]:
        shared = self.engine.put(self.steps)
        return self.engine.map(partial(_noted, work, shared), enumerate(self.pieces))

    def _led(self, lead: tuple[pa.Table, ...]) -> Lazy:
        rows = sum(table.num_rows for table in lead)
        while len(lead) < len(self.pieces) and (rows < LOOK or not lead):
            table = self.pieces[len(lead)](None)
            for step in self.steps:
                table, _ = run(step, table, len(lead), quiet=True)
            lead, rows = (*lead, table), rows + table.num_rows
        return replace(self, lead=lead)


def _worked(
    work: Callable[[pa.Table, int], R],
    steps: Callable[[], tuple[Step, ...]],
    columns: frozenset[str] | None,
    piece: tuple[int, Read],
) -> R:
    number, read = piece
    table = read(None if columns is None else sorted(columns))
    for step in steps():
        table, _ = run(step, table, number, quiet=True)
    return work(table, number)


def _noted(
    work: Callable[[pa.Table, int], R], steps: Callable[[], tuple[Step, ...]], piece: tuple[int, Read]
) -> tuple[R, list[Note]]:
    number, read = piece
    table, notes = read(None), []
    for step in steps():
        table, note = run(step, table, number)
        assert note is not None
        notes.append(note)
    return work(table, number), notes


def _first(tables: Sequence[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables).slice(0, LOOK) if len(tables) > 1 else tables[0].slice(0, LOOK)


def sample(table: pa.Table, rows: npt.NDArray[np.int64], first: Sequence[str]) -> list[dict[str, Any]]:
    """These rows for people: at most twelve columns, these first."""
    if not len(rows):
        return []
    names = [name for name in first if name in table.column_names]
    names += [name for name in table.column_names if name not in names]
    found: list[dict[str, Any]] = table.select(names[:12]).take(pa.array(rows)).to_pylist()
    return found
