"""What a version was trained on, as windows of served traffic will be compared with it.

``build`` runs once, at training; its bytes travel in the package as ``reference.bin``. It holds per watched
column cells with their counts, how those counts differ between windows of the training table (see
``stats.tests``), and the profile of the whole; and how the version's metric differed between windows of the
held-out rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from modelkeep.core.errors import Damaged
from modelkeep.monitor.heldout import HeldOut
from modelkeep.stats import profile
from modelkeep.stats.outputs import Array, Floats, Ints
from modelkeep.stats.profile import Profile
from modelkeep.stats.tests import Spread, spread

FILE = "reference.bin"
CELLS = 12
CATEGORIES = 30
KNOWN = 10_000
"""Most categories remembered to tell new ones; a column with more is not watched for new ones."""
FEWEST_WINDOWS = 20
KEPT_WINDOWS = 400
"""Windows whose counts of rare events are kept, evenly chosen."""


class Watched(msgspec.Struct, frozen=True, kw_only=True):
    """One watched column.

    Attributes:
        kind: ``numeric``; ``categorical`` (booleans too); ``length`` for text, whose length is watched.
        edges: Numbers: cell i holds values in [edges[i - 1], edges[i]).
        categories: Categories: cell i holds that one, the last cell all others.
        known: Every category of the training table, if they are not too many.
        low: Least number of the training table.
        high: Greatest.
        counts: (K,) of ``Spread``.
        covariance: (K * K,) of ``Spread``.
        windows: Of ``Spread``.
        unevenness: Of ``Spread``; None when unknown.
        rows: (B,) rows per reference window.
        missing: (B,) missing values per reference window.
        outside: (B,) values outside what the other windows hold, per reference window.
    """

    kind: str
    edges: list[float] = []
    categories: list[str] = []
    known: list[str] = []
    low: float = float("-inf")
    high: float = float("inf")
    counts: list[float]
    covariance: list[float]
    windows: float
    unevenness: float | None
    rows: list[int]
    missing: list[int]
    outside: list[int]

    @property
    def spread(self) -> Spread:
        """For ``stats.tests.compare``."""
        size = len(self.counts)
        return Spread(
            np.array(self.counts),
            np.array(self.covariance).reshape(size, size),
            self.windows,
            float("nan") if self.unevenness is None else self.unevenness,
            self.kind != "categorical",
        )


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """See the module.

    Attributes:
        window: Seconds of a reference window; 0 when rows have no time and were taken as independent.
        columns: Watched columns by name.
        skipped: Why a column is not watched, by name.
        table: ``Profile`` of the training table's watched columns, as bytes.
        held_out: How the metric differed between windows of the held-out rows; None when not measured.
    """

    window: float
    columns: dict[str, Watched]
    skipped: dict[str, str] = {}
    table: bytes = b""
    held_out: HeldOut | None = None

    @property
    def profile(self) -> Profile:
        """Of the training table."""
        return Profile.from_bytes(self.table)


def build(
    table: pa.Table,
    time_column: str,
    inputs: Sequence[str],
    window_seconds: float,
    held_out: HeldOut | None = None,
) -> bytes:
    """Measure the training table.

    Rows are cut into windows of ``window_seconds`` by ``time_column``; when that gives fewer than 20, into 20
    equal spans of time: shorter windows differ more, so the tests only become more careful. Without a time column
    rows are dealt into 20 windows at random, which takes them as independent: ordinary differences between days
    then count as drift.

    Args:
        table: The training rows as the model sees them in requests (before feature steps).
        time_column: Timestamp column, or empty.
        inputs: Columns to watch.
        window_seconds: Length of the windows that will be served.
        held_out: From ``heldout.measure``.
    """
    window, codes = _windows(table, time_column, window_seconds)
    held = set(table.column_names)
    names = [name for name in inputs if name in held]
    whole = profile.partial(table.select(names))
    columns: dict[str, Watched] = {}
    skipped: dict[str, str] = {}
    for name in names:
        found = _watch(table.column(name), whole.columns[name], codes)
        if isinstance(found, str):
            skipped[name] = found
        else:
            columns[name] = found
    made = Reference(window=window, columns=columns, skipped=skipped, table=whole.to_bytes(), held_out=held_out)
    return msgspec.msgpack.encode(made)


def load(data: bytes) -> Reference:
    """What ``build`` made. Raises ``Damaged``."""
    try:
        return msgspec.msgpack.decode(data, type=Reference)
    except msgspec.MsgspecError as error:
        raise Damaged(f"{FILE} cannot be read: {error}", hint="train the version again") from error


def count(reference: Reference, table: pa.Table) -> dict[str, Ints]:
    """Count a part of a window into the reference's cells; parts add up.

    Args:
        table: Columns by the names of the training table. Columns that are not there are left out.

    Returns:
        Per column (K + 2,): rows per cell, then missing values, then values outside the training table's.
    """
    held = set(table.column_names)
    return {name: _count(column, table.column(name)) for name, column in reference.columns.items() if name in held}


def add(a: Mapping[str, Ints], b: Mapping[str, Ints]) -> dict[str, Ints]:
    """Counts of two parts together."""
    total = dict(a)
    for name, counts in b.items():
        total[name] = total[name] + counts if name in total else counts
    return total


def numbers(column: pa.ChunkedArray) -> Floats:
    """Any column as float64; NaN where it is missing or not a number."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        fits = pc.match_substring_regex(column, r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$")
        column = pc.if_else(fits, pc.utf8_trim_whitespace(column), None)
    return np.asarray(column.cast(pa.float64(), safe=False).to_numpy(), dtype=np.float64)


def texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Any column as strings."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.cast(pa.string())


def _windows(table: pa.Table, time_column: str, seconds: float) -> tuple[float, Ints]:
    """Length of a reference window, and the number of each row's window, from 0; -1 for rows of none."""
    rows = table.num_rows
    if not time_column or time_column not in table.column_names or rows == 0:
        return 0.0, np.random.default_rng(0).integers(0, FEWEST_WINDOWS, rows)
    stamps = table.column(time_column).cast(pa.timestamp("us"), safe=False).cast(pa.int64())
    timed = np.asarray(pc.is_valid(stamps))
    at = np.asarray(pc.fill_null(stamps, 0), dtype=np.float64) / 1e6
    if not timed.any():
        return 0.0, np.random.default_rng(0).integers(0, FEWEST_WINDOWS, rows)
    first, last = at[timed].min(), at[timed].max()
    length = min(seconds, max((last - first) / FEWEST_WINDOWS, 1e-6))
    number = np.floor(at / length).astype(np.int64)
    found, place, sizes = np.unique(number[timed], return_inverse=True, return_counts=True)
    # A first or last window that the table covers only in part holds, say, evenings only: not an honest window.
    partly = np.zeros(len(found), dtype=bool)
    partly[[0, -1]] = sizes[[0, -1]] < np.median(sizes) / 2
    kept = np.where(partly, -1, np.cumsum(~partly) - 1)
    codes = np.full(rows, -1, dtype=np.int64)
    codes[timed] = kept[place]
    return float(length), codes


def _watch(column: pa.ChunkedArray, described: profile.Column, codes: Ints) -> Watched | str:
    """The measured column, or why it is not watched."""
    present = described.rows - described.missing
    if described.kind in {"other", "unknown"} or present == 0:
        return "holds no values that can be compared"
    if described.kind == "time":
        return "a time moves by nature"
    distinct = described.distinct.count
    if described.kind == "categorical" and distinct > 100 and distinct > present / 2:
        return "nearly every value is different: an identifier"
    bare = Watched(
        kind={"numeric": "numeric", "text": "length"}.get(described.kind, "categorical"),
        counts=[], covariance=[], windows=0, unevenness=None, rows=[], missing=[], outside=[],
    )  # fmt: skip
    seen = _seen(bare, column)
    if bare.kind == "categorical":
        tally = pc.value_counts(seen.drop_null().combine_chunks())
        order = np.argsort(-tally.field("counts").to_numpy(), kind="stable")
        values = tally.field("values").take(pa.array(order)).to_pylist()
        bare = msgspec.structs.replace(
            bare, categories=values[:CATEGORIES], known=sorted(values) if len(values) <= KNOWN else []
        )
    else:
        values = np.sort(seen[~np.isnan(seen)])
        at = np.ceil(np.arange(1, CELLS) / CELLS * len(values) - 1).astype(np.int64)
        edges = np.unique(values[at])  # quantiles by the inverted distribution function
        bare = msgspec.structs.replace(bare, edges=edges.tolist(), low=float(values[0]), high=float(values[-1]))
    return _measure(bare, seen, codes)


