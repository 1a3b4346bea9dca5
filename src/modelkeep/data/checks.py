"""Data checks: what must hold before rows may train a model; inferred from the first snapshot, edited.

Rows that fail are set aside with the reason. What is wrong with the table as a whole stops the work. Inferred
checks are there to catch a broken source, not a new season: ranges are three widths wider on both sides than what
was seen, and new categories are told, not refused, unless they are most of the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct, field, structs

from modelkeep.core.errors import Invalid, Problem, Refused
from modelkeep.data.clean import REASON, StepReport, duplicates, sample
from modelkeep.data.columns import SETS, type_kind
from modelkeep.data.frames import plain
from modelkeep.spec.declaration import Checks, ColumnCheck, Data, Declaration
from modelkeep.spec.steps import FillMissing
from modelkeep.spec.units import seconds
from modelkeep.stats.profile import Column, Profile

Mask = npt.NDArray[np.bool_]

SLACK = 3.0
"""Widths of the range seen first that a value may lie beyond it."""

FEW_CATEGORIES = 100
"""Distinct strings up to which new ones are told."""

MOSTLY_NEW = 0.5
"""Share of rows with unseen categories from which the column counts as broken."""

LEAST_VOLUME = 0.1
"""Share of the first snapshot's rows below which a later one counts as broken."""

_TYPES = {
    "int": ("numeric",),
    "float": ("numeric",),
    "numeric": ("numeric",),
    "bool": ("boolean",),
    "boolean": ("boolean",),
    "string": ("categorical",),
    "categorical": ("categorical",),
    "text": ("categorical",),
    "timestamp": ("time",),
    "date": ("time",),
    "time": ("time",),
}


class Expected(Struct, frozen=True, kw_only=True):
    """What must hold, declared and inferred together.

    Attributes:
        checks: Per column and for the table.
        seen: Categories of the first snapshot, where they are few.
        newest: Time of the newest row of the first snapshot, seconds since 1970; None when unknown.
        volume: Fewest rows before cleaning.
    """

    checks: Checks
    seen: dict[str, tuple[str, ...]] = field(default_factory=dict)
    newest: float | None = None
    volume: int = 0


class Checked(Struct, frozen=True, kw_only=True):
    """Rows divided by the checks.

    Attributes:
        table: Rows that pass.
        failed: Rows that do not, with their ``reason``.
        report: What was found.
    """

    table: pa.Table
    failed: pa.Table
    report: StepReport


def infer(first: Profile, data: Data) -> Expected:
    """The checks that the first snapshot suggests, under those declared."""
    declared = data.checks
    if not declared.infer:
        return Expected(checks=declared)
    keys = {data.key} if isinstance(data.key, str) else set(data.key)
    apart = keys | {data.time, data.target, *data.exclude} | _filled(data, list(first.columns))
    columns: dict[str, ColumnCheck] = {}
    seen: dict[str, tuple[str, ...]] = {}
    for name, column in first.columns.items():
        if name in data.exclude:
            continue
        columns[name] = _inferred(column, bounded=name not in apart)
        if name not in apart and column.stored == "string" and 0 < column.distinct.count <= FEW_CATEGORIES:
            seen[name] = tuple(sorted(str(value) for value in column.frequent.counts))
    for name, own in declared.columns.items():
        columns[name] = _over(own, columns.get(name, ColumnCheck()))
    times = first.columns.get(data.time)
    return Expected(
        checks=structs.replace(declared, columns=columns),
        seen={name: names for name, names in seen.items() if columns[name].categories is None},
        newest=times.moments.high
        if times is not None and times.moments.count and times.stored == "time"
        else None,
        volume=int(first.rows * LEAST_VOLUME),
    )


