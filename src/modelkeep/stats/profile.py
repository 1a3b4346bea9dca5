"""Profiles: mergeable statistics of a table. ``partial`` a part, ``merge`` parts, ``summary`` the whole.

Quantiles come from KLL sketches (Karnin, Lang and Liberty 2016, as in Apache DataSketches) with a rank error of
0.7 % at 99 % confidence; counts, extremes and moments are exact; distinct and frequent values as in ``sketches``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import reduce
from typing import Any, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasketches import kll_doubles_sketch

from modelkeep.core.errors import Damaged, Invalid
from modelkeep.stats.outputs import Floats
from modelkeep.stats.sketches import (
    Comoments,
    Distinct,
    Frequent,
    Hashes,
    Moments,
    hash_numbers,
    hash_strings,
)

Kind = Literal["numeric", "categorical", "text", "boolean", "time", "other", "unknown"]

KLL_SIZE = 400
KEPT_TEXTS = 1024
KEPT_NUMBERS = 128
MOST_CORRELATED = 100
"""Correlations are kept for the first so many numeric columns: their size grows with the square."""
LONG_TEXT = 32
"""Strings of at least so many bytes on average are text, shorter ones are categories."""
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
BINS = 20


@dataclass(frozen=True)
class Column:
    """Statistics of one column.

    Attributes:
        stored: What its values are: ``numeric``, ``string``, ``boolean``, ``time``; ``other`` for nested values;
            ``unknown`` while only missing values were seen.
        type: Arrow's name of the type.
        rows: Values seen, missing ones too.
        missing: Null or NaN.
        infinite: Plus or minus infinity: counted, and left out of everything below.
        moments: Of numbers; of times in seconds since 1970 UTC; of strings their length in bytes.
        distinct: Different values.
        frequent: Most frequent values.
        quantiles: KLL sketch of numbers and times.
    """

    stored: str = "unknown"
    type: str = "null"
    rows: int = 0
    missing: int = 0
    infinite: int = 0
    moments: Moments = field(default_factory=Moments)
    distinct: Distinct = field(default_factory=Distinct)
    frequent: Frequent = field(default_factory=Frequent)
    quantiles: kll_doubles_sketch = field(default_factory=lambda: kll_doubles_sketch(KLL_SIZE))

    @property
    def kind(self) -> Kind:
        """How the column is best treated."""
        if self.stored == "string":
            return "text" if self.moments.mean >= LONG_TEXT else "categorical"
        return self.stored  # type: ignore[return-value]

    def quantile(self, share: float) -> float:
        """The value below which a share of the values lies; NaN when there is none."""
        return float(self.quantiles.get_quantile(share)) if self.moments.count and self.ordered else float("nan")

    @property
    def ordered(self) -> bool:
        """Whether values are numbers or times."""
        return self.stored in {"numeric", "time"}


@dataclass(frozen=True)
class Profile:
    """Statistics of a table.

    Attributes:
        rows: How many.
        columns: By name, in the table's order.
        joint: Of the numeric columns together.
    """

    rows: int = 0
    columns: dict[str, Column] = field(default_factory=dict)
    joint: Comoments = field(default_factory=Comoments)

    def to_bytes(self) -> bytes:
        """For keeping; ``from_bytes`` gives it back."""
        return msgspec.msgpack.encode(
            {
                "rows": self.rows,
                "columns": {name: _pack(column) for name, column in self.columns.items()},
                "joint": [self.joint.names, *(matrix.tobytes() for matrix in self.joint.matrices)],
            }
        )

    @staticmethod
    def from_bytes(data: bytes) -> Profile:
        """What ``to_bytes`` made. Raises ``Damaged``."""
        try:
            held = msgspec.msgpack.decode(data)
            names, *matrices = held["joint"]
            shape = (len(names), len(names))
            joint = Comoments(tuple(names), *(np.frombuffer(matrix).reshape(shape) for matrix in matrices))
            columns = {name: _unpack(packed) for name, packed in held["columns"].items()}
            return Profile(held["rows"], columns, joint)
        except (msgspec.DecodeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise Damaged(f"not a profile: {error}", hint="take the snapshot again to profile it anew") from error

    def summary(self) -> dict[str, Any]:
        """JSON types only: rows; per column what it holds, quantiles, histogram, top values; correlations."""
        found: dict[str, Any] = {
            "rows": self.rows,
            "columns": {name: _summary(column) for name, column in self.columns.items()},
        }
        if self.joint.names:
            matrix = [[_plain(value, 6) for value in row] for row in self.joint.correlations().tolist()]
            found["correlations"] = {"columns": list(self.joint.names), "matrix": matrix}
        return found


def partial(table: pa.Table) -> Profile:
    """Profile one part of a table."""
    columns: dict[str, Column] = {}
    numbers: dict[str, Floats] = {}
    for name in table.column_names:
        columns[name], values = _column(table.column(name))
        if values is not None and len(numbers) < MOST_CORRELATED:
            numbers[name] = values
    return Profile(table.num_rows, columns, Comoments.of(numbers))


def merge(a: Profile, b: Profile) -> Profile:
    """Profile of both parts together. A column that one part lacks counts as missing there.

    Raises:
        Invalid: A column holds numbers in one part and text in the other.
    """
    names = dict.fromkeys([*a.columns, *b.columns])
    columns = {
        name: _join(
            name,
            a.columns.get(name) or Column(rows=a.rows, missing=a.rows),
            b.columns.get(name) or Column(rows=b.rows, missing=b.rows),
        )
        for name in names
    }
    return Profile(a.rows + b.rows, columns, a.joint.merge(b.joint))


def merge_all(parts: list[Profile]) -> Profile:
    """Of any number of parts; of none, the empty profile."""
    return reduce(merge, parts, Profile())


def _join(name: str, a: Column, b: Column) -> Column:
    rows, missing = a.rows + b.rows, a.missing + b.missing
    if "unknown" in (a.stored, b.stored):
        known = b if a.stored == "unknown" else a
        return replace(known, rows=rows, missing=missing)
    if a.stored != b.stored:
        raise Invalid(
            f"column {name!r} is {a.type} in one part and {b.type} in another; cast it to one type", path=name
        )
    quantiles = kll_doubles_sketch(KLL_SIZE)
    for part in (a, b):
        quantiles.merge(part.quantiles)
    return Column(
        a.stored,
        a.type,
        rows,
        missing,
        a.infinite + b.infinite,
        a.moments.merge(b.moments),
        a.distinct.merge(b.distinct),
        a.frequent.merge(b.frequent, KEPT_NUMBERS if a.ordered else KEPT_TEXTS),
        quantiles,
    )


def _column(column: pa.ChunkedArray) -> tuple[Column, Floats | None]:
    """The column's statistics, and its values as numbers when it is numeric."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_boolean(kind):
        return _of_booleans(column), None
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        values = column.cast(pa.float64(), safe=False).to_numpy()
        return _of_numbers(values, "numeric", str(kind)), values
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        stamps = column.cast(pa.timestamp("us"), safe=False).cast(pa.int64())
        return _of_numbers(stamps.cast(pa.float64(), safe=False).to_numpy() / 1e6, "time", str(kind)), None
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _of_strings(column), None
    if pa.types.is_null(kind):
        return Column(rows=len(column), missing=len(column)), None
    return Column("other", str(kind), len(column), column.null_count), None


