"""Data checks: what must hold before rows may train a model; inferred from the first snapshot, edited.

Rows that fail are set aside with the reason. What is wrong with the table as a whole stops the work. Inferred
checks are there to catch a broken source, not a new season: ranges are three widths wider on both sides than what
was seen, and new categories are told, not refused, unless they are most of the rows.
"""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
from msgspec import Struct, field, structs

from modelkeep.core.errors import Invalid, Problem, Refused
from modelkeep.data.columns import SETS, type_kind
from modelkeep.spec.declaration import Checks, ColumnCheck, Data
from modelkeep.spec.steps import FillMissing
from modelkeep.stats.profile import Column, Profile

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


def check_source(expected: Expected, schema: pa.Schema, rows: int, newest: float | None) -> None:
    """Every expected column is there and of its type, and the rows are not suddenly few or old.

    Args:
        schema: Of the rows before cleaning.
        rows: How many there are.
        newest: Time of the newest, seconds since 1970; None when unknown.

    Raises:
        Invalid: Listing every column that is not.
        Refused: The source lost rows, or went back in time.
    """
    problems = []
    held = set(schema.names)
    for name, check in expected.checks.columns.items():
        path = f"data.checks.columns.{name}"
        if check.off:
            continue
        if name not in held:
            problems.append(Problem(path, f"column {name!r} is expected and not in the data"))
        elif check.type is not None and not _of_type(schema.field(name).type, check.type):
            found = schema.field(name).type
            problems.append(Problem(path, f"column {name!r} is of type {found}, expected {check.type}"))
    if problems:
        raise Invalid(
            problems, hint="correct the source; or change data.checks.columns, or exclude the column (off: true)"
        )
    if rows < expected.volume:
        raise Refused(
            f"the source holds {rows} rows; the first snapshot had {expected.volume / LEAST_VOLUME:.0f}",
            hint="correct the source, or set data.checks.infer: false",
        )
    if newest is not None and expected.newest is not None and newest < expected.newest:
        raise Refused(
            f"the newest row is of {moment(newest)}; the first snapshot had {moment(expected.newest)}",
            hint="correct the source, or set data.checks.infer: false",
        )


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


def _filled(data: Data, names: list[str]) -> set[str]:
    """Columns that cleaning fills with a constant, which may lie outside of what the source holds."""
    found: set[str] = set()
    for step in data.clean:
        if isinstance(step, FillMissing) and step.strategy == "constant":
            found.update(names if isinstance(step.columns, str) and step.columns in SETS else step.columns)
            found.update({step.columns} if isinstance(step.columns, str) else ())
    return found


def moment(when: float) -> str:
    """A time for people, in UTC."""
    return datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%d %H:%M")
