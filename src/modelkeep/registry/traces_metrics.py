"""Statistics over traces, their spans and their assessments: counts, sums and quantiles by group and by time.

Quantiles interpolate between neighbours (Hyndman and Fan's type 7, NumPy's default), on both databases alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from msgspec import Struct
from sqlalchemy import Connection

from modelkeep.core.errors import Invalid
from modelkeep.registry import traces
from modelkeep.registry.queries import Part
from modelkeep.registry.traces_search import matching, patterns
from modelkeep.store.bulk import fetch

View = Literal["TRACES", "SPANS", "ASSESSMENTS"]
TIME = "time_bucket"
_NUMBERS = ("AVG", "MIN", "MAX", "PERCENTILE")
_SUMS = ("SUM", *_NUMBERS)


class Measured(Struct, frozen=True):
    """One metric: SQL of its value, what may be made of it, and what it may be grouped by."""

    sql: str
    aggregations: tuple[str, ...]
    dimensions: tuple[str, ...] = ()


class Aggregation(Struct, frozen=True):
    """What is made of the values of a group; ``percentile`` from 0 to 100."""

    kind: str
    percentile: float | None = None

    @property
    def name(self) -> str:
        """As answers name it."""
        return self.kind if self.percentile is None else f"P{self.percentile}"


class Filter(Struct, frozen=True):
    """``trace.status``, ``trace.tag.<key>``, ``span.name`` ... equal to a text."""

    view: str
    entity: str
    key: str
    value: str


class Query(Struct, frozen=True, kw_only=True):
    """What is asked.

    Attributes:
        within: Experiments' numbers.
        seconds: Width of the time buckets; None for one over all.
        start_ms: Of the traces asked about, with ``end_ms``; both ends count.
        limit: At most so many points.
        skip: Points of earlier pages.
    """

    within: Sequence[int]
    view: View
    metric: str
    aggregations: Sequence[Aggregation]
    dimensions: Sequence[str] = ()
    filters: Sequence[Filter] = ()
    seconds: int | None = None
    start_ms: int | None = None
    end_ms: int | None = None
    limit: int = 1000
    skip: int = 0


_COSTS = {
    f"{part}_cost": Measured(f"s.{part}_cost", _SUMS, ("span_model_name", "span_model_provider"))
    for part in ("input", "output", "total")
}
METRICS: Mapping[str, Mapping[str, Measured]] = {
    "TRACES": {
        "trace_count": Measured("r.id", ("COUNT",), ("trace_name", "trace_status")),
        "session_count": Measured("DISTINCT r.session", ("COUNT",)),
        "latency": Measured("r.duration_ms", _NUMBERS, ("trace_name",)),
        **{name: Measured(f"r.{name}", _SUMS, ("trace_name",)) for name in traces.TOKEN_COLUMNS},
    },
    "SPANS": {
        "span_count": Measured(
            "s.id",
            ("COUNT",),
            ("span_name", "span_type", "span_status", "span_model_name", "span_model_provider"),
        ),
        "latency": Measured("((s.end_ns - s.start_ns) / 1000000)", _NUMBERS, ("span_name", "span_status")),
        **_COSTS,
    },
    "ASSESSMENTS": {
        "assessment_count": Measured("a.id", ("COUNT",), ("assessment_name", "assessment_value")),
        "assessment_value": Measured("a.number", _NUMBERS, ("assessment_name",)),
    },
}
_DIMENSIONS = {
    "trace_name": "r.name",
    "trace_status": "r.status",
    "span_name": "s.name",
    "span_type": "s.type",
    "span_status": "s.status",
    "span_model_name": "s.model",
    "span_model_provider": "s.provider",
    "assessment_name": "a.name",
    "assessment_value": "a.value",
}
_FROM = {
    "TRACES": "traces r",
    "SPANS": "traces r JOIN trace_spans s ON s.trace = r.id",
    "ASSESSMENTS": "traces r JOIN trace_assessments a ON a.trace = r.id AND a.valid = 1",
}
_EQUAL = {
    ("trace", "status"): "r.status",
    ("span", "name"): "s.name",
    ("span", "status"): "s.status",
    ("span", "type"): "s.type",
    ("assessment", "name"): "a.name",
    ("assessment", "type"): "a.kind",
}


def points(conn: Connection, asked: Query) -> tuple[list[tuple[dict[str, str], dict[str, float]]], bool]:
    """(dimensions, values) of each group in the order of its dimensions, and whether there are more.

    Time buckets are ``time_bucket``: milliseconds since 1970 at which the bucket begins, as text.

    Raises:
        Invalid: There is no such metric, or it is not aggregated, grouped or filtered like that.
    """
    measured = _checked(asked)
    started = "(s.start_ns / 1000000)" if asked.view == "SPANS" else "r.start_ms"
    time = (
        started if asked.metric in _COSTS else "r.start_ms"
    )  # costs count when they arise, spans with their trace
    groups = []
    if asked.seconds is not None:
        width = asked.seconds * 1000
        # floored, also before 1970: whole numbers are cut towards zero
        groups.append((TIME, f"({started} - (({started} % {width}) + {width}) % {width})"))
    groups += [(name, _DIMENSIONS[name]) for name in asked.dimensions]
    wanted = [Part(f"r.experiment IN ({', '.join('?' * len(asked.within))})", tuple(asked.within))]
    wanted += [Part(f"{sql} IS NOT NULL") for _, sql in groups]
    wanted.append(Part(f"{measured.sql.removeprefix('DISTINCT ')} IS NOT NULL"))
    if asked.start_ms is not None:
        wanted.append(Part(f"{time} >= ?", (asked.start_ms,)))
    if asked.end_ms is not None:
        wanted.append(Part(f"{time} <= ?", (asked.end_ms,)))
    wanted += [_condition(each) for each in asked.filters]
    rows = _rows(conn, asked, measured.sql, [sql for _, sql in groups], wanted)
    found = []
    for row in rows[: asked.limit]:
        keys = {name: str(value) for (name, _), value in zip(groups, row, strict=False)}
        values = zip(asked.aggregations, row[len(groups) :], strict=True)
        found.append((keys, {each.name: float(value) for each, value in values}))
    return found, len(rows) > asked.limit


def _checked(asked: Query) -> Measured:
    known = METRICS[asked.view]
    if asked.metric not in known:
        raise Invalid(f"metric_name must be one of {sorted(known)}, got '{asked.metric}'")
    measured = known[asked.metric]
    wrong = sorted({each.kind for each in asked.aggregations} - set(measured.aggregations))
    if wrong or not asked.aggregations:
        raise Invalid(
            f"Found invalid aggregation_type(s): {wrong}. Supported aggregation types:"
            f" {sorted(measured.aggregations)}"
        )
    wrong = sorted(set(asked.dimensions) - set(measured.dimensions))
    if wrong:
        raise Invalid(f"Found invalid dimension(s): {wrong}. Supported dimensions: {sorted(measured.dimensions)}")
    for each in asked.filters:
        if each.view != "trace" and each.view != asked.view.lower().removesuffix("s"):
            raise Invalid(f"Filtering by {each.view} is not supported for the {asked.view} view type")
    return measured


def _condition(said: Filter) -> Part:
    column = _EQUAL.get((said.view, said.entity))
    if column is not None:
        return Part(f"{column} = ?", (said.value,))
    table = "trace_tags" if said.entity == "tag" else "trace_metadata"
    sql = f"EXISTS (SELECT 1 FROM {table} v WHERE v.trace = r.id AND v.key = ? AND v.value = ?)"
    if said.key != traces.SOURCE_RUN:
        return Part(sql, (said.key, said.value))
    linked = "EXISTS (SELECT 1 FROM trace_links k WHERE k.trace = r.id AND k.kind = 'run' AND k.target = ?)"
    return Part(f"({sql} OR {linked})", (said.key, said.value, said.value))


def _rows(
    conn: Connection, asked: Query, value: str, groups: Sequence[str], wanted: Sequence[Part]
) -> list[tuple[Any, ...]]:
    names = [f"g{at}" for at in range(len(groups))]
    columns = ", ".join([*(f"{sql} AS {name}" for sql, name in zip(groups, names, strict=True))])
    where = " AND ".join(part.sql for part in wanted)
    values = tuple(each for part in wanted for each in part.values)
    grouped = f" GROUP BY {', '.join(names)} ORDER BY {', '.join(names)}" if names else ""
    quantiles = any(each.kind == "PERCENTILE" for each in asked.aggregations)
    inner = value.removeprefix("DISTINCT ")
    ranks = ""
    if quantiles and conn.dialect.name != "postgresql":  # which has no percentile_cont
        within = f"PARTITION BY {', '.join(groups)} " if groups else ""
        ranks = f", row_number() OVER ({within}ORDER BY {inner}) - 1 AS k, count(*) OVER ({within}) - 1 AS m"
    listed = f"{columns}, {inner} AS x{ranks}" if columns else f"{inner} AS x{ranks}"
    made = ", ".join([*names, *(_made(each, value, conn.dialect.name) for each in asked.aggregations)])
    sql = (
        f"SELECT {made} FROM (SELECT {listed} FROM {_FROM[asked.view]} WHERE {where}) q{grouped} LIMIT ? OFFSET ?"
    )
    return [row for row in fetch(conn, sql, (*values, asked.limit + 1, asked.skip)) if row[-1] is not None]


def _made(each: Aggregation, value: str, dialect: str) -> str:
    if each.kind == "COUNT":
        return "count(DISTINCT x)" if value.startswith("DISTINCT") else "count(x)"
    if each.percentile is None:
        return f"{each.kind}(x)"
    share = each.percentile / 100
    if dialect == "postgresql":
        return f"percentile_cont({share!r}) WITHIN GROUP (ORDER BY x)"
    at = f"(m * {share!r})"  # between the ranks below and above, by what is left of it
    low, high = f"CAST({at} AS INTEGER)", f"(CAST({at} AS INTEGER) + 1)"
    left = f"({at} - {low})"
    below, above = f"max(CASE WHEN k = {low} THEN x END)", f"max(CASE WHEN k = {high} THEN x END)"
    rest = f"max({left})"
    return f"{below} + CASE WHEN {rest} > 0 THEN {rest} * ({above} - {below}) ELSE 0 END"


def counts(conn: Connection, within: Sequence[int], one: str, other: str, base: str) -> tuple[int, int, int, int]:
    """How many traces match the first filter, the second, both, and ``base`` alone. Raises ``Invalid``.

    Both filters are looked for among the traces that ``base`` matches; it may be empty.
    """

    def count(*texts: str) -> int:
        text = " AND ".join(each for each in (base, *texts) if each.strip())
        start, wanted = matching(conn, within, text)
        where = " AND ".join(part.sql for part in wanted)
        values = (*start.values, *(value for part in wanted for value in part.values))
        with patterns(text):
            ((found,),) = fetch(conn, f"SELECT count(*) FROM {start.sql} WHERE {where}", values)
        return int(found)

    return count(one), count(other), count(one, other), count()
