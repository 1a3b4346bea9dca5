"""Cleaning steps over one piece of a table, knowing what they must know of all rows (``learning`` finds it out).

Arrow kernels and DuckDB SQL, column by column: Narwhals has neither a cast that tells which rows failed nor a
first of equal rows by position, and columns no step names are never copied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from modelkeep.core.errors import Invalid
from modelkeep.data.columns import unknown_column
from modelkeep.data.fills import fill
from modelkeep.data.hashing import ask
from modelkeep.data.outliers import clip, far_out
from modelkeep.data.streams import Outcome
from modelkeep.spec import steps
from modelkeep.spec.expressions import parse_filter
from modelkeep.spec.filters import quote_identifier as quote

Mask = npt.NDArray[np.bool_]
Shares = Mapping[int, Any]
"""What is known of single rows, by the number of their piece."""

TYPES: dict[str, tuple[str, pa.DataType]] = {
    "int": ("BIGINT", pa.int64()),
    "float": ("DOUBLE", pa.float64()),
    "string": ("VARCHAR", pa.string()),
    "bool": ("BOOLEAN", pa.bool_()),
    "timestamp": ("TIMESTAMP", pa.timestamp("us")),
    "date": ("DATE", pa.date32()),
}


@dataclass(frozen=True)
class Cleaning:
    """A declared step with what it learnt of all rows.

    Attributes:
        step: As declared.
        path: In the declaration, for errors.
        columns: What it works on, where the declaration says it by kind.
        learnt: Values to fill with, or bounds, by column.
        shares: What is known of single rows: which are dropped, what they are filled with.
    """

    step: steps.CleanStep
    path: str
    columns: tuple[str, ...] = ()
    learnt: Mapping[str, Any] = field(default_factory=dict)
    shares: Shares = field(default_factory=dict)

    def apply(self, table: pa.Table, number: int) -> Outcome:
        """Work on a piece. Raises ``Invalid`` where the step does not fit it."""
        return _STEPS[type(self.step)](self, table, self.shares.get(number))

    def needs(self, columns: frozenset[str] | None) -> frozenset[str] | None:
        """The columns it needs before it, for these after it."""
        if columns is None:
            return None
        match self.step:
            case steps.Rename(columns=names):
                old = {new: was for was, new in names.items()}
                return frozenset(old.get(name, name) for name in columns)
            case steps.DropMissing(columns=()):
                return None
            case steps.DropMissing() | steps.DropOutliers():
                return columns | frozenset(self.columns)
            case steps.Cast(columns=names):
                return columns | frozenset(names)
            case steps.Filter(where=where):
                return columns | frozenset(parse_filter(where).columns)
        return columns


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


def marked(rows: int, positions: Any) -> Mask:
    """The rows at these positions; none without. Shape (rows,)."""
    made = np.zeros(rows, dtype=bool)
    if positions is not None:
        made[positions] = True
    return made


def named(columns: Sequence[str], table: pa.Table, path: str) -> tuple[str, ...]:
    """The columns, all of which the table has. Raises ``Invalid``."""
    held = set(table.column_names)
    for name in columns:
        if name not in held:
            raise unknown_column(name, table.column_names, path)
    return tuple(columns)


def _drop_duplicates(own: Cleaning, table: pa.Table, share: Any) -> Outcome:
    return Outcome(table=table, touched=marked(table.num_rows, share), drop=True, columns=own.columns)


def _drop_missing(own: Cleaning, table: pa.Table, share: Any) -> Outcome:
    touched = np.zeros(table.num_rows, dtype=bool)
    for name in own.columns or table.column_names:
        column = table.column(name)
        if column.null_count or pa.types.is_floating(column.type):
            touched |= missing(column)
    return Outcome(table=table, touched=touched, drop=True, columns=own.columns)


def _fill_missing(own: Cleaning, table: pa.Table, share: Any) -> Outcome:
    assert isinstance(own.step, steps.FillMissing)
    held = set(table.column_names)
    values = {name: value for name, value in own.learnt.items() if name in held}
    made, touched = fill(table, values, share, own.path)
    return Outcome(table=made, touched=touched, columns=own.columns)


def _drop_outliers(own: Cleaning, table: pa.Table, share: Any) -> Outcome:
    assert isinstance(own.step, steps.DropOutliers)
    touched = (
        marked(table.num_rows, share) if own.step.method == "isolation_forest" else far_out(own.learnt, table)
    )
    return Outcome(table=table, touched=touched, drop=True, columns=own.columns)


def _clip_outliers(own: Cleaning, table: pa.Table, share: Any) -> Outcome:
    made, touched = clip(own.learnt, table)
    return Outcome(table=made, touched=touched, columns=own.columns)


def _cast(own: Cleaning, table: pa.Table, share: Any) -> Outcome:
    assert isinstance(own.step, steps.Cast)
    failed = np.zeros(table.num_rows, dtype=bool)
    said: dict[int, str] = {}
    for name, kind in own.step.columns.items():
        sql, arrow = TYPES[kind]
        column = table.column(name)
        query = f"SELECT TRY_CAST(x AS {sql}) AS x FROM rows"
        made = ask(query, rows=pa.table({"x": column})).column("x").cast(arrow)
        wrong = made.is_null().to_numpy() & ~missing(column)
        for row in np.flatnonzero(wrong & ~failed):
            said[int(row)] = f"cast {name}: {column[int(row)].as_py()!r} is no {kind}"
        failed |= wrong
        table = table.set_column(table.schema.get_field_index(name), name, made)
    reasons = pa.array([said[row] for row in sorted(said)], pa.string())
    return Outcome(table=table, touched=failed, drop=True, reasons=reasons, columns=tuple(own.step.columns))


def _rename(own: Cleaning, table: pa.Table, share: Any) -> Outcome:
    assert isinstance(own.step, steps.Rename)
    names = [own.step.columns.get(name, name) for name in table.column_names]
    none = np.zeros(table.num_rows, dtype=bool)
    return Outcome(table=table.rename_columns(names), touched=none, columns=tuple(own.step.columns.values()))


def _filter(own: Cleaning, table: pa.Table, share: Any) -> Outcome:
    assert isinstance(own.step, steps.Filter)
    found = parse_filter(own.step.where)
    rows = table.select(list(own.columns)) if own.columns else pa.table({"row": np.arange(table.num_rows)})
    try:
        keep = ask(f"SELECT coalesce({found.sql(quote)}, false) AS keep FROM rows", rows=rows)
    except duckdb.Error as error:
        said = str(error).splitlines()[0]
        raise Invalid(
            f"{own.step.where!r} does not fit the columns' types: {said}", path=f"{own.path}.where"
        ) from error
    return Outcome(table=table, touched=~keep.column("keep").to_numpy(), drop=True, columns=own.columns)


_STEPS: dict[type, Callable[[Cleaning, pa.Table, Any], Outcome]] = {
    steps.DropDuplicates: _drop_duplicates,
    steps.DropMissing: _drop_missing,
    steps.FillMissing: _fill_missing,
    steps.DropOutliers: _drop_outliers,
    steps.ClipOutliers: _clip_outliers,
    steps.Cast: _cast,
    steps.Rename: _rename,
    steps.Filter: _filter,
}