def check_source(expected: Expected, table: pa.Table, time: str) -> None:
    """Every expected column is there and of its type, and the rows are not suddenly few or old.

    Raises:
        Invalid: Listing every column that is not.
        Refused: The source lost rows, or went back in time.
    """
    problems = []
    held = set(table.column_names)
    for name, check in expected.checks.columns.items():
        path = f"data.checks.columns.{name}"
        if check.off:
            continue
        if name not in held:
            problems.append(Problem(path, f"column {name!r} is expected and not in the data"))
        elif check.type is not None and not _of_type(table.schema.field(name).type, check.type):
            found = table.schema.field(name).type
            problems.append(Problem(path, f"column {name!r} is of type {found}, expected {check.type}"))
    if problems:
        raise Invalid(
            problems, hint="correct the source; or change data.checks.columns, or exclude the column (off: true)"
        )
    if table.num_rows < expected.volume:
        raise Refused(
            f"the source holds {table.num_rows} rows; the first snapshot had {expected.volume / LEAST_VOLUME:.0f}",
            hint="correct the source, or set data.checks.infer: false",
        )
    newest = _newest(table, time)
    if newest is not None and expected.newest is not None and newest < expected.newest:
        raise Refused(
            f"the newest row is of {_moment(newest)}; the first snapshot had {_moment(expected.newest)}",
            hint="correct the source, or set data.checks.infer: false",
        )


def check_rows(
    expected: Expected, declaration: Declaration, table: pa.Table, inputs: Sequence[str], now: float
) -> Checked:
    """Divide the rows by whether they pass.

    Args:
        expected: By the columns' names in ``table``.
        declaration: Names the key, the target and the time.
        table: Cleaned rows.
        inputs: The model's input columns.
        now: Seconds since 1970, for freshness.

    Raises:
        Refused: Too few rows, too old, a column with too many missing values or mostly new categories.
        Invalid: An input without any value.
    """
    held = set(table.column_names)
    checks = {name: check for name, check in expected.checks.columns.items() if name in held}
    off = {name for name, check in checks.items() if check.off}
    faults = _table_faults(expected, declaration, table, now)
    reasons = _Reasons(table.num_rows)
    target = declaration.data.target
    if target and target not in off:
        reasons.add(_missing(table.column(target)), f"{target} (the target) is missing")
    empty = []
    for name in dict.fromkeys([*inputs, *checks]):
        column, check = table.column(name), checks.get(name, ColumnCheck())
        if check.off:
            continue
        gone = _missing_count(column)
        if gone == len(column) and name in inputs:
            empty.append(Problem(f"data.{name}", f"column {name!r} has no value in any of {len(column)} rows"))
        allowed = 1.0 if check.max_missing is None else check.max_missing
        if len(column) and gone / len(column) > allowed:
            faults.append(f"{name}: {gone / len(column):.1%} of the rows have no value, at most {allowed:.1%} may")
        _ranges(name, column, check, reasons, finite=name in inputs or name == target)
        if check.categories is not None:
            _categories(name, column, check.categories, reasons)
        if check.unique and (name,) != declaration.keys:
            reasons.add(duplicates(table, [name]) & ~_missing(column), f"{name} occurs before")
    if empty:
        names = ", ".join(problem.path.removeprefix("data.") for problem in empty)
        raise Invalid(empty, hint=f"add to data.exclude: {names}")
    _key(declaration, table, checks, reasons)
    news, broken = _unseen(expected, table, off)
    if faults or broken:
        raise Refused("the data fail their checks:\n  " + "\n  ".join([*faults, *broken]), hint=_HINT)
    bad = reasons.which >= 0
    failed = table.filter(pa.array(bad)).append_column(REASON, pa.array(reasons.told(), pa.string()))
    report = StepReport(
        step="checks",
        said={"failed": reasons.counts(), "unseen": news},
        rows=table.num_rows,
        touched=int(bad.sum()),
        left=table.num_rows - int(bad.sum()),
        before=sample(failed, np.arange(min(5, failed.num_rows)), [REASON]),
        after=[],
    )
    return Checked(table=table.filter(pa.array(~bad)) if bad.any() else table, failed=failed, report=report)


_HINT = "correct the source, or say under data.checks.columns what may be"


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


def _inferred(column: Column, *, bounded: bool) -> ColumnCheck:
    kind = {"numeric": "numeric", "string": "string", "boolean": "boolean", "time": "time"}.get(column.stored)
    share = column.missing / column.rows if column.rows else 0.0
    made = ColumnCheck(type=kind, max_missing=min(1.0, 2 * share + 0.1) if share < 0.5 else None)
    width = column.moments.high - column.moments.low if column.moments.count else 0.0
    if column.stored == "numeric" and bounded and np.isfinite(width) and width > 0:
        away = SLACK * width
        return structs.replace(made, min=column.moments.low - away, max=column.moments.high + away)
    return made


