"""Runs: one execution with params, metrics over steps, tags and artifacts. The data model is MLflow's.

Sources: mlflow.org/docs/latest/tracking; limits and last-value rules as its SQL store has them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct, field
from sqlalchemy import Connection, Row, func, select, update

from modelkeep.core.errors import Invalid, NotFound, Problem
from modelkeep.registry.changes import RUN_NAME, Begin, Log, Point
from modelkeep.store import tables
from modelkeep.store.bulk import insert_rows, inserting, select_in

STATUSES = ("RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED")
PARENT = "mlflow.parentRunId"

_ENDED = ("FINISHED", "FAILED", "KILLED")


class Run(Struct, frozen=True, kw_only=True):
    """One run.

    Attributes:
        start: Seconds since 1970.
        end: Seconds since 1970; None while it runs.
        metrics: The last value by key.
        artifacts: Digest and size in bytes by path.
        parent: Run id of the run it belongs to.
    """

    run_id: str
    experiment_id: int
    name: str
    status: str
    start: float
    end: float | None
    user: str = ""
    lifecycle_stage: str = "active"
    metrics: dict[str, float] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    artifacts: dict[str, tuple[str, int]] = field(default_factory=dict)
    parent: str | None = None


def experiment(conn: Connection, name: str, now: float) -> int:
    """The number of an experiment, making it if it is new."""
    ms = round(now * 1000)
    made = inserting(conn, tables.experiments).on_conflict_do_nothing(index_elements=["name"])
    conn.execute(made, {"name": name, "created_ms": ms, "updated_ms": ms})
    query = select(tables.experiments.c.id).where(tables.experiments.c.name == name)
    return int(conn.execute(query).scalar_one())


def create(
    conn: Connection,
    experiment_id: int,
    name: str,
    now: float,
    tags: Mapping[str, str] | None = None,
    parent: str | None = None,
    *,
    user: str = "",
    source: str = "",
    run_id: str | None = None,
) -> str:
    """Begin a run and return its id (32 hexadecimal characters).

    Args:
        parent: Run id of the run it belongs to.
        run_id: Only to keep the id of a run made elsewhere.

    Raises:
        NotFound: There is no such experiment or parent.
        Invalid: The experiment was deleted.
    """
    if parent is not None:
        find(conn, parent)
    told = {**(tags or {}), RUN_NAME: name, **({PARENT: parent} if parent is not None else {})}
    begun = Begin(experiment_id, name, round(now * 1000), told, user=user, source=source, run_id=run_id)
    begun(conn)
    return begun.run_id


def log(
    conn: Connection,
    run_id: str,
    metrics: Sequence[Point] = (),
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, Any] | None = None,
) -> None:
    """Add to a run. Repeating a call changes nothing.

    Args:
        metrics: Points; a point equal to one that is kept is kept once.
        params: By key; written once.
        tags: By key; the last value counts.

    Raises:
        NotFound: There is no such run.
        Conflict: A param has another value already, or the run was deleted.
    """
    points = [(key, float(value), ms, step) for key, value, ms, step in metrics]
    texts, named = _texts(params or {}), _texts(tags or {})
    Log(run_id, points, texts, named)(conn)


def end(conn: Connection, run_id: str, status: str, now: float) -> None:
    """End a run as ``FINISHED``, ``FAILED`` or ``KILLED``. Raises ``NotFound``, ``Invalid``."""
    if status not in _ENDED:
        raise Invalid([Problem("status", f"{status!r} does not end a run; expected one of {', '.join(_ENDED)}")])
    row = find(conn, run_id)
    change = update(tables.runs).where(tables.runs.c.id == row.id)
    conn.execute(change.values(status=status, end_ms=round(now * 1000)))


def get(conn: Connection, run_id: str) -> Run:
    """One run with everything but its metrics' history. Raises ``NotFound``."""
    return _runs(conn, [find(conn, run_id)])[0]