def _of_numbers(values: Floats, stored: str, type_name: str) -> Column:
    missing = int(np.isnan(values).sum())
    finite = np.sort(values[np.isfinite(values)])
    if len(finite) == 0 and missing == len(values):
        return Column("unknown" if len(values) else stored, type_name, len(values), missing)
    starts = (
        np.flatnonzero(np.concatenate([[True], finite[1:] != finite[:-1]])) if len(finite) else np.empty(0, int)
    )
    unique, counts = finite[starts], np.diff(starts, append=len(finite))
    sketch = kll_doubles_sketch(KLL_SIZE)
    sketch.update(finite)
    often = counts > 1 if len(counts) > KEPT_NUMBERS else np.ones(len(counts), bool)
    frequent = Frequent.of(unique[often].tolist(), counts[often], KEPT_NUMBERS)
    return Column(
        stored,
        type_name,
        len(values),
        missing,
        len(values) - missing - len(finite),
        Moments.of(finite),
        Distinct.of(hash_numbers(unique)),
        frequent if often.all() else replace(frequent, slack=max(1, frequent.slack)),
        sketch,
    )


def _of_strings(column: pa.ChunkedArray) -> Column:
    rows, missing = len(column), column.null_count
    if rows == missing:
        return Column("unknown" if rows else "string", str(column.type), rows, missing)
    tally = pc.value_counts(column.drop_null().combine_chunks())
    values, counts = tally.field("values"), tally.field("counts").to_numpy()
    sizes = pc.binary_length(values).to_numpy(zero_copy_only=False).astype(np.float64)
    mean = float(np.average(sizes, weights=counts))
    spread = float(np.sum(counts * (sizes - mean) ** 2))
    most, slack = counts, 0
    kept = values
    if len(counts) > KEPT_TEXTS:
        order = np.argsort(-counts, kind="stable")
        slack = int(counts[order[KEPT_TEXTS]])
        kept, most = values.take(pa.array(order[:KEPT_TEXTS])), counts[order[:KEPT_TEXTS]]
    frequent = Frequent(dict(zip(kept.to_pylist(), most.tolist(), strict=True)), slack)
    return Column(
        "string",
        str(column.type),
        rows,
        missing,
        moments=Moments(rows - missing, mean, spread, float(sizes.min()), float(sizes.max())),
        distinct=Distinct.of(hash_strings(values)),
        frequent=frequent,
    )


