"""Dividing rows by whether they pass their checks, piece by piece; and what the pieces say together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct, structs

from modelkeep.core.errors import Invalid, Problem, Refused
from modelkeep.data.checks import MOSTLY_NEW, Expected, moment
from modelkeep.data.cleaning import Shares, marked, missing
from modelkeep.data.columns import type_kind
from modelkeep.data.frames import plain
from modelkeep.data.learning import occurs_before
from modelkeep.data.streams import Outcome, Stream
from modelkeep.spec import steps
from modelkeep.spec.declaration import ColumnCheck, Declaration
from modelkeep.spec.units import seconds

Mask = npt.NDArray[np.bool_]

NEW_KEPT = 1000
"""Unseen categories whose rows are counted one by one; more are only counted together."""


class Found(Struct, frozen=True, kw_only=True):
    """What the checks counted.

    Attributes:
        rows: Looked at.
        newest: Time of the newest row, seconds since 1970; None when unknown.
        missing: Rows without a value, by column.
        failed: Rows by the first reason they failed for.
        fresh: Rows with categories never seen, by column.
        unseen: Of them the rows of each category, for the first 1,000.
    """

    rows: int = 0
    newest: float | None = None
    missing: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    fresh: Counter[str] = Counter()
    unseen: dict[str, Counter[str]] = {}

    def merge(self, other: Found) -> Found:
        """Of both pieces."""
        times = [time for time in (self.newest, other.newest) if time is not None]
        unseen = dict(self.unseen)
        for name, counts in other.unseen.items():
            before = unseen.get(name, Counter())
            both = before + Counter({k: n for k, n in counts.items() if k in before or len(before) < NEW_KEPT})
            unseen[name] = both
        return Found(
            rows=self.rows + other.rows,
            newest=max(times) if times else None,
            missing=self.missing + other.missing,
            failed=self.failed + other.failed,
            fresh=self.fresh + other.fresh,
            unseen=unseen,
        )


@dataclass(frozen=True)
class RowChecks:
    """The checks as a step: rows that fail are set aside, with the first reason.

    Attributes:
        expected: By the columns' names after cleaning.
        keys, target, time: As declared.
        inputs: The model's input columns.
        again: By column, and by ``""`` for the key, the rows that occur before.
    """

    expected: Expected
    keys: tuple[str, ...]
    target: str
    time: str
    inputs: tuple[str, ...]
    again: Mapping[str, Shares] = field(default_factory=dict)

    def apply(self, table: pa.Table, number: int) -> Outcome:
        """Divide a piece."""
        held = set(table.column_names)
        checks = {name: check for name, check in self.expected.checks.columns.items() if name in held}
        off = {name for name, check in checks.items() if check.off}
        reasons = _Reasons(table.num_rows)
        gone: Counter[str] = Counter()
        if self.target and self.target not in off:
            reasons.add(missing(table.column(self.target)), f"{self.target} (the target) is missing")
        for name in dict.fromkeys([*self.inputs, *checks]):
            column, check = table.column(name), checks.get(name, ColumnCheck())
            if check.off:
                continue
            gone[name] = missing_count(column)
            _ranges(name, column, check, reasons, finite=name in self.inputs or name == self.target)
            if check.categories is not None:
                _categories(name, column, check.categories, reasons)
            if name in self.again:
                again = marked(table.num_rows, self.again[name].get(number))
                reasons.add(again & ~missing(column), f"{name} occurs before")
        if "" in self.again:
            for name in self.keys:
                reasons.add(missing(table.column(name)), f"{name} (the key) is missing")
            again = marked(table.num_rows, self.again[""].get(number))
            reasons.add(again, f"{', '.join(self.keys)} (the key) occurs before")
        unseen = _unseen(self.expected, table, off)
        bad = reasons.which >= 0
        found = Found(
            rows=table.num_rows,
            newest=newest(table, self.time),
            missing=gone,
            failed=Counter(reasons.counts()),
            fresh=Counter({name: sum(counts.values()) for name, counts in unseen.items()}),
            unseen={name: Counter(dict(counts.most_common(NEW_KEPT))) for name, counts in unseen.items()},
        )
        told = pa.array(reasons.told(), pa.string())
        return Outcome(table=table, touched=bad, drop=True, reasons=told, columns=("reason",), found=found)

    def needs(self, columns: frozenset[str] | None) -> frozenset[str] | None:
        """Whether a row passes depends on all columns that are looked at."""
        if columns is None:
            return None
        looked = {*self.inputs, *self.expected.checks.columns, *self.keys, self.target} - {""}
        return columns | looked if looked else columns


@dataclass(frozen=True)
class Dropped:
    """A step that drops columns."""

    names: tuple[str, ...]

    def apply(self, table: pa.Table, number: int) -> Outcome:
        """Without the columns, those that are there."""
        held = [name for name in self.names if name in table.column_names]
        return Outcome(table=table.drop_columns(held), touched=np.zeros(table.num_rows, dtype=bool))

    def needs(self, columns: frozenset[str] | None) -> frozenset[str] | None:
        """The same."""
        return columns


def row_checks(expected: Expected, declaration: Declaration, stream: Stream, inputs: Sequence[str]) -> RowChecks:
    """The checks of a declaration's rows, knowing which rows occur before.

    Args:
        expected: By the columns' names in the stream.
        stream: Cleaned rows.
        inputs: The model's input columns.
    """
    held = set(stream.head.column_names)
    keys = declaration.keys
    checks = {name: check for name, check in expected.checks.columns.items() if name in held and not check.off}
    again: dict[str, Shares] = {
        name: _again(stream, (name,), declaration)
        for name, check in checks.items()
        if check.unique and (name,) != keys
    }
    if keys and not any(expected.checks.columns.get(name, ColumnCheck()).unique is False for name in keys):
        again[""] = _again(stream, keys, declaration)
    mine = {name: check for name, check in expected.checks.columns.items() if name in held}
    kept = Expected(
        checks=_only(expected, mine), seen=expected.seen, newest=expected.newest, volume=expected.volume
    )
    return RowChecks(kept, keys, declaration.data.target, declaration.data.time, tuple(inputs), again)


def _again(stream: Stream, columns: tuple[str, ...], declaration: Declaration) -> Shares:
    """Rows that occur before; none, without looking, where a step dropped them and no later one changed any."""
    for step in reversed(declaration.data.clean):
        match step:
            case steps.DropDuplicates(columns=(_, *_) as apart) if set(apart) <= set(columns):
                return {}
            case steps.DropDuplicates() | steps.DropMissing() | steps.DropOutliers() | steps.Filter():
                continue
        break
    return occurs_before(stream, columns)


def must_hold(checks: RowChecks, found: Found, now: float) -> dict[str, Any]:
    """What the pieces say together, for the report.

    Args:
        now: Seconds since 1970, for freshness.

    Raises:
        Refused: Too few rows, too old, a column with too many missing values or mostly new categories.
        Invalid: An input without any value.
    """
    expected = checks.expected
    columns = expected.checks.columns
    faults = _table_faults(expected, found, now)
    empty = []
    for name in dict.fromkeys([*checks.inputs, *columns]):
        check = columns.get(name, ColumnCheck())
        if check.off:
            continue
        gone = found.missing[name]
        if gone == found.rows and name in checks.inputs:
            empty.append(Problem(f"data.{name}", f"column {name!r} has no value in any of {found.rows} rows"))
        allowed = 1.0 if check.max_missing is None else check.max_missing
        if found.rows and gone / found.rows > allowed:
            faults.append(f"{name}: {gone / found.rows:.1%} of the rows have no value, at most {allowed:.1%} may")
    if empty:
        names = ", ".join(problem.path.removeprefix("data.") for problem in empty)
        raise Invalid(empty, hint=f"add to data.exclude: {names}")
    broken = [
        f"{name}: {count} of {found.rows} rows hold values never seen, such as {next(iter(found.unseen[name]))!r}"
        for name, count in found.fresh.items()
        if count > MOSTLY_NEW * found.rows
    ]
    if faults or broken:
        hint = "correct the source, or say under data.checks.columns what may be"
        raise Refused("the data fail their checks:\n  " + "\n  ".join([*faults, *broken]), hint=hint)
    news = {name: dict(found.unseen[name].most_common(20)) for name in found.fresh}
    return {"failed": dict(found.failed), "unseen": news}


class _Reasons:
    """The first reason each row failed for, shape (rows,); -1 for rows that pass."""

    def __init__(self, rows: int) -> None:
        self.which: npt.NDArray[np.int32] = np.full(rows, -1, dtype=np.int32)
        self.texts: list[str] = []

    def add(self, failed: Mask, text: str) -> None:
        if failed.any():
            self.which[failed & (self.which < 0)] = len(self.texts)
            self.texts.append(text)

    def told(self) -> list[str]:
        return [self.texts[index] for index in self.which[self.which >= 0]]

    def counts(self) -> dict[str, int]:
        found = np.bincount(self.which[self.which >= 0], minlength=len(self.texts))
        return {text: int(count) for text, count in zip(self.texts, found, strict=True) if count}


def newest(table: pa.Table, time: str) -> float | None:
    """Time of the newest row, seconds since 1970; None when unknown."""
    if not time or time not in table.column_names or type_kind(table.schema.field(time).type) != "time":
        return None
    times = plain(table.column(time), "time")
    return float(np.nanmax(times)) if len(times) and not np.isnan(times).all() else None


def missing_count(column: pa.ChunkedArray) -> int:
    """How many values are null or NaN."""
    if pa.types.is_floating(column.type):
        return int(pc.sum(column.is_null(nan_is_null=True)).as_py() or 0)
    return int(column.null_count)


def _only(expected: Expected, columns: dict[str, ColumnCheck]) -> Any:
    return structs.replace(expected.checks, columns=columns)


def _table_faults(expected: Expected, found: Found, now: float) -> list[str]:
    faults = []
    if found.rows < expected.checks.min_rows:
        faults.append(f"{found.rows} rows, expected at least {expected.checks.min_rows} (data.checks.min_rows)")
    age = expected.checks.max_age
    if found.newest is not None and age is not None and now - found.newest > seconds(age):
        faults.append(f"the newest row is of {moment(found.newest)}, older than {age} (data.checks.max_age)")
    return faults


def _ranges(name: str, column: pa.ChunkedArray, check: ColumnCheck, reasons: _Reasons, *, finite: bool) -> None:
    if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        return
    # The extremes tell whether any row can fail; only then is each looked at.
    extremes = pc.min_max(column).as_py()
    low, high = extremes["min"], extremes["max"]
    if low is None:
        return
    values: npt.NDArray[np.float64] | None = None
    if finite and (np.isinf(low) or np.isinf(high)):
        values = plain(column, "numeric")
        reasons.add(np.isinf(values), f"{name} is infinite")
    if check.min is not None and low < check.min:
        values = plain(column, "numeric") if values is None else values
        reasons.add(values < check.min, f"{name} is below {check.min:g}")
    if check.max is not None and high > check.max:
        values = plain(column, "numeric") if values is None else values
        reasons.add(values > check.max, f"{name} is above {check.max:g}")


def _categories(name: str, column: pa.ChunkedArray, allowed: Sequence[str], reasons: _Reasons) -> None:
    texts = column if pa.types.is_string(column.type) else column.cast(pa.string())
    known = pc.is_in(texts, pa.array(allowed, pa.string())).to_numpy()
    reasons.add(~known & ~missing(column), f"{name} is none of {', '.join(map(str, allowed))}")


def _unseen(expected: Expected, table: pa.Table, off: set[str]) -> dict[str, Counter[str]]:
    """Categories the first snapshot did not have, with their rows."""
    news: dict[str, Counter[str]] = {}
    held = set(table.column_names)
    for name, seen in expected.seen.items():
        if name in off or name not in held or not pa.types.is_string(table.schema.field(name).type):
            continue
        counts = pc.value_counts(table.column(name).drop_null())
        fresh = counts.filter(pc.invert(pc.is_in(counts.field("values"), pa.array(seen, pa.string()))))
        if len(fresh):
            rows = zip(fresh.field("values").to_pylist(), fresh.field("counts").to_pylist(), strict=True)
            news[name] = Counter(dict(rows))
    return news
