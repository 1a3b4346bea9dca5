"""What cleaning steps learn of all rows before they can work on any: values to fill with, bounds, equal rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from modelkeep.core import memory
from modelkeep.core.errors import Invalid
from modelkeep.data import fills, outliers, repeats
from modelkeep.data.cleaning import TYPES, Cleaning, duplicates, missing, named
from modelkeep.data.columns import kinds, resolve, unknown_column
from modelkeep.data.hashing import ask
from modelkeep.data.streams import Held, Stream, fold
from modelkeep.spec import steps
from modelkeep.spec.expressions import parse_filter

Ints = npt.NDArray[np.int64]
UInts = npt.NDArray[np.uint64]

_HASHES = 3
"""The part of the budget that hashes of all rows may take: one of so many."""

_PIECE = 1 << 40
"""A row's place is its piece's number times this, and its position in the piece."""

_FOREST_ROWS = 100_000
"""Rows an isolation forest is grown from at most, evenly taken; each of its trees looks at 256."""


def learn(step: steps.CleanStep, stream: Stream, path: str, time: str) -> Cleaning:
    """A step with what it must know of all rows of a stream.

    Raises:
        Invalid: It names no such column, or does not fit its type.
    """
    match step:
        case steps.DropDuplicates():
            columns = named(step.columns, stream.head, path) or tuple(stream.head.column_names)
            return Cleaning(step, path, step.columns, shares=occurs_before(stream, columns))
        case steps.DropMissing():
            return Cleaning(step, path, named(step.columns, stream.head, path))
        case steps.FillMissing():
            return _fill(step, stream, path, time)
        case steps.DropOutliers() | steps.ClipOutliers():
            return _outliers(step, stream, path)
        case steps.Cast():
            named(tuple(step.columns), stream.head, f"{path}.columns")
            for name, kind in step.columns.items():
                if kind not in TYPES:
                    said = f"unknown type {kind!r}; expected one of {', '.join(TYPES)}"
                    raise Invalid(said, path=f"{path}.columns.{name}")
        case steps.Rename():
            named(tuple(step.columns), stream.head, f"{path}.columns")
            names = [step.columns.get(name, name) for name in stream.head.column_names]
            if len(set(names)) < len(names):
                double = next(name for name in names if names.count(name) > 1)
                raise Invalid(f"two columns would be called {double!r}", path=f"{path}.columns")
        case steps.Filter():
            return Cleaning(step, path, named(parse_filter(step.where).columns, stream.head, f"{path}.where"))
    return Cleaning(step, path)


def occurs_before(stream: Stream, columns: Sequence[str]) -> dict[int, Ints]:
    """By piece the positions of rows equal in these columns to an earlier one, missing values being equal.

    Only rows whose hash occurs twice are compared, so columns without duplicates cost a hash of eight bytes a row.
    """
    if isinstance(stream, Held) and len(stream.tables) == 1:
        return {0: np.flatnonzero(duplicates(stream.tables[0], columns))}
    from modelkeep.data.relations import frames_of, repeated  # not for tables in memory

    hashed = stream.map(partial(_hashes, tuple(columns)), columns)
    suspects = repeats.among(hashed, memory.budget() // _HASHES)
    if not suspects:
        return {}
    with frames_of(stream.engine) as frames:
        rows = frames.table(_some(stream.map(partial(_picked, tuple(columns), suspects), columns)))
        names = [f"c{index}" for index in range(len(columns))]
        return _by_piece(frames.collect(repeated(rows, names, "place")).column("place").to_numpy())


def _hashes(columns: tuple[str, ...], table: pa.Table, number: int) -> UInts:
    chosen = _renamed(table, columns)
    listed = ", ".join(chosen.column_names)
    made: UInts = ask(f"SELECT hash({listed})::UBIGINT AS h FROM rows", rows=chosen).column("h").to_numpy()
    return made


def _picked(columns: tuple[str, ...], positions: dict[int, Ints], table: pa.Table, number: int) -> pa.Table:
    which = positions.get(number, np.empty(0, np.int64))
    chosen = _renamed(table, columns).take(pa.array(which))
    return chosen.append_column("place", _places(number, which))


def _renamed(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    chosen = table.select(list(columns))
    return chosen.rename_columns([f"c{index}" for index in range(len(columns))])


def _places(number: int, positions: Ints) -> pa.Array:
    return pa.array(positions + number * _PIECE, pa.int64())


def _by_piece(places: Ints) -> dict[int, Ints]:
    places = np.sort(places)
    numbers = places // _PIECE
    found, starts = np.unique(numbers, return_index=True)
    return (
        {int(number): part % _PIECE for number, part in zip(found, np.split(places, starts[1:]), strict=True)}
        if len(places)
        else {}
    )


def _some(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """All tables with rows, or one without."""
    empty = None
    for table in tables:
        if table.num_rows:
            yield table
            empty = False
        elif empty is None:
            empty = table
    if isinstance(empty, pa.Table):
        yield empty


def _fill(step: steps.FillMissing, stream: Stream, path: str, time: str) -> Cleaning:
    columns = resolve(step.columns, kinds(stream.head), f"{path}.columns")
    if step.strategy == "forward":
        return _forward(step, stream, path, time, columns)
    if step.strategy == "constant" and not isinstance(step.value, float):
        return Cleaning(step, path, columns, dict.fromkeys(columns, step.value))
    states = fold(stream, partial(_fill_partial, columns, step.strategy), _fill_merge, columns)
    learnt = {
        name: step.value if step.strategy == "constant" else fills.statistic(step, state, name, path)
        for name, (gone, state) in zip(columns, states, strict=True)
        if gone
    }
    return Cleaning(step, path, columns, learnt)


def _fill_partial(columns: tuple[str, ...], strategy: str, table: pa.Table, number: int) -> list[Any]:
    return [fills.partial(table.column(name), strategy) for name in columns]


def _fill_merge(a: list[Any], b: list[Any]) -> list[Any]:
    return [fills.merge(left, right) for left, right in zip(a, b, strict=True)]


def _forward(step: steps.FillMissing, stream: Stream, path: str, time: str, columns: tuple[str, ...]) -> Cleaning:
    if not time:
        raise Invalid("filling forward needs the order of time; name the column under data.time", path=path)
    if time not in stream.head.column_names:
        raise unknown_column(time, stream.head.column_names, "data.time")
    gone = fold(stream, partial(_gone, columns), lambda a, b: a + b, columns)
    chosen = tuple(name for name, count in zip(columns, gone, strict=True) if count)
    shares: dict[int, dict[str, pa.Array]] = {}
    for name in chosen:
        for number, values in _carried(stream, name, time):
            shares.setdefault(number, {})[name] = values
    return Cleaning(step, path, columns, dict.fromkeys(chosen), shares)


def _carried(stream: Stream, name: str, time: str) -> Iterator[tuple[int, pa.Array]]:
    """By piece the last value before each missing one of a column, in order of time and then of the rows.

    Rows without a time come last, as Arrow sorts them.
    """
    timed = stream.map(partial(_timed, name, time), [name, time])
    if isinstance(stream, Held) and len(stream.tables) == 1:
        rows = next(timed)
        rows = rows.take(pc.sort_indices(rows, sort_keys=[("at", "ascending"), ("place", "ascending")]))
        found = rows.set_column(0, "value", pc.fill_null_forward(rows.column("value"))).filter(rows.column("gone"))
    else:
        import narwhals as nw

        from modelkeep.data.relations import filled_forward, frames_of  # not for tables in memory

        with frames_of(stream.engine) as frames:
            filled = filled_forward(frames.table(timed), "value", ["at", "place"])
            found = frames.collect(filled.filter(nw.col("gone")).select("place", "value"))
    found = found.sort_by("place")
    numbers = found.column("place").to_numpy() // _PIECE
    values = found.column("value").combine_chunks()
    ends = np.searchsorted(numbers, np.arange(stream.count + 1)).tolist()
    for number, (start, stop) in enumerate(pairwise(ends)):
        yield number, values.slice(start, stop - start)


def _gone(columns: tuple[str, ...], table: pa.Table, number: int) -> Ints:
    return np.array([int(missing(table.column(name)).sum()) for name in columns])


def _timed(name: str, time: str, table: pa.Table, number: int) -> pa.Table:
    column, at = table.column(name), table.column(time)
    gone = missing(column)
    if pa.types.is_floating(column.type):
        column = pc.if_else(pa.array(gone), pa.scalar(None, column.type), column)
    if pa.types.is_temporal(at.type):
        at = at.cast(pa.timestamp("us", getattr(at.type, "tz", None)), safe=False).cast(pa.int64())
    if pa.types.is_integer(at.type):
        at = pc.fill_null(at, np.iinfo(np.int64).max)
    return pa.table({"value": column, "at": at, "gone": gone, "place": _places(number, np.arange(table.num_rows))})


def _outliers(step: steps.DropOutliers | steps.ClipOutliers, stream: Stream, path: str) -> Cleaning:
    if step.method == "isolation_forest" and isinstance(step, steps.ClipOutliers):
        raise Invalid("isolation_forest has no bounds to clip to; use drop_outliers", path=f"{path}.method")
    known = kinds(stream.head)
    columns = resolve(step.columns, known, f"{path}.columns")
    for name in columns:
        if known[name] != "numeric":
            raise Invalid(f"{name!r} holds no numbers, so it has no outliers", path=f"{path}.columns")
    if step.method == "isolation_forest":
        return Cleaning(step, path, columns, shares=_isolated(stream, columns, outliers.limit(step)))
    states = fold(stream, partial(_outlier_partial, columns, step.method), _outlier_merge, columns)
    learnt = {name: outliers.bounds(step, state) for name, state in zip(columns, states, strict=True)}
    return Cleaning(step, path, columns, learnt)


def _outlier_partial(columns: tuple[str, ...], method: str, table: pa.Table, number: int) -> list[Any]:
    return [outliers.partial(table.column(name), method) for name in columns]


def _outlier_merge(a: list[Any], b: list[Any]) -> list[Any]:
    return [left.merge(right) for left, right in zip(a, b, strict=True)]


def _isolated(stream: Stream, columns: tuple[str, ...], share: float) -> dict[int, Ints]:
    """By piece the positions of the share of rows that random splits isolate soonest.

    The forest is grown from at most 100,000 rows, evenly taken, the same however the rows are cut into pieces.
    """
    medians = [
        state.quantile(0.5) if state.total else 0.0
        for state in fold(stream, partial(_outlier_partial, columns, "iqr"), _outlier_merge, columns)
    ]
    counts = list(stream.map(_count, columns))
    rows, centers = sum(counts), np.array(medians)
    every = max(1, -(-rows // _FOREST_ROWS))
    starts = np.concatenate([[0], np.cumsum(counts)])
    taken = list(stream.map(partial(_every, columns, centers, every, starts), columns))
    grown = outliers.forest(np.concatenate(taken))
    wanted = round(rows * share)
    scores = list(stream.map(partial(_scored, columns, centers, stream.engine.put(grown)), columns))
    lowest = np.argsort(np.concatenate(scores), kind="stable")[:wanted]
    which = np.searchsorted(starts, lowest, side="right") - 1
    return {int(number): np.sort(lowest[which == number] - starts[number]) for number in np.unique(which)}


def _count(table: pa.Table, number: int) -> int:
    return int(table.num_rows)


def _every(columns: tuple[str, ...], centers: Any, every: int, starts: Ints, table: pa.Table, number: int) -> Any:
    first = -int(starts[number]) % every
    return outliers.block(table, columns, centers)[first::every]


def _scored(columns: tuple[str, ...], centers: Any, grown: Any, table: pa.Table, number: int) -> Any:
    if not table.num_rows:
        return np.empty(0, np.float32)
    return grown().score_samples(outliers.block(table, columns, centers)).astype(np.float32)
