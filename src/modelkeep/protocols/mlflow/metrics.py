"""Operations on the histories of metrics."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable
from typing import Any

from msgspec import Struct
from sqlalchemy import Connection

from modelkeep.core.errors import Invalid
from modelkeep.protocols.mlflow import checks, shapes
from modelkeep.protocols.mlflow.experiments import Text
from modelkeep.protocols.mlflow.runs import id_of
from modelkeep.protocols.mlflow.wire import Operation, Work
from modelkeep.registry import tracking


class History(Struct, frozen=True):
    """getMetricHistory."""

    metric_key: str
    run_id: str = ""
    run_uuid: str = ""
    page_token: Text = ""
    max_results: int | None = None


MOST_POINTS = 25_000
"""Of a history of many runs."""


class Bulk(Struct, frozen=True):
    """getMetricHistoryBulk."""

    metric_key: str
    run_ids: list[str] = []
    run_id: list[str] = []
    max_results: int = MOST_POINTS


class Sampled(Struct, frozen=True):
    """getMetricHistoryBulkInterval."""

    metric_key: str
    run_ids: list[str] = []
    run_id: list[str] = []
    start_step: int | None = None
    end_step: int | None = None
    max_results: int = 2500


def _history(asked: History, _: int) -> Work:
    run_id = id_of(asked)
    limit = asked.max_results
    if limit is not None:
        checks.page(limit, 1_000_000)
    after = _read_point(asked.page_token) if asked.page_token else None
    key = asked.metric_key

    def work(conn: Connection) -> dict[str, Any]:
        rows = tracking.history_page(conn, run_id, key, None if limit is None else limit + 1, after)
        more = limit is not None and len(rows) > limit
        rows = rows[:limit]
        found = [shapes.point(key, None if nan else value, ms, step) for value, nan, ms, step in rows]
        return {"metrics": found, **({"next_page_token": _write_point(rows[-1])} if more else {})}

    return work


def _write_point(row: Any) -> str:
    value, nan, ms, step = row
    return base64.urlsafe_b64encode(json.dumps([ms, step, value, nan]).encode()).decode()


def _read_point(token: str) -> list[Any]:
    try:
        ms, step, value, nan = json.loads(base64.urlsafe_b64decode(token.encode("ascii")))
        whole = all(isinstance(each, int) and abs(each) < 2**63 for each in (ms, step, nan))
        if whole and isinstance(value, int | float) and not math.isnan(value):
            return [ms, step, float(value), nan]
    except (ValueError, TypeError, RecursionError, OverflowError):
        pass
    raise Invalid("Invalid page token, could not base64-decode")


def _bulk(asked: Bulk, _: int) -> Work:
    ids = sorted(set(asked.run_ids or asked.run_id))
    checks.count("run_ids", len(ids), 100)
    checks.page(asked.max_results, 100_000)
    most = min(asked.max_results, MOST_POINTS)
    return lambda conn: {
        "metrics": _of_runs(asked.metric_key, tracking.histories(conn, ids, asked.metric_key, most))
    }


def _interval(asked: Sampled, _: int) -> Work:
    ids = asked.run_ids or asked.run_id
    checks.count("run_ids", len(ids), 100)
    checks.page(asked.max_results, 2500)
    if asked.start_step is not None and asked.end_step is not None and asked.start_step > asked.end_step:
        raise Invalid(
            f"end_step must be greater than start_step. Found start_step={asked.start_step} and"
            f" end_step={asked.end_step}."
        )
    span = (asked.start_step, asked.end_step, asked.max_results)
    return lambda conn: {
        "metrics": _of_runs(asked.metric_key, tracking.sampled(conn, ids, asked.metric_key, *span))
    }


def _of_runs(key: str, points: Iterable[tracking.HistoryPoint]) -> list[dict[str, Any]]:
    return [{**shapes.metric(key, value, ms, step), "run_id": run_id} for run_id, value, ms, step in points]


OPERATIONS = [
    Operation("GET", "metrics/get-history", History, _history),
    Operation("GET", "metrics/get-history-bulk", Bulk, _bulk),
    Operation("GET", "metrics/get-history-bulk-interval", Sampled, _interval),
]
