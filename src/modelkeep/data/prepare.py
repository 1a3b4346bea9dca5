"""``prepare``: a snapshot's rows cleaned, checked, divided, and the feature steps fitted on the training side.

One way for tables in memory and for larger ones: passes over pieces, each on any engine. What is global has been
learnt before the pass that needs it, so the last pass reads every piece once and keeps its two sides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import Any, Protocol

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from modelkeep.core import clock
from modelkeep.core.errors import Invalid, Refused
from modelkeep.core.ports import Progress, Silent
from modelkeep.data import columns as kinds_of
from modelkeep.data import features
from modelkeep.data.checks import Expected, check_source
from modelkeep.data.clean import StepReport, cleaned, report, tag
from modelkeep.data.features import FittedFeatures
from modelkeep.data.rowchecks import Dropped, Found, RowChecks, must_hold, newest, row_checks
from modelkeep.data.split import Division, division, must_divide
from modelkeep.data.streams import LOOK, REASON, Held, Note, Stream, fold
from modelkeep.spec.declaration import Declaration

ASIDE_ROWS = 200_000
"""Rows set aside that are held before they are kept."""

REASONS = 10_000
"""Reasons whose rows are counted."""


@dataclass(frozen=True)
class Prepared:
    """Rows ready to train on.

    Attributes:
        train: Training rows: inputs, target, key, time and every other column that is not excluded.
        test: The rows kept for evaluation, with the same columns.
        quarantine: Rows set aside, with their ``reason``.
        target: Its column; empty without one.
        inputs: The model's input columns, in order.
        features: The fitted steps.
        reports: What each cleaning step and the checks did.
    """

    train: pa.Table
    test: pa.Table
    quarantine: pa.Table
    target: str
    inputs: list[str]
    features: FittedFeatures
    reports: list[StepReport]


class Keeper(Protocol):
    """Where the sides of a piece are kept. Can be pickled."""

    def keep(self, table: pa.Table) -> Any:
        """Keep rows; the result, which can be pickled, names them."""
        ...

    def read(self, kept: Any, columns: Sequence[str] | None) -> pa.Table:
        """The rows, or some columns of them."""
        ...


class InMemory:
    """Rows named by themselves."""

    def keep(self, table: pa.Table) -> pa.Table:
        """The table."""
        return table

    def read(self, kept: pa.Table, columns: Sequence[str] | None) -> pa.Table:
        """The table, or some columns of it."""
        return kept if columns is None else kept.select(list(columns))


@dataclass(frozen=True)
class Parts:
    """Rows ready to train on, as a keeper kept them.

    Attributes:
        train, test, quarantine: What names each part, in order.
        rows: Of training, of evaluation, set aside.
        schema: Of the training and test rows.
        target, inputs, features, reports: As in ``Prepared``.
    """

    train: list[Any]
    test: list[Any]
    quarantine: list[Any]
    rows: tuple[int, int, int]
    schema: pa.Schema
    target: str
    inputs: list[str]
    features: FittedFeatures
    reports: list[StepReport]


def prepare(
    declaration: Declaration,
    table: pa.Table,
    checks: Expected | None = None,
    progress: Progress | None = None,
    *,
    base: Path = Path(),
    now: float | None = None,
) -> Prepared:
    """Clean, check, divide and fit a table that is in memory.

    Args:
        declaration: What is asked for.
        table: A snapshot's rows.
        checks: What must hold (``Snapshots.checks``); None checks only what is declared.
        progress: Told where the work stands.
        base: The declaration's folder, for the user's functions.
        now: Seconds since 1970, for freshness; the process's clock unless given.

    Raises:
        Invalid: The declaration does not fit the columns; the target is missing, constant or of one class.
        Refused: The data fail their checks, or too many rows do.
        UserCodeFailed: A function of the user's raised.
    """
    made = prepare_parts(
        declaration, Held.of(table), table.num_rows, InMemory(), checks, progress, base=base, now=now
    )
    return Prepared(
        train=made.train[0],
        test=made.test[0],
        quarantine=made.quarantine[0],
        target=made.target,
        inputs=made.inputs,
        features=made.features,
        reports=made.reports,
    )


def prepare_parts(
    declaration: Declaration,
    stream: Stream,
    rows: int,
    keeper: Keeper,
    checks: Expected | None = None,
    progress: Progress | None = None,
    *,
    base: Path = Path(),
    now: float | None = None,
) -> Parts:
    """Clean, check, divide and fit a table in pieces, on the stream's engine; see ``prepare``.

    However the rows are cut into pieces, the same fall on each side and into quarantine, and the same is fitted;
    means and deviations to rounding.

    Args:
        stream: A snapshot's rows.
        rows: How many.
        keeper: Keeps what comes of each piece.
    """
    progress = progress or Silent()
    data = declaration.data
    expected = checks or Expected(checks=data.checks)
    progress.step("prepare", 0, 4, "clean")
    check_source(expected, stream.head.schema, rows, _newest(stream, data.time, expected))
    stream, renamed = cleaned(data.clean, stream, data.time, progress)
    _must_exist(declaration, stream.head, {name for name in (data.target, data.time, *declaration.keys) if name})
    stream = stream.then(Dropped(data.exclude))
    inputs = kinds_of.inputs(declaration, stream.head)
    if not inputs:
        raise Invalid("no column is left for the model to see", path="data.exclude")
    progress.step("prepare", 1, 4, "check")
    checking = row_checks(_renamed(expected, renamed), declaration, stream, inputs)
    stream = stream.then(checking)
    divided = division(data.split, stream, declaration.keys, data.time, declaration.train.seed)
    gathered = _Gathered(keeper, int(data.checks.quarantine * rows))
    work = partial(_divided, divided, data.target, keeper)
    for number, (made, notes) in enumerate(stream.each(work), 1):
        gathered.add(made, notes)
        progress.step("prepare", 1 + 2 * number / stream.count, 4, f"{gathered.seen:,} rows")
    moment = clock.from_environment().now() if now is None else now
    reports = gathered.decided(declaration, checking, moment, rows)
    progress.step("prepare", 3, 4, "features")
    fitted = _fitted(declaration, gathered, inputs, keeper, stream, base)
    progress.step("prepare", 4, 4)
    return Parts(
        train=gathered.train,
        test=gathered.test,
        quarantine=gathered.quarantine,
        rows=(gathered.rows[0], gathered.rows[1], gathered.set_aside),
        schema=stream.head.schema,
        target=data.target,
        inputs=inputs,
        features=fitted,
        reports=reports,
    )


@dataclass(frozen=True)
class _Sides:
    """What came of a piece: its two sides as kept, their rows, and up to two values of the target in each."""

    train: Any
    test: Any
    rows: tuple[int, int]
    targets: tuple[list[Any], list[Any]]


def _divided(divided: Division, target: str, keeper: Keeper, table: pa.Table, number: int) -> _Sides:
    aside = divided.test_rows(table, number)
    train, test = table.filter(pa.array(~aside)), table.filter(pa.array(aside))
    values: tuple[list[Any], list[Any]] = ([], [])
    if target:
        values = (_few(table.column(target)), _few(train.column(target)))
    return _Sides(keeper.keep(train), keeper.keep(test), (train.num_rows, test.num_rows), values)


def _few(column: pa.ChunkedArray) -> list[Any]:
    head = pc.unique(column.slice(0, LOOK))
    found: list[Any] = (head if len(head) > 1 else pc.unique(column)).slice(0, 2).to_pylist()
    return found


class _Gathered:
    """What came of all pieces so far.

    Args:
        most: Rows that may be set aside; of more only the number is of interest.
    """

    def __init__(self, keeper: Keeper, most: int) -> None:
        self._keeper, self._most = keeper, most
        self.train: list[Any] = []
        self.test: list[Any] = []
        self.quarantine: list[Any] = []
        self.rows = (0, 0)
        self.seen = self.set_aside = 0
        self._asides: list[list[pa.Table]] = []
        self._held = 0
        self._reasons: Counter[str] = Counter()
        self._notes: list[list[Note]] = []
        self._targets: tuple[list[Any], list[Any]] = ([], [])

    def add(self, made: _Sides, notes: list[Note]) -> None:
        """Take in a piece."""
        for side, kept, already, rows in (
            (self.train, made.train, self.rows[0], made.rows[0]),
            (self.test, made.test, self.rows[1], made.rows[1]),
        ):
            if not already:
                side.clear()  # of empty parts one is enough
            if rows or not side:
                side.append(kept)
        self.rows = (self.rows[0] + made.rows[0], self.rows[1] + made.rows[1])
        self.seen += notes[0].rows
        for mine, values in zip(self._targets, made.targets, strict=True):
            mine += [value for value in values if value not in mine][: 2 - len(mine)]
        self._asides = self._asides or [[] for _ in notes]
        for place, note in enumerate(notes):
            if note.aside is not None:
                self._set_aside(place, note.aside)
        self._notes.append([msgspec.structs.replace(note, aside=None) for note in notes])

    def _set_aside(self, place: int, table: pa.Table) -> None:
        self.set_aside += table.num_rows
        for reason, count in Counter(table.column(REASON).to_pylist()).items():
            if reason in self._reasons or len(self._reasons) < REASONS:
                self._reasons[reason] += count
        if self.set_aside > self._most and self._held:
            return
        self._asides[place].append(table)
        self._held += table.num_rows
        if self._held >= ASIDE_ROWS and self.set_aside <= self._most:
            self._keep_asides()

    def _keep_asides(self) -> None:
        tables = [table for found in self._asides for table in found]
        if tables:
            self.quarantine.append(self._keeper.keep(together(tables)))
        self._asides, self._held = [[] for _ in self._asides], 0

    def decided(self, declaration: Declaration, checking: RowChecks, now: float, rows: int) -> list[StepReport]:
        """Whether all of it may train a model, and what each step did. Raises ``Invalid``, ``Refused``."""
        data = declaration.data
        by_step = list(zip(*self._notes, strict=True))
        found = reduce(Found.merge, [note.found for note in by_step[-1]])
        said = must_hold(checking, found, now)
        self._must_be_few(rows, data.checks.quarantine)
        _must_vary(self._targets[0], data.target, sum(self.rows))
        must_divide(sum(self.rows), self.rows[1])
        _must_vary(self._targets[1], data.target, self.rows[0])
        self._keep_asides()
        if not self.quarantine and isinstance(self._keeper, InMemory):
            empty = self.train[0].schema.append(pa.field(REASON, pa.string()))
            self.quarantine.append(empty.empty_table())
        cleaning = zip(data.clean, by_step, strict=False)
        made = [report(tag(step), msgspec.structs.asdict(step), notes) for step, notes in cleaning]
        checks = msgspec.structs.replace(report("checks", said, by_step[-1]), after=[])
        return [*made, checks]

    def _must_be_few(self, rows: int, share: float) -> None:
        if self.set_aside <= share * rows:
            return
        shown = [f"{count} rows: {reason}" for reason, count in self._reasons.most_common(5)]
        some = [row for found in self._asides for table in found for row in table.slice(0, 3).to_pylist()]
        shown += [f"for example {row}" for row in some[:3]]
        raise Refused(
            f"{self.set_aside} of {rows} rows fail the data checks, at most {share:.1%} may "
            "(data.checks.quarantine):\n  " + "\n  ".join(shown),
            hint="correct the source, clean the rows under data.clean, or say under data.checks.columns what may "
            "be",
        )


def _fitted(
    declaration: Declaration, gathered: _Gathered, inputs: list[str], keeper: Keeper, stream: Stream, base: Path
) -> FittedFeatures:
    """The feature steps, fitted on the training rows."""
    head: list[pa.Table] = []
    for kept in gathered.train:
        head.append(keeper.read(kept, inputs))
        if sum(table.num_rows for table in head) >= LOOK:
            break
    first = pa.concat_tables(head)
    if isinstance(keeper, InMemory) and len(gathered.train) == 1:
        return features.fit(declaration.features, first, inputs, base=base)
    pieces = [partial(keeper.read, kept) for kept in gathered.train]
    return features.fit(
        declaration.features, first.slice(0, LOOK), inputs, base=base, pieces=pieces, engine=stream.engine
    )


def _newest(stream: Stream, time: str, expected: Expected) -> float | None:
    if expected.newest is None or not time or time not in stream.head.column_names:
        return None
    return fold(stream, partial(_newest_of, time), _later, [time])


def _newest_of(time: str, table: pa.Table, number: int) -> float | None:
    return newest(table, time)


def _later(a: float | None, b: float | None) -> float | None:
    return max((time for time in (a, b) if time is not None), default=None)


def _must_exist(declaration: Declaration, table: pa.Table, names: set[str]) -> None:
    data = declaration.data
    for name in sorted(names):
        if name not in table.column_names:
            path = "data.target" if name == data.target else "data.time" if name == data.time else "data.key"
            raise kinds_of.unknown_column(name, table.column_names, path)
    if data.target and data.target in (data.time, *declaration.keys):
        raise Invalid(f"{data.target!r} cannot be the target and the key or time at once", path="data.target")


def _must_vary(values: list[Any], target: str, rows: int) -> None:
    """Refuse a target that holds one value only: there is nothing to learn."""
    if target and len(values) == 1:
        raise Invalid(
            f"the target {target!r} is {values[0]!r} in all {rows} rows: nothing to learn",
            path="data.target",
            hint="check the source and the filters under data.clean, or choose another target",
        )


def _renamed(expected: Expected, renamed: dict[str, str]) -> Expected:
    """The same checks by the columns' names after cleaning."""
    if not renamed:
        return expected
    columns = {renamed.get(name, name): check for name, check in expected.checks.columns.items()}
    seen = {renamed.get(name, name): names for name, names in expected.seen.items()}
    checks = msgspec.structs.replace(expected.checks, columns=columns)
    return msgspec.structs.replace(expected, checks=checks, seen=seen)


def together(tables: Sequence[pa.Table]) -> pa.Table:
    """One table of all rows; a column whose types differ becomes text, a column some lack is null there."""
    tables = [table for table in tables if table.num_rows] or list(tables[-1:])
    kinds: dict[str, set[pa.DataType]] = {}
    for table in tables:
        for field in table.schema:
            kinds.setdefault(field.name, set()).add(field.type)
    mixed = {name for name, found in kinds.items() if len(found) > 1}
    made = []
    for table in tables:
        for name in mixed & set(table.column_names):
            index = table.schema.get_field_index(name)
            table = table.set_column(index, name, table.column(name).cast(pa.string()))
        made.append(table)
    return pa.concat_tables(made, promote_options="default")
