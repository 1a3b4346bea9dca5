"""Operations on statistics of traces: metrics by group and time, and how far two filters go together."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct
from sqlalchemy import Connection

from modelkeep.core.errors import Invalid
from modelkeep.protocols.mlflow import checks
from modelkeep.protocols.mlflow.wire import Operation, Work, missing, number
from modelkeep.registry import traces_metrics
from modelkeep.registry.traces_metrics import TIME, Aggregation, Filter, Query

MAX_POINTS = 10_000
SMOOTHING = 0.5
"""Added to each count (Jeffreys' prior), so that few traces do not look like certainty."""

_TEXT = r"'((?:[^']|'')*)'|\"((?:[^\"]|\"\")*)\""
_FILTER = re.compile(
    rf"\s*(trace|span|assessment)\.(\w+)(?:\.(`[^`]+`|\"[^\"]+\"|'[^']+'|[\w][\w\-./:@]*))?\s*=\s*(?:{_TEXT})\s*\Z"
)
_ENTITIES = {
    "trace": {"status": False, "tag": True, "metadata": True},
    "span": {"name": False, "status": False, "type": False},
    "assessment": {"name": False, "type": False},
}
_LATEST = 253_402_300_800_000


class Made(Struct, frozen=True):
    """MetricAggregation."""

    aggregation_type: Literal["COUNT", "SUM", "AVG", "PERCENTILE", "MIN", "MAX"]
    percentile_value: float | None = None


class Metrics(Struct, frozen=True):
    """queryTraceMetrics."""

    view_type: Literal["TRACES", "SPANS", "ASSESSMENTS"]
    metric_name: str
    experiment_ids: list[str] = []
    aggregations: list[Made] = []
    dimensions: list[str] = []
    filters: list[str] = []
    time_interval_seconds: Annotated[int, Meta(ge=1, le=10**9)] | None = None
    start_time_ms: int | None = None
    end_time_ms: int | None = None
    max_results: int = 1000
    page_token: str = ""


class Correlation(Struct, frozen=True):
    """calculateTraceFilterCorrelation."""

    filter_string1: str
    filter_string2: str
    experiment_ids: list[str] = []
    base_filter: str = ""


def _within(ids: list[str]) -> list[int]:
    if not ids:
        raise missing("experiment_ids")
    return [checks.experiment_id(each) for each in ids]


def _aggregation(said: Made, path: str) -> Aggregation:
    share = said.percentile_value
    if (said.aggregation_type == "PERCENTILE") != (share is not None):
        raise Invalid(f"{path}: PERCENTILE needs a percentile_value, and nothing else has one")
    if share is not None and not 0 <= share <= 100:
        raise Invalid(f"{path}.percentile_value: expected a number from 0 to 100, found {share}")
    return Aggregation(said.aggregation_type, share)


def _filter(text: str, path: str) -> Filter:
    found = _FILTER.match(text)
    if found is None:
        raise Invalid(f"{path}: expected one comparison such as trace.status = 'OK', found {text[:100]!r}")
    view, entity, key, single, double = found.groups()
    if entity not in _ENTITIES[view]:
        raise Invalid(f"{path}: {view} has no '{entity}'; expected one of {sorted(_ENTITIES[view])}")
    if _ENTITIES[view][entity] != bool(key):
        raise Invalid(f"{path}: {view}.{entity} {'needs a' if key is None else 'has no'} key")
    value = double.replace('""', '"') if single is None else single.replace("''", "'")
    return Filter(view, entity, (key or "").strip("`\"'"), value)


def _metrics(asked: Metrics, _: int) -> Work:
    checks.page(asked.max_results, MAX_POINTS)
    if asked.page_token and not (asked.page_token.isdecimal() and len(asked.page_token) < 10):
        raise Invalid("Invalid page token, could not base64-decode")
    for name in ("start_time_ms", "end_time_ms"):
        checks.whole(name, getattr(asked, name) or 0)
    skip = int(asked.page_token or 0)
    query = Query(
        within=_within(asked.experiment_ids),
        view=asked.view_type,
        metric=asked.metric_name,
        aggregations=[_aggregation(each, f"aggregations[{at}]") for at, each in enumerate(asked.aggregations)],
        dimensions=list(dict.fromkeys(asked.dimensions)),
        filters=[_filter(each, f"filters[{at}]") for at, each in enumerate(asked.filters)],
        seconds=asked.time_interval_seconds,
        start_ms=asked.start_time_ms,
        end_ms=asked.end_time_ms,
        limit=asked.max_results,
        skip=skip,
    )

    def work(conn: Connection) -> dict[str, Any]:
        found, more = traces_metrics.points(conn, query)
        points = [
            {"metric_name": query.metric, "dimensions": _named(groups), "values": values}
            for groups, values in found
        ]
        return {"data_points": points, **({"next_page_token": str(skip + query.limit)} if more else {})}

    return work


def _named(groups: dict[str, str]) -> dict[str, str]:
    """Time buckets as ISO 8601 has them."""
    if TIME not in groups:
        return groups
    ms = max(min(int(groups[TIME]), _LATEST - 1), -62_135_596_800_000)
    return {**groups, TIME: datetime.fromtimestamp(ms / 1000, tz=UTC).isoformat()}


def _correlation(asked: Correlation, _: int) -> Work:
    within = _within(asked.experiment_ids)

    def work(conn: Connection) -> dict[str, Any]:
        one, other, both, all_ = traces_metrics.counts(
            conn, within, asked.filter_string1, asked.filter_string2, asked.base_filter
        )
        said: dict[str, Any] = {
            "filter1_count": one,
            "filter2_count": other,
            "joint_count": both,
            "total_count": all_,
        }
        if one and other:
            said["npmi"] = -1.0 if not both else number(npmi(one, other, both, all_, 0.0))
            said["npmi_smoothed"] = number(npmi(one, other, both, all_, SMOOTHING))
        return said

    return work


def npmi(one: int, other: int, both: int, all_: int, smoothing: float) -> float:
    """Normalized pointwise mutual information: -1 never together, 0 independent, 1 always together.

    Args:
        one: How many match the first filter; ``other`` the second, ``both`` both, ``all_`` how many there are.
        smoothing: Added to each cell of the table.

    Source: G. Bouma, "Normalized (Pointwise) Mutual Information in Collocation Extraction", 2009.
    """
    if one == other == both == all_:
        return 1.0
    together = both + smoothing
    total = all_ + 4 * smoothing
    first, second = one + 2 * smoothing, other + 2 * smoothing
    found = math.log(together * total / (first * second)) / -math.log(together / total)
    return max(-1.0, min(1.0, found))


OPERATIONS = [
    Operation("POST", "traces/metrics", Metrics, _metrics),
    Operation("POST", "traces/calculate-filter-correlation", Correlation, _correlation),
]
