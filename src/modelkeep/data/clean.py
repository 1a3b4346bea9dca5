"""Cleaning: every step says how many rows it touched and shows some.

Arrow kernels and DuckDB SQL, column by column: Narwhals has neither a cast that tells which rows failed nor a
first of equal rows by position, and columns no step names are never copied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from msgspec import Struct, structs

from modelkeep.core.errors import Invalid
from modelkeep.core.ports import Progress, Silent
from modelkeep.data.columns import kinds, resolve, unknown_column
from modelkeep.data.fills import fill
from modelkeep.data.hashing import ask
from modelkeep.data.outliers import clip, far_out
from modelkeep.spec import steps
from modelkeep.spec.expressions import parse_filter
from modelkeep.spec.filters import quote_identifier as quote

Mask = npt.NDArray[np.bool_]
SAMPLES = 5
REASON = "reason"
"""The column of a quarantine that says why a row is there."""

_TYPES: dict[str, tuple[str, pa.DataType]] = {
    "int": ("BIGINT", pa.int64()),
    "float": ("DOUBLE", pa.float64()),
    "string": ("VARCHAR", pa.string()),
    "bool": ("BOOLEAN", pa.bool_()),
    "timestamp": ("TIMESTAMP", pa.timestamp("us")),
    "date": ("DATE", pa.date32()),
}


class StepReport(Struct, frozen=True, kw_only=True):
    """What one cleaning step did.

    Attributes:
        step: Its name.
        said: What was declared, without defaults.
        rows: Before the step.
        touched: Rows dropped, changed or set aside.
        left: Rows after the step.
        before: Up to five of the touched rows, the step's columns first.
        after: The same rows afterwards; empty for dropped ones.
    """

    step: str
    said: dict[str, Any]
    rows: int
    touched: int
    left: int
    before: list[dict[str, Any]]
    after: list[dict[str, Any]]


class Outcome(Struct, frozen=True, kw_only=True):
    """What a step makes of a table: either rows to keep, or changed columns and the rows they changed in.

    Attributes:
        table: With changed columns, all rows.
        touched: Shape (rows,).
        drop: Whether the touched rows go.
        aside: Why touched rows go to quarantine instead; empty when they do not.
        columns: What the step looks at.
    """

    table: pa.Table
    touched: Mask
    drop: bool = False
    aside: str = ""
    columns: tuple[str, ...] = ()


class Cleaned(Struct, frozen=True, kw_only=True):
    """A cleaned table.

    Attributes:
        table: The rows left, in their order.
        aside: Rows that a step could not work on, with their ``reason``, one table per step.
        reports: Per step.
        renamed: New names by old.
    """

    table: pa.Table
    aside: tuple[pa.Table, ...]
    reports: tuple[StepReport, ...]
    renamed: dict[str, str]


def clean(
    declared: Sequence[steps.CleanStep], table: pa.Table, time: str = "", progress: Progress | None = None
) -> Cleaned:
    """Run the steps in order.

    Args:
        declared: The steps.
        table: All rows.
        time: Column that orders them, for filling forward.

    Raises:
        Invalid: A step names no such column, or does not fit its type.
    """
    reports: list[StepReport] = []
    aside: list[pa.Table] = []
    renamed: dict[str, str] = {}
    watcher = progress or Silent()
    for index, step in enumerate(declared):
        path = f"data.clean[{index}]"
        watcher.step("clean", index, len(declared), _tag(step))
        made = _STEPS[type(step)](step, table, path, renamed.get(time, time))
        reports.append(_report(step, table, made))
        if made.aside and made.touched.any():
            reason = pa.array([made.aside] * int(made.touched.sum()))
            aside.append(table.filter(pa.array(made.touched)).append_column(REASON, reason))
        table = made.table.filter(pa.array(~made.touched)) if made.drop and made.touched.any() else made.table
        if isinstance(step, steps.Rename):
            old = {new: old for old, new in renamed.items()}
            renamed |= {old.get(name, name): new for name, new in step.columns.items()}
    if declared:
        watcher.step("clean", len(declared), len(declared))
    return Cleaned(table=table, aside=tuple(aside), reports=tuple(reports), renamed=renamed)


def duplicates(table: pa.Table, columns: Sequence[str]) -> Mask:
    """Rows equal in these columns to an earlier one, missing values being equal. Shape (rows,)."""
    chosen = table.select(list(columns) or table.column_names)
    names = [f"c{index}" for index in range(chosen.num_columns)]
    chosen = chosen.rename_columns(names).append_column("row", pa.array(np.arange(table.num_rows)))
    listed = ", ".join(quote(name) for name in names)
    # Only rows whose hash occurs twice are compared, so columns without duplicates cost one hash.
    query = f"""
        WITH hashed AS (SELECT *, hash({listed}) AS h FROM rows),
             candidates AS (SELECT * FROM hashed WHERE h IN (SELECT h FROM hashed GROUP BY h HAVING count(*) > 1))
        SELECT row FROM candidates QUALIFY row_number() OVER (PARTITION BY {listed} ORDER BY row) > 1
    """
    made = np.zeros(table.num_rows, dtype=bool)
    made[ask(query, rows=chosen).column("row").to_numpy()] = True
    return made


def missing(column: pa.ChunkedArray) -> Mask:
    """Null or NaN. Shape (rows,)."""
    return np.asarray(column.is_null(nan_is_null=True).to_numpy())


def _drop_duplicates(step: steps.DropDuplicates, table: pa.Table, path: str, time: str) -> Outcome:
    columns = _named(step.columns, table, path) or tuple(table.column_names)
    return Outcome(table=table, touched=duplicates(table, columns), drop=True, columns=step.columns)


def _drop_missing(step: steps.DropMissing, table: pa.Table, path: str, time: str) -> Outcome:
    columns = _named(step.columns, table, path) or tuple(table.column_names)
    touched = np.zeros(table.num_rows, dtype=bool)
    for name in columns:
        column = table.column(name)
        if column.null_count or pa.types.is_floating(column.type):
            touched |= missing(column)
    return Outcome(table=table, touched=touched, drop=True, columns=step.columns)


def _fill_missing(step: steps.FillMissing, table: pa.Table, path: str, time: str) -> Outcome:
    columns = resolve(step.columns, kinds(table), f"{path}.columns")
    made, touched = fill(step, table, columns, time, path)
    return Outcome(table=made, touched=touched, columns=columns)


def _drop_outliers(step: steps.DropOutliers, table: pa.Table, path: str, time: str) -> Outcome:
    columns = _numeric(step.columns, table, path)
    return Outcome(table=table, touched=far_out(step, table, columns), drop=True, columns=columns)


def _clip_outliers(step: steps.ClipOutliers, table: pa.Table, path: str, time: str) -> Outcome:
    if step.method == "isolation_forest":
        raise Invalid("isolation_forest has no bounds to clip to; use drop_outliers", path=f"{path}.method")
    columns = _numeric(step.columns, table, path)
    made, touched = clip(step, table, columns)
    return Outcome(table=made, touched=touched, columns=columns)


def _cast(step: steps.Cast, table: pa.Table, path: str, time: str) -> Outcome:
    _named(tuple(step.columns), table, f"{path}.columns")
    failed = np.zeros(table.num_rows, dtype=bool)
    first = ""
    for name, kind in step.columns.items():
        if kind not in _TYPES:
            raise Invalid(
                f"unknown type {kind!r}; expected one of {', '.join(_TYPES)}", path=f"{path}.columns.{name}"
            )
        sql, arrow = _TYPES[kind]
        column = table.column(name)
        query = f"SELECT TRY_CAST(x AS {sql}) AS x FROM rows"
        made = ask(query, rows=pa.table({"x": column})).column("x").cast(arrow)
        wrong = made.is_null().to_numpy() & ~missing(column)
        if wrong.any() and not first:
            first = f"{name}: {column[int(np.argmax(wrong))].as_py()!r} is no {kind}"
        failed |= wrong
        table = table.set_column(table.schema.get_field_index(name), name, made)
    return Outcome(
        table=table, touched=failed, drop=True, aside=first and f"cast {first}", columns=tuple(step.columns)
    )


def _rename(step: steps.Rename, table: pa.Table, path: str, time: str) -> Outcome:
    _named(tuple(step.columns), table, f"{path}.columns")
    names = [step.columns.get(name, name) for name in table.column_names]
    double = (
        next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    )
    if double:
        raise Invalid(f"two columns would be called {double!r}", path=f"{path}.columns")
    none = np.zeros(table.num_rows, dtype=bool)
    return Outcome(table=table.rename_columns(names), touched=none, columns=tuple(step.columns.values()))


def _filter(step: steps.Filter, table: pa.Table, path: str, time: str) -> Outcome:
    found = parse_filter(step.where)
    columns = _named(found.columns, table, f"{path}.where")
    rows = table.select(list(columns)) if columns else pa.table({"row": np.arange(table.num_rows)})
    try:
        keep = ask(f"SELECT coalesce({found.sql(quote)}, false) AS keep FROM rows", rows=rows)
    except duckdb.Error as error:
        said = str(error).splitlines()[0]
        raise Invalid(f"{step.where!r} does not fit the columns' types: {said}", path=f"{path}.where") from error
    return Outcome(table=table, touched=~keep.column("keep").to_numpy(), drop=True, columns=columns)


_STEPS: dict[type, Callable[[Any, pa.Table, str, str], Outcome]] = {
    steps.DropDuplicates: _drop_duplicates,
    steps.DropMissing: _drop_missing,
    steps.FillMissing: _fill_missing,
    steps.DropOutliers: _drop_outliers,
    steps.ClipOutliers: _clip_outliers,
    steps.Cast: _cast,
    steps.Rename: _rename,
    steps.Filter: _filter,
}


def _named(columns: Sequence[str], table: pa.Table, path: str) -> tuple[str, ...]:
    held = set(table.column_names)
    for name in columns:
        if name not in held:
            raise unknown_column(name, table.column_names, path)
    return tuple(columns)


def _numeric(columns: str | Sequence[str], table: pa.Table, path: str) -> tuple[str, ...]:
    known = kinds(table)
    names = resolve(columns, known, f"{path}.columns")
    for name in names:
        if known[name] != "numeric":
            raise Invalid(f"{name!r} holds no numbers, so it has no outliers", path=f"{path}.columns")
    return names


def _tag(step: steps.CleanStep) -> str:
    return str(step.__struct_config__.tag)


def _report(step: steps.CleanStep, table: pa.Table, made: Outcome) -> StepReport:
    shown = np.flatnonzero(made.touched)[:SAMPLES]
    count = int(made.touched.sum())
    return StepReport(
        step=_tag(step),
        said=structs.asdict(step),
        rows=table.num_rows,
        touched=count,
        left=table.num_rows - (count if made.drop else 0),
        before=sample(table, shown, made.columns),
        after=[] if made.drop else sample(made.table, shown, made.columns),
    )


def sample(table: pa.Table, rows: npt.NDArray[np.int64], first: Sequence[str]) -> list[dict[str, Any]]:
    """These rows for people: at most twelve columns, these first."""
    names = [name for name in first if name in table.column_names]
    names += [name for name in table.column_names if name not in names]
    found: list[dict[str, Any]] = table.select(names[:12]).take(pa.array(rows)).to_pylist()
    return found