def _measure(bare: Watched, seen: Any, codes: Ints) -> Watched:
    cells, missing = _cells(bare, seen)
    timed = codes >= 0
    total = int(codes.max()) + 1
    size = _size(bare)
    use = timed & ~missing
    table = np.bincount(codes[use] * size + cells[use], minlength=total * size).reshape(total, size)
    found = spread(table, ordered=bare.kind != "categorical")
    chosen = np.unique(np.linspace(0, total - 1, min(total, KEPT_WINDOWS)).astype(np.int64))
    per_window = [
        np.bincount(codes[timed], minlength=total),
        np.bincount(codes[timed & missing], minlength=total),
        _alone(bare, seen, np.where(use, codes, -1), total),
    ]
    rows, gone, outside = (part[chosen].tolist() for part in per_window)
    return msgspec.structs.replace(
        bare,
        counts=found.counts.tolist(),
        covariance=found.covariance.ravel().tolist(),
        windows=found.windows,
        unevenness=found.unevenness if np.isfinite(found.unevenness) else None,
        rows=rows,
        missing=gone,
        outside=outside,
    )


def _alone(bare: Watched, seen: Any, codes: Ints, total: int) -> Ints:
    """Per window the values that no other window holds: what would have been new, had it come later."""
    use = codes >= 0
    if bare.kind == "categorical":
        index = pc.index_in(seen, value_set=pa.array(bare.known or [""], pa.string()))
        place = np.asarray(pc.fill_null(index, -1), dtype=np.int64)
        use &= place >= 0
        low = np.full(len(bare.known) or 1, total)
        high = np.full(len(low), -1)
        np.minimum.at(low, place[use], codes[use])
        np.maximum.at(high, place[use], codes[use])
        single = use & (low[place] == high[place])
        return np.bincount(codes[single], minlength=total)
    low, high = np.full(total, np.inf), np.full(total, -np.inf)
    np.minimum.at(low, codes[use], seen[use])
    np.maximum.at(high, codes[use], seen[use])
    if total < 2:
        return np.zeros(total, dtype=np.int64)
    # the least value of the other windows is the least of all, except for the window that holds it
    least, most = np.sort(low)[:2], np.sort(high)[-2:]
    others_low = np.where(low == least[0], least[1], least[0])
    others_high = np.where(high == most[1], most[0], most[1])
    out = use & ((seen < others_low[codes]) | (seen > others_high[codes]))
    return np.bincount(codes[out], minlength=total)


def _count(watched: Watched, column: pa.ChunkedArray) -> Ints:
    seen = _seen(watched, column)
    cells, missing = _cells(watched, seen)
    if watched.kind == "categorical":
        known = pc.is_in(seen, value_set=pa.array(watched.known, pa.string()))
        outside = int((~np.asarray(known) & ~missing).sum()) if watched.known else 0
    else:
        outside = int(((seen < watched.low) | (seen > watched.high)).sum())
    counts = np.bincount(cells[~missing], minlength=_size(watched))
    return np.concatenate([counts, [missing.sum(), outside]]).astype(np.int64)


def _size(watched: Watched) -> int:
    return (len(watched.categories) if watched.kind == "categorical" else len(watched.edges)) + 1


def _cells(watched: Watched, seen: Any) -> tuple[Ints, Array]:
    """The cell of each row, and which rows are missing (their cell means nothing)."""
    if watched.kind == "categorical":
        index = pc.index_in(seen, value_set=pa.array(watched.categories, pa.string()))
        cells = np.asarray(pc.fill_null(index, len(watched.categories)), dtype=np.int64)
        return cells, np.asarray(pc.is_null(seen))
    return np.searchsorted(watched.edges, seen, "right"), np.isnan(seen)


def _seen(watched: Watched, column: pa.ChunkedArray) -> Any:
    """The column as it is compared: strings (Arrow's) for categories, else numbers (float64)."""
    if watched.kind == "categorical":
        return texts(column)
    if watched.kind == "length":
        column = pc.utf8_length(texts(column))
    return numbers(column)


def describe(value: Any) -> str:
    """A number for people: four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