def _of_booleans(column: pa.ChunkedArray) -> Column:
    rows, missing = len(column), column.null_count
    yes = int(pc.sum(column).as_py() or 0)
    counts = {value: count for value, count in ((True, yes), (False, rows - missing - yes)) if count}
    values = np.array([float(value) for value in counts])
    share = yes / max(rows - missing, 1)
    moments = Moments(rows - missing, share, yes * (1 - share), 0.0, 1.0) if rows > missing else Moments()
    distinct = Distinct.of(hash_numbers(values))
    return Column("boolean", "bool", rows, missing, 0, moments, distinct, Frequent(counts))


def _pack(column: Column) -> list[Any]:
    moments = column.moments
    return [
        [column.stored, column.type, column.rows, column.missing, column.infinite],
        [moments.count, moments.mean, moments.squares, moments.low, moments.high],
        column.distinct.hashes.tobytes(),
        [list(column.frequent.counts.items()), column.frequent.slack],
        column.quantiles.serialize(),
    ]


def _unpack(packed: list[Any]) -> Column:
    basics, moments, hashes, (items, slack), sketch = packed
    seen: Hashes = np.frombuffer(hashes, np.uint64)
    stored, type_name, rows, missing, infinite = basics
    return Column(
        stored,
        type_name,
        rows,
        missing,
        infinite,
        Moments(*moments),
        Distinct(seen),
        Frequent(dict(items), slack),
        kll_doubles_sketch.deserialize(sketch),
    )


def _summary(column: Column) -> dict[str, Any]:
    found: dict[str, Any] = {
        "kind": column.kind,
        "type": column.type,
        "rows": column.rows,
        "missing": column.missing,
        "distinct": column.distinct.count,
    }
    moments = column.moments
    show: Callable[[Any], Any]
    if column.infinite:
        found["infinite"] = column.infinite
    if column.ordered and moments.count:
        show = _moment if column.stored == "time" else _plain
        found |= {"min": show(moments.low), "max": show(moments.high), "mean": show(moments.mean)}
        found["std"] = _plain(moments.std)
        found["quantiles"] = {str(share): show(column.quantile(share)) for share in QUANTILES}
        found["histogram"] = _histogram(column)
    elif column.stored in {"string", "boolean"} and moments.count:
        found["mean" if column.stored == "boolean" else "mean_length"] = _plain(moments.mean)
    if column.frequent.counts:
        show = _moment if column.stored == "time" else _plain
        found["top"] = [[show(value), count] for value, count in column.frequent.top(10)]
    return found


def _histogram(column: Column) -> dict[str, list[float]]:
    """Equal-width bins from the least to the greatest value; counts from the sketch."""
    low, high, count = column.moments.low, column.moments.high, column.moments.count
    if low == high:
        return {"edges": [low, high], "counts": [float(count)]}
    edges = np.linspace(low, high, BINS + 1)
    shares = column.quantiles.get_pmf(edges[1:-1].tolist(), True)
    return {"edges": edges.tolist(), "counts": [round(share * count, 1) for share in shares]}


def _plain(value: Any, digits: int | None = None) -> Any:
    if isinstance(value, float):
        if not np.isfinite(value):
            return None
        return value if digits is None else round(value, digits)
    return value


def _moment(seconds: float) -> str | None:
    if not np.isfinite(seconds):
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat()
