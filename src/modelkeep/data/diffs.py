"""What changed between two snapshots: rows, schema, and the distribution of each column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from msgspec import Struct
from scipy import stats

from modelkeep.data.hashing import ask
from modelkeep.data.types import conform, unify
from modelkeep.spec.filters import quote_identifier as quote
from modelkeep.stats import tests
from modelkeep.stats.profile import Column, Profile, merge_all

EXAMPLES = 5
CELLS = 10
FALSE_SHARE = 0.01


class ColumnDrift(Struct, frozen=True, kw_only=True):
    """How a column's distribution moved.

    Attributes:
        column: Its name.
        p: Chance of at least this much when nothing changed.
        distance: Size of the change in [0, 1], whatever the number of rows.
        changed: Whether it counts as a change, with at most ``FALSE_SHARE`` false ones among those that do.
    """

    column: str
    p: float
    distance: float
    changed: bool


class SnapshotDiff(Struct, frozen=True, kw_only=True):
    """From one snapshot to another.

    Attributes:
        before: Digest of the one.
        after: Digest of the other.
        rows: How many rows each has.
        parts_added: Parts only the other has.
        parts_removed: Parts only the one has.
        rows_added: Rows only the other has; by key where one is given, else whole rows.
        rows_removed: Rows only the one has.
        rows_changed: Rows of the same key that differ; None without a key.
        examples: Keys (or rows) added, removed and changed, a few of each.
        columns_added: Name and type.
        columns_removed: Name and type.
        columns_changed: Name and both types.
        drift: Per column how its distribution moved from the one's parts to the parts the other added; those that
            moved most first.
    """

    before: str
    after: str
    rows: tuple[int, int]
    parts_added: tuple[str, ...]
    parts_removed: tuple[str, ...]
    rows_added: int
    rows_removed: int
    rows_changed: int | None
    examples: dict[str, list[dict[str, object]]]
    columns_added: dict[str, str]
    columns_removed: dict[str, str]
    columns_changed: dict[str, tuple[str, str]]
    drift: tuple[ColumnDrift, ...] = ()


def compare_rows(
    before: pa.Table, after: pa.Table, keys: Sequence[str]
) -> tuple[int, int, int | None, dict[str, list[dict[str, object]]]]:
    """Rows added, removed and changed between two tables, with a few examples.

    With keys a row is who it is by its key; without, by all its values, counted as often as it occurs.
    """
    schema = unify([("before", before.schema), ("after", after.schema)])
    a, b = conform(before, schema), conform(after, schema)
    columns = list(keys) or schema.names
    by = ", ".join(quote(name) for name in columns)
    if not keys:
        added, removed = (
            ask(f"SELECT * FROM {x} EXCEPT ALL SELECT * FROM {y}", before=a, after=b)
            for x, y in (("after", "before"), ("before", "after"))
        )
        return added.num_rows, removed.num_rows, None, {"added": _few(added), "removed": _few(removed)}
    same = " AND ".join(f"a.{quote(name)} IS NOT DISTINCT FROM b.{quote(name)}" for name in columns)
    only = "SELECT DISTINCT {by} FROM {x} a WHERE NOT EXISTS (SELECT 1 FROM {y} b WHERE {same})"
    added = ask(only.format(by=by, x="after", y="before", same=same), before=a, after=b)
    removed = ask(only.format(by=by, x="before", y="after", same=same), before=a, after=b)
    changed = ask(
        f"SELECT DISTINCT {by} FROM (SELECT * FROM after EXCEPT SELECT * FROM before) a "
        f"WHERE EXISTS (SELECT 1 FROM before b WHERE {same})",
        before=a,
        after=b,
    )
    shown = {"added": _few(added), "removed": _few(removed), "changed": _few(changed)}
    return added.num_rows, removed.num_rows, changed.num_rows, shown


def compare_schemas(
    before: pa.Schema, after: pa.Schema
) -> tuple[dict[str, str], dict[str, str], dict[str, tuple[str, str]]]:
    """Columns added, removed, and of another type."""
    old = {field.name: str(field.type) for field in before}
    new = {field.name: str(field.type) for field in after}
    return (
        {name: kind for name, kind in new.items() if name not in old},
        {name: kind for name, kind in old.items() if name not in new},
        {name: (old[name], kind) for name, kind in new.items() if name in old and old[name] != kind},
    )


def compare_profiles(before: Sequence[Profile], after: Sequence[Profile]) -> tuple[ColumnDrift, ...]:
    """How each column's distribution moved between the parts of two snapshots.

    The parts of the one are its windows: a change counts against how much they differ among themselves. A single
    part cannot tell that; its rows are taken for independent draws.
    """
    whole, now = merge_all(list(before)), merge_all(list(after))
    found = []
    for name, column in whole.columns.items():
        if name not in now.columns or not (cells := _cells(column)):
            continue
        windows = [_counts(part.columns[name], cells) for part in before if name in part.columns]
        counts = _counts(now.columns[name], cells)
        if len(windows) > 1:
            test = tests.compare(counts, tests.spread(windows, ordered=column.ordered))
        elif windows:
            test = _independent(windows[0], counts, ordered=column.ordered)
        else:
            continue
        found.append((name, test))
    moved = tests.benjamini_hochberg([test.p for _, test in found], FALSE_SHARE)
    made = [
        ColumnDrift(column=name, p=test.p, distance=test.distance, changed=changed)
        for (name, test), changed in zip(found, moved, strict=True)
    ]
    return tuple(sorted(made, key=lambda drift: -drift.distance))


def _independent(before: Sequence[float], after: Sequence[float], *, ordered: bool) -> tests.Test:
    """Pearson's chi-square test that two independent samples have one distribution."""
    table = np.array([before, after], dtype=np.float64)
    table = table[:, table.sum(axis=0) > 0]
    if table.shape[1] < 2 or not table.sum(axis=1).all():
        return tests.NOTHING
    away = np.diff(table / table.sum(axis=1, keepdims=True), axis=0)[0]
    distance = np.abs(np.cumsum(away)).max() if ordered else np.abs(away).sum() / 2
    found = stats.chi2_contingency(table)
    return tests.Test(float(found.statistic), float(found.pvalue), float(distance))


def _cells(column: Column) -> list[Any]:
    """Inner edges for numbers and times, frequent values for others; the missing have a cell of their own."""
    if column.ordered and column.moments.count:
        return sorted({column.quantile(share / CELLS) for share in range(1, CELLS)})
    return [value for value, _ in column.frequent.top(CELLS)]


def _counts(column: Column, cells: Sequence[Any]) -> list[float]:
    if column.ordered:
        present = column.moments.count
        shares = (
            column.quantiles.get_pmf([float(cell) for cell in cells], True)
            if present
            else [0.0] * (len(cells) + 1)
        )
        return [column.missing, *(float(share) * present for share in shares)]
    counts = [float(column.frequent.counts.get(cell, 0)) for cell in cells]
    return [column.missing, *counts, max(column.rows - column.missing - sum(counts), 0.0)]


def _few(table: pa.Table) -> list[dict[str, object]]:
    found: list[dict[str, object]] = table.select(table.column_names[:12]).slice(0, EXAMPLES).to_pylist()
    return found