def children(conn: Connection, run_id: str) -> list[Run]:
    """The runs that belong to this one, in the order they were made."""
    parent = find(conn, run_id)
    value = func.substr(tables.tags.c.value, 1, tables.INDEXED_TEXT)
    query = (
        select(tables.runs)
        .join(tables.tags, tables.tags.c.run == tables.runs.c.id)
        .where(tables.tags.c.experiment == parent.experiment, tables.tags.c.key == PARENT, value == run_id)
        .order_by(tables.runs.c.id)
    )
    return _runs(conn, conn.execute(query).all())


def recent(conn: Connection, experiment_id: int, limit: int = 100) -> list[Run]:
    """The newest runs of an experiment first."""
    query = select(tables.runs).where(
        tables.runs.c.experiment == experiment_id, tables.runs.c.lifecycle_stage == "active"
    )
    query = query.order_by(tables.runs.c.start_ms.desc(), tables.runs.c.run_id).limit(limit)
    return _runs(conn, conn.execute(query).all())


def history(conn: Connection, run_id: str, key: str) -> list[Point]:
    """Every point of one metric, by time and step."""
    row = find(conn, run_id)
    table = tables.metrics
    query = select(table.c.value, table.c.is_nan, table.c.timestamp_ms, table.c.step)
    query = query.where(table.c.run == row.id, table.c.key == key)
    query = query.order_by(table.c.timestamp_ms, table.c.step, table.c.value)
    return [(key, math.nan if nan else value, ms, step) for value, nan, ms, step in conn.execute(query)]


def set_artifacts(conn: Connection, run_id: str, artifacts: Mapping[str, tuple[str, int]]) -> None:
    """Attach blobs to a run: digest and size in bytes by path; a path given again is replaced."""
    row = find(conn, run_id)
    rows = [(row.id, path, digest, size) for path, (digest, size) in artifacts.items()]
    conflict = "ON CONFLICT (run, path) DO UPDATE SET digest = excluded.digest, size = excluded.size"
    insert_rows(conn, tables.run_artifacts, ("run", "path", "digest", "size"), rows, conflict)


def find(conn: Connection, run_id: str) -> Row[Any]:
    """The row of a run. Raises ``NotFound``."""
    mark = "%s" if conn.dialect.name == "postgresql" else "?"
    found = conn.exec_driver_sql(f"SELECT * FROM runs WHERE run_id = {mark}", (run_id,)).first()
    if found is None:
        raise NotFound(f"Run with id={run_id} not found")
    return found


def _runs(conn: Connection, rows: Sequence[Row[Any]]) -> list[Run]:
    ids = [row.id for row in rows]
    params = _by_run(conn, "run, key, value", tables.params, ids)
    tags = _by_run(conn, "run, key, value", tables.tags, ids)
    metrics = _by_run(conn, "run, key, value", tables.latest_metrics, ids)
    artifacts = _by_run(conn, "run, path, digest, size", tables.run_artifacts, ids)
    return [
        Run(
            run_id=row.run_id,
            experiment_id=row.experiment,
            name=row.name,
            status=row.status,
            start=row.start_ms / 1000,
            end=None if row.end_ms is None else row.end_ms / 1000,
            user=row.user_id,
            lifecycle_stage=row.lifecycle_stage,
            metrics={key: math.nan if value is None else value for key, value in metrics.get(row.id, ())},
            params=dict(params.get(row.id, ())),
            tags=dict(tags.get(row.id, ())),
            artifacts={path: (digest, size) for path, digest, size in artifacts.get(row.id, ())},
            parent=dict(tags.get(row.id, ())).get(PARENT),
        )
        for row in rows
    ]


def _by_run(conn: Connection, columns: str, table: Any, ids: Iterable[int]) -> dict[int, list[Any]]:
    found: dict[int, list[Any]] = {}
    for run, *rest in select_in(conn, columns, table, "run", ids):
        found.setdefault(run, []).append(tuple(rest))
    return found


def _texts(given: Mapping[str, Any]) -> dict[str, str]:
    return {key: value if isinstance(value, str) else str(value) for key, value in given.items()}