def _over(own: ColumnCheck, inferred: ColumnCheck) -> ColumnCheck:
    """What is declared, and what was inferred where nothing is."""
    if own.off:
        return own
    names = ColumnCheck.__struct_fields__
    return ColumnCheck(**{n: getattr(inferred if getattr(own, n) is None else own, n) for n in names})


def _of_type(found: pa.DataType, wanted: str) -> bool:
    if wanted not in _TYPES:
        raise Invalid(f"unknown type {wanted!r}; expected one of {', '.join(_TYPES)}", path="data.checks.columns")
    if pa.types.is_null(found):
        return True
    if wanted == "int" and not pa.types.is_integer(found):
        return False
    return type_kind(found) in _TYPES[wanted]


def _table_faults(expected: Expected, declaration: Declaration, table: pa.Table, now: float) -> list[str]:
    faults = []
    if table.num_rows < expected.checks.min_rows:
        faults.append(
            f"{table.num_rows} rows, expected at least {expected.checks.min_rows} (data.checks.min_rows)"
        )
    newest = _newest(table, declaration.data.time)
    age = expected.checks.max_age
    if newest is not None and age is not None and now - newest > seconds(age):
        faults.append(f"the newest row is of {_moment(newest)}, older than {age} (data.checks.max_age)")
    return faults


def _newest(table: pa.Table, time: str) -> float | None:
    if not time or time not in table.column_names or type_kind(table.schema.field(time).type) != "time":
        return None
    times = plain(table.column(time), "time")
    return float(np.nanmax(times)) if len(times) and not np.isnan(times).all() else None


def _filled(data: Data, names: list[str]) -> set[str]:
    """Columns that cleaning fills with a constant, which may lie outside of what the source holds."""
    found: set[str] = set()
    for step in data.clean:
        if isinstance(step, FillMissing) and step.strategy == "constant":
            found.update(names if isinstance(step.columns, str) and step.columns in SETS else step.columns)
            found.update({step.columns} if isinstance(step.columns, str) else ())
    return found


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
    reasons.add(~known & ~_missing(column), f"{name} is none of {', '.join(map(str, allowed))}")


def _key(declaration: Declaration, table: pa.Table, checks: dict[str, ColumnCheck], reasons: _Reasons) -> None:
    keys = declaration.keys
    if not keys or any(checks.get(name, ColumnCheck()).unique is False for name in keys):
        return
    for name in keys:
        reasons.add(_missing(table.column(name)), f"{name} (the key) is missing")
    reasons.add(duplicates(table, keys), f"{', '.join(keys)} (the key) occurs before")


def _unseen(expected: Expected, table: pa.Table, off: set[str]) -> tuple[dict[str, dict[str, int]], list[str]]:
    """Categories the first snapshot did not have, with their rows; and columns in which they are most."""
    news: dict[str, dict[str, int]] = {}
    broken = []
    held = set(table.column_names)
    for name, seen in expected.seen.items():
        if name in off or name not in held or not pa.types.is_string(table.schema.field(name).type):
            continue
        counts = pc.value_counts(table.column(name).drop_null())
        fresh = counts.filter(pc.invert(pc.is_in(counts.field("values"), pa.array(seen, pa.string()))))
        if not len(fresh):
            continue
        rows = dict(zip(fresh.field("values").to_pylist(), fresh.field("counts").to_pylist(), strict=True))
        total = sum(rows.values())
        if total > MOSTLY_NEW * table.num_rows:
            broken.append(
                f"{name}: {total} of {table.num_rows} rows hold values never seen, such as {next(iter(rows))!r}"
            )
        news[name] = dict(sorted(rows.items(), key=lambda item: -item[1])[:20])
    return news, broken


def _missing(column: pa.ChunkedArray) -> Mask:
    return np.asarray(column.is_null(nan_is_null=True).to_numpy())


def _missing_count(column: pa.ChunkedArray) -> int:
    if pa.types.is_floating(column.type):
        return int(pc.sum(column.is_null(nan_is_null=True)).as_py() or 0)
    return int(column.null_count)


def _moment(when: float) -> str:
    return datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%d %H:%M")
