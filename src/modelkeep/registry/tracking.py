"""What MLflow's tracking does to runs beyond logging: change, delete, restore, histories, rows in bulk."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, Row, Table, delete, select, update

from modelkeep.core.errors import Invalid, NotFound
from modelkeep.registry import holds, runs
from modelkeep.registry.changes import not_active
from modelkeep.store import tables
from modelkeep.store.bulk import Query, encode, fetch, number_array, select_in
from modelkeep.store.tables import latest_metrics, metrics

HistoryPoint = tuple[str, float | None, int, int]
"""Run id, value (None is NaN), timestamp in milliseconds, step."""


def active(conn: Connection, run_id: str) -> Row[Any]:
    """The row of a run that takes changes. Raises ``NotFound``, ``Conflict``."""
    row = runs.find(conn, run_id)
    if row.lifecycle_stage != "active":
        raise not_active(run_id, row.lifecycle_stage)
    return row


def set_stage(conn: Connection, run_id: str, stage: str, now_ms: int) -> None:
    """Delete (``deleted``) or restore (``active``) a run; a repetition changes nothing. Raises ``NotFound``."""
    row = runs.find(conn, run_id)
    if stage == "deleted":
        holds.refuse(conn, "run", run_id)
    moved = update(tables.runs).where(tables.runs.c.id == row.id)
    conn.execute(moved.values(lifecycle_stage=stage, deleted_ms=now_ms if stage == "deleted" else None))


def delete_tag(conn: Connection, run_id: str, key: str) -> None:
    """Take a tag away. Raises ``NotFound``, ``Conflict`` when the run was deleted, ``Refused`` when it is held."""
    row = active(conn, run_id)
    holds.refuse(conn, "run", run_id)
    gone = conn.execute(delete(tables.tags).where(tables.tags.c.run == row.id, tables.tags.c.key == key))
    if not gone.rowcount:
        raise NotFound(f"No tag with name: {key} in run with id {run_id}")


def history_page(
    conn: Connection, run_id: str, key: str, limit: int | None, after: Sequence[Any] | None
) -> list[tuple[Any, ...]]:
    """Points of a metric by time, step and value: (value, is_nan, timestamp_ms, step).

    Args:
        limit: At most so many; None for all.
        after: Timestamp, step, value and is_nan of the point before the first one wanted.

    Raises:
        NotFound: There is no such run.
    """
    row = runs.find(conn, run_id)
    query = "SELECT value, is_nan, timestamp_ms, step FROM metrics WHERE run = ? AND key = ?"
    parameters: list[Any] = [row.id, key]
    if after is not None:
        query += " AND (timestamp_ms, step, value, is_nan) > (?, ?, ?, ?)"
        parameters += after
    query += " ORDER BY timestamp_ms, step, value, is_nan"
    if limit is not None:
        query += " LIMIT ?"
        parameters.append(limit)
    return fetch(conn, query, parameters)


def histories(conn: Connection, run_ids: Sequence[str], key: str, limit: int) -> list[HistoryPoint]:
    """The first ``limit`` points of one metric, of several runs, in the order the runs were given."""
    numbers = _numbers(conn, run_ids)
    found: list[HistoryPoint] = []
    for run_id in run_ids:
        if run_id in numbers and len(found) < limit:
            points = history_page(conn, run_id, key, limit - len(found), None)
            found += [(run_id, None if nan else value, ms, step) for value, nan, ms, step in points]
    return found


def sampled(
    conn: Connection, run_ids: Sequence[str], key: str, start: int | None, end: int | None, most: int
) -> list[HistoryPoint]:
    """At most about ``most`` points per run, at the same evenly spread steps for all runs, ends included."""
    numbers = _numbers(conn, run_ids)
    span = [metrics.c.run.in_(list(numbers.values())), metrics.c.key == key]
    span += [metrics.c.step >= start] if start is not None else []
    span += [metrics.c.step <= end] if end is not None else []
    steps = list(conn.execute(select(metrics.c.step).where(*span).distinct().order_by(metrics.c.step)).scalars())
    if len(steps) > most:
        stride = (len(steps) - 1) / (most - 1) if most > 1 else len(steps)
        steps = sorted({steps[round(at * stride)] for at in range(most)} if most > 1 else {steps[-1]})
    wanted = set(steps)
    query = select(metrics.c.run, metrics.c.value, metrics.c.is_nan, metrics.c.timestamp_ms, metrics.c.step)
    query = query.where(*span).order_by(metrics.c.run, metrics.c.step, metrics.c.timestamp_ms, metrics.c.value)
    by_run: dict[int, list[Any]] = {}
    for run, value, nan, ms, step in conn.execute(query):
        if step in wanted:
            by_run.setdefault(run, []).append((None if nan else value, ms, step))
    return [
        (run_id, value, ms, step)
        for run_id in run_ids
        for value, ms, step in by_run.get(numbers.get(run_id, -1), ())
    ]


def _numbers(conn: Connection, run_ids: Sequence[str]) -> dict[str, int]:
    if not run_ids:
        raise Invalid("Missing value for required parameter 'run_ids'")
    return {str(row[0]): int(row[1]) for row in select_in(conn, "run_id, id", tables.runs, "run_id", run_ids)}


def texts(conn: Connection, table: Table, runs: Sequence[int]) -> Query:
    """Asks for params or tags by run's row number, as JSON of ``{"key", "value"}`` that the database writes."""
    if conn.dialect.name == "postgresql":
        made = "json_agg(json_build_object('key', key, 'value', value))::text"
        return f"SELECT run, {made} FROM {table.name} WHERE run = ANY(?::bigint[]) GROUP BY run", (
            number_array(runs),
        )
    made = "json_group_array(json_object('key', key, 'value', value))"
    query = f"SELECT run, {made} FROM {table.name} WHERE run IN (SELECT value FROM json_each(?)) GROUP BY run"
    return query, (encode(runs),)


class Contents:
    """What a page of runs holds, read with one query per table.

    Attributes:
        metrics: (key, value or None for NaN, timestamp_ms, step) by run's row number.
        params: (key, value) by run's row number.
        tags: (key, value) by run's row number.
    """

    def __init__(self, conn: Connection, numbers: Iterable[int]) -> None:
        ids = list(numbers)
        self.metrics = _grouped(select_in(conn, "run, key, value, timestamp_ms, step", latest_metrics, "run", ids))
        self.params = _grouped(select_in(conn, "run, key, value", tables.params, "run", ids))
        self.tags = _grouped(select_in(conn, "run, key, value", tables.tags, "run", ids))


def _grouped(rows: Iterable[tuple[Any, ...]]) -> dict[int, list[tuple[Any, ...]]]:
    found: dict[int, list[tuple[Any, ...]]] = {}
    for row in rows:
        found.setdefault(row[0], []).append(row[1:])
    return found
