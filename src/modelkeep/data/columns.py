"""What a column is to a model: a number, a category, text, a truth value or a time."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from modelkeep.core.errors import Invalid
from modelkeep.spec.declaration import Declaration
from modelkeep.stats.profile import LONG_TEXT

Kind = Literal["numeric", "boolean", "categorical", "text", "time", "other"]

SETS = ("numeric", "categorical", "text", "all")
"""Names that stand for all columns of a kind."""

FEW_NAMES = 50
"""Distinct strings up to which even long ones are categories."""

_LOOK = 10_000


def type_kind(kind: pa.DataType) -> Kind:
    """The kind by type alone: strings are ``categorical``."""
    types = pa.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_boolean(kind):
        return "boolean"
    if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
        return "numeric"
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return "categorical"
    if types.is_timestamp(kind) or types.is_date(kind):
        return "time"
    return "other"


def kinds(table: pa.Table) -> dict[str, Kind]:
    """The kind of each column; strings are ``text`` when they are long and many.

    Looks at no more than the first 10,000 rows.
    """
    made = {field.name: type_kind(field.type) for field in table.schema}
    for name in [name for name, kind in made.items() if kind == "categorical"]:
        if _is_text(table.column(name).slice(0, _LOOK)):
            made[name] = "text"
    return made


def resolve(columns: str | Sequence[str], known: Mapping[str, Kind], path: str) -> tuple[str, ...]:
    """The columns meant, in the order of ``known`` for a set and as written otherwise.

    Raises:
        Invalid: A name that is not a column, with the nearest one.
    """
    if isinstance(columns, str):
        if columns == "all":
            return tuple(known)
        if columns in SETS and columns not in known:
            return tuple(name for name, kind in known.items() if kind == columns)
        columns = (columns,)
    for name in columns:
        if name not in known:
            raise unknown_column(name, known, path)
    return tuple(columns)


def unknown_column(name: str, known: Iterable[str], path: str) -> Invalid:
    """The error for a column that is not there."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    meant = f" - did you mean {near[0]!r}?" if near else f"; there are {', '.join(names[:30])}"
    return Invalid(f"no column {name!r}{meant}", path=path)


def inputs(declaration: Declaration, table: pa.Table) -> list[str]:
    """The columns the model sees, in the table's order.

    Key, time, target and excluded columns are left out, unless a feature step names the key or the time.

    Raises:
        Invalid: A feature step names the target or an excluded column.
    """
    data = declaration.data
    forbidden = {name for name in (data.target, *data.exclude) if name}
    named: set[str] = set()
    for index, step in enumerate(declaration.features):
        if not isinstance(step.columns, str):
            for name in step.columns:
                if name in forbidden:
                    what = "the target" if name == data.target else "excluded"
                    raise Invalid(f"{name!r} is {what}; it cannot be a feature", path=f"features[{index}].columns")
            named.update(step.columns)
        elif step.columns not in SETS:
            named.add(step.columns)
    hidden = (forbidden | {*declaration.keys, data.time}) - (named - forbidden)
    return [name for name in table.column_names if name not in hidden]


def _is_text(column: pa.ChunkedArray) -> bool:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    found = column.drop_null()
    if not len(found):
        return False
    mean = pc.mean(pc.binary_length(found)).as_py()
    return bool(mean >= LONG_TEXT and pc.count_distinct(found).as_py() > min(FEW_NAMES, len(found) // 2))
