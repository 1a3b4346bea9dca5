"""Logged models, as MLflow 3 keeps them: made by a run, with params, tags, metrics and files of their own."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct
from sqlalchemy import Connection, Row, delete, insert, select, update

from modelkeep.core.errors import Invalid, NotFound
from modelkeep.registry import experiments, holds, names, runs
from modelkeep.store import tables
from modelkeep.store.bulk import decode, encode, insert_rows, select_in
from modelkeep.store.logged_tables import (
    logged_model_metrics,
    logged_model_params,
    logged_model_tags,
    logged_models,
)

_REPLACE = "ON CONFLICT (model, key) DO UPDATE SET value = excluded.value"
_HISTORY = "mlflow.log-model.history"
_TOLD = ("run_id", "utc_time_created", "artifact_path", "model_uuid")


class Metric(Struct, frozen=True):
    """The last value of a metric of one run on one dataset; None is NaN."""

    key: str
    value: float | None
    timestamp_ms: int
    step: int
    run_id: str
    dataset_name: str
    dataset_digest: str


def create(
    conn: Connection,
    experiment: int,
    now_ms: int,
    *,
    name: str,
    model_type: str,
    source_run_id: str,
    params: Mapping[str, str],
    tags: Mapping[str, str],
) -> Row[Any]:
    """Begin a logged model and return its row. Raises ``NotFound``, ``Invalid``: the experiment was deleted."""
    kept_in = experiments.find_active(conn, experiment)
    model_id = f"m-{secrets.token_hex(16)}"
    row = {
        "model_id": model_id,
        "experiment": experiment,
        "name": name or names.fresh(),
        "model_type": model_type,
        "source_run_id": source_run_id,
        "artifact_uri": f"{experiments.location(kept_in).rstrip('/')}/models/{model_id}/artifacts",
        "created_ms": now_ms,
        "updated_ms": now_ms,
    }
    conn.execute(insert(logged_models), row)
    made = find(conn, model_id)
    log_params(conn, made, params)
    set_tags(conn, made, tags, now_ms)
    return made


def find(conn: Connection, model_id: str, *, deleted: bool = False) -> Row[Any]:
    """The row of a logged model. Raises ``NotFound``; when it was deleted too, unless ``deleted``."""
    row = conn.execute(select(logged_models).where(logged_models.c.model_id == model_id)).first()
    if row is None or (row.lifecycle_stage != "active" and not deleted):
        raise NotFound(f"Logged model with ID '{model_id}' not found.")
    return row


def finalize(conn: Connection, model_id: str, status: str, now_ms: int) -> None:
    """Say whether it is ready. Raises ``NotFound``."""
    _change(conn, find(conn, model_id), now_ms, status=status)


def delete_one(conn: Connection, model_id: str, now_ms: int) -> None:
    """Mark it as deleted. Raises ``NotFound``, ``Refused`` under a legal hold."""
    row = find(conn, model_id)
    holds.refuse(conn, "logged model", model_id)
    _change(conn, row, now_ms, lifecycle_stage="deleted")


def log_params(conn: Connection, row: Row[Any], params: Mapping[str, str]) -> None:
    """Add params; the first value of a key counts. Raises ``Invalid`` when one would change."""
    table = logged_model_params
    kept = dict(
        tuple(pair) for pair in conn.execute(select(table.c.key, table.c.value).where(table.c.model == row.id))
    )
    for key, value in params.items():
        if kept.get(key, value) != value:
            raise Invalid(f"Changing param values is not allowed: {key!r} of {row.model_id} is {kept[key]!r}")
    rows = [(row.id, key, value) for key, value in params.items() if key not in kept]
    insert_rows(conn, table, ("model", "key", "value"), rows)


def set_tags(conn: Connection, row: Row[Any], tags: Mapping[str, str], now_ms: int) -> None:
    """Set tags; the last value of a key counts. Raises ``Refused`` when it is held and one would change."""
    table = logged_model_tags
    if tags and holds.any_at_all(conn):
        kept = conn.execute(select(table.c.key, table.c.value).where(table.c.model == row.id))
        holds.refuse_change(conn, "logged model", row.model_id, tags, [(key, value) for key, value in kept])
    rows = [(row.id, key, value) for key, value in tags.items()]
    insert_rows(conn, logged_model_tags, ("model", "key", "value"), rows, _REPLACE)
    if rows:
        _change(conn, row, now_ms)


def delete_tag(conn: Connection, model_id: str, key: str) -> None:
    """Take a tag away. Raises ``NotFound``, ``Refused`` when the model is held."""
    row = find(conn, model_id)
    holds.refuse(conn, "logged model", model_id)
    table = logged_model_tags
    gone = conn.execute(delete(table).where(table.c.model == row.id, table.c.key == key))
    if not gone.rowcount:
        raise NotFound(f"No tag with key {key!r} found for model with ID {model_id!r}.")


def log_metric(
    conn: Connection,
    model_id: str,
    run_id: str,
    key: str,
    value: float,
    timestamp_ms: int,
    step: int,
    dataset_name: str,
    dataset_digest: str,
) -> None:
    """Add a point that a run logged for this model; an equal one is kept once. Raises ``NotFound``."""
    row = find(conn, model_id)
    nan = math.isnan(value)
    point = (
        row.id,
        key,
        run_id,
        dataset_name,
        dataset_digest,
        timestamp_ms,
        step,
        0.0 if nan else value,
        int(nan),
    )
    columns = (
        "model",
        "key",
        "run_id",
        "dataset_name",
        "dataset_digest",
        "timestamp_ms",
        "step",
        "value",
        "is_nan",
    )
    insert_rows(conn, logged_model_metrics, columns, [point], "ON CONFLICT DO NOTHING")


def append_history(conn: Connection, run_id: str, described: Mapping[str, Any]) -> None:
    """Add a model to its run's tag, for older clients: where it is and its flavors, without their settings.

    Raises:
        NotFound: There is no such run.
        Conflict: The run was deleted.
        Invalid: The flavors are no objects by name.
    """
    flavors = described["flavors"]
    if not isinstance(flavors, dict):
        raise Invalid("model_json: flavors: expected an object", path="model_json")
    told = {key: described[key] for key in _TOLD if key in described}
    told["flavors"] = {
        name: {key: value for key, value in said.items() if key != "config"} if isinstance(said, dict) else said
        for name, said in flavors.items()
    }
    row = runs.find(conn, run_id)
    kept = select(tables.tags.c.value).where(tables.tags.c.run == row.id, tables.tags.c.key == _HISTORY)
    found = conn.execute(kept).scalar()
    listed = decode(found) if found else []
    runs.log(conn, run_id, tags={_HISTORY: encode([*listed, told])})


class Contents:
    """What a page of logged models holds.

    Attributes:
        params: Values by key, by row number.
        tags: Values by key, by row number.
        metrics: Last values by row number, one for each key, run and dataset.
        registered: (model name, version) by model id.
    """

    def __init__(self, conn: Connection, rows: Sequence[Any]) -> None:
        ids = [row.id for row in rows]
        self.params = _texts(select_in(conn, "model, key, value", logged_model_params, "model", ids))
        self.tags = _texts(select_in(conn, "model, key, value", logged_model_tags, "model", ids))
        self.metrics = _last(conn, ids)
        self.registered: dict[str, list[tuple[str, int]]] = {}
        wanted = [row.model_id for row in rows]
        query = (
            select(tables.versions.c.model_id, tables.models.c.name, tables.versions.c.version)
            .join(tables.models, tables.models.c.id == tables.versions.c.model)
            .where(tables.versions.c.model_id.in_(wanted), tables.versions.c.model_id != "")
        )
        for model_id, name, version in conn.execute(query) if wanted else ():
            self.registered.setdefault(model_id, []).append((name, version))


def _last(conn: Connection, ids: Iterable[int]) -> dict[int, list[Metric]]:
    columns = "model, key, value, is_nan, timestamp_ms, step, run_id, dataset_name, dataset_digest"
    best: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    for model, key, value, nan, ms, step, run_id, name, digest in select_in(
        conn, columns, logged_model_metrics, "model", ids
    ):
        of = (model, key, run_id, name, digest)
        best[of] = max(best.get(of, (step, ms, value, nan)), (step, ms, value, nan))
    found: dict[int, list[Metric]] = {}
    for (model, key, run_id, name, digest), (step, ms, value, nan) in best.items():
        found.setdefault(model, []).append(Metric(key, None if nan else value, ms, step, run_id, name, digest))
    return found


def _texts(rows: Iterable[tuple[Any, ...]]) -> dict[int, dict[str, str]]:
    found: dict[int, dict[str, str]] = {}
    for number, key, value in rows:
        found.setdefault(number, {})[key] = value
    return found


def _change(conn: Connection, row: Row[Any], now_ms: int, **changes: Any) -> None:
    change = update(logged_models).where(logged_models.c.id == row.id)
    conn.execute(change.values(updated_ms=now_ms, **changes))
