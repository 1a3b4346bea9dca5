"""Rows of the registry in the form MLflow's clients read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec import Raw, Struct
from sqlalchemy import Connection

from modelkeep.protocols.mlflow.wire import number
from modelkeep.registry import datasets, tracking
from modelkeep.registry.experiments import Experiment
from modelkeep.store import tables
from modelkeep.store.bulk import fetch_each, selecting


def experiment(found: Experiment) -> dict[str, Any]:
    """``mlflow.Experiment``."""
    return {
        "experiment_id": str(found.id),
        "name": found.name,
        "artifact_location": found.artifact_location,
        "lifecycle_stage": found.lifecycle_stage,
        "last_update_time": found.updated_ms,
        "creation_time": found.created_ms,
        "tags": pairs(found.tags.items()),
    }


def pairs(items: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    """Keys and values as a list of objects."""
    return [{"key": key, "value": value} for key, value in items]


def artifact_uri(row: Any) -> str:
    """Where the artifacts of a row of ``runs`` are."""
    return row.artifact_uri or f"mlflow-artifacts:/{row.experiment}/{row.run_id}/artifacts"


def run_info(row: Any) -> dict[str, Any]:
    """``mlflow.RunInfo``."""
    info = {
        "run_id": row.run_id,
        "run_uuid": row.run_id,
        "run_name": row.name,
        "experiment_id": str(row.experiment),
        "user_id": row.user_id,
        "status": row.status,
        "start_time": row.start_ms,
        "artifact_uri": artifact_uri(row),
        "lifecycle_stage": row.lifecycle_stage,
    }
    if row.end_ms is not None:
        info["end_time"] = row.end_ms
    return info


def fresh_run(row: Any, tags: Mapping[str, str]) -> dict[str, Any]:
    """``mlflow.Run`` of one that has only begun."""
    return {
        "info": run_info(row),
        "data": {"metrics": [], "params": [], "tags": pairs(tags.items())},
        "inputs": {"dataset_inputs": [], "model_inputs": []},
        "outputs": {"model_outputs": []},
    }


class Point(Struct, gc=False):
    """``mlflow.Metric``; a value that JSON has no number for is its name."""

    key: str
    value: float | str
    timestamp: int
    step: int


def point(key: str, value: float | None, ms: int, step: int) -> Point:
    """``mlflow.Metric``; None is NaN."""
    if value is None or value - value != 0.0:  # NaN or infinite
        return Point(key, number(value), ms, step)
    return Point(key, value, ms, step)


def metric(key: str, value: float | None, ms: int, step: int) -> dict[str, Any]:
    """``mlflow.Metric``, for who adds to it."""
    return {"key": key, "value": number(value), "timestamp": ms, "step": step}


_NOTHING = Raw(b"[]")


def runs(conn: Connection, rows: Sequence[Any]) -> list[dict[str, Any]]:
    """``mlflow.Run`` of rows of ``runs``."""
    if not rows:
        return []
    ids = [row.id for row in rows]
    points, *texts, used, uses = fetch_each(
        conn,
        [
            selecting(conn, "run, key, value, timestamp_ms, step", tables.latest_metrics, "run", ids),
            tracking.texts(conn, tables.params, ids),
            tracking.texts(conn, tables.tags, ids),
            *datasets.asking(conn, ids),
        ],
    )
    metrics: dict[int, list[Point]] = {number: [] for number in ids}
    for run, key, value, ms, step in points:
        metrics[run].append(point(key, value, ms, step))
    params, tags = ({number: Raw(text.encode()) for number, text in found} for found in texts)
    given = datasets.Related(conn, used, uses)
    return [
        {
            "info": run_info(row),
            "data": {
                "metrics": metrics[row.id],
                "params": params.get(row.id, _NOTHING),
                "tags": tags.get(row.id, _NOTHING),
            },
            "inputs": {
                "dataset_inputs": given.datasets.get(row.id, []),
                "model_inputs": [{"model_id": model} for model, _ in given.models.get((row.id, "input"), ())],
            },
            "outputs": {
                "model_outputs": [
                    {"model_id": model, "step": step} for model, step in given.models.get((row.id, "output"), ())
                ]
            },
        }
        for row in rows
    ]
