"""Operations on MLflow 3's logged models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from msgspec import Struct
from sqlalchemy import Connection

from modelkeep.core.errors import Invalid
from modelkeep.protocols.mlflow import checks, shapes
from modelkeep.protocols.mlflow.experiments import Pair, Text
from modelkeep.protocols.mlflow.wire import Operation, Work
from modelkeep.registry import logged, logged_search

_STATUS = ("LOGGED_MODEL_PENDING", "LOGGED_MODEL_READY", "LOGGED_MODEL_UPLOAD_FAILED")
Status = Literal[
    "LOGGED_MODEL_PENDING", "LOGGED_MODEL_READY", "LOGGED_MODEL_UPLOAD_FAILED", "LOGGED_MODEL_STATUS_UNSPECIFIED"
]


class Create(Struct, frozen=True):
    """createLoggedModel."""

    experiment_id: str
    name: str = ""
    model_type: str = ""
    source_run_id: str = ""
    params: list[Pair] = []
    tags: list[Pair] = []


class One(Struct, frozen=True):
    """A logged model, and what may be changed of it."""

    model_id: str
    status: Status = "LOGGED_MODEL_READY"
    tags: list[Pair] = []
    params: list[Pair] = []
    tag_key: str = ""
    allow_deleted: bool = False


class Dataset(Struct, frozen=True):
    """A dataset metrics must be of."""

    dataset_name: str = ""
    dataset_digest: str = ""


class OrderBy(Struct, frozen=True):
    """A key of an order."""

    field_name: str
    ascending: bool = True
    dataset_name: str = ""
    dataset_digest: str = ""


class Search(Struct, frozen=True):
    """searchLoggedModels."""

    experiment_ids: list[str] = []
    filter: str = ""
    datasets: list[Dataset] = []
    max_results: int = 50
    order_by: list[OrderBy] = []
    page_token: Text = ""


def models(conn: Connection, rows: Sequence[Any]) -> list[dict[str, Any]]:
    """``mlflow.LoggedModel`` of rows of ``logged_models``."""
    held = logged.Contents(conn, rows)
    return [
        {
            "info": {
                "model_id": row.model_id,
                "experiment_id": str(row.experiment),
                "name": row.name,
                "creation_timestamp_ms": row.created_ms,
                "last_updated_timestamp_ms": row.updated_ms,
                "artifact_uri": row.artifact_uri,
                "status": row.status,
                "model_type": row.model_type,
                "source_run_id": row.source_run_id,
                "status_message": row.status_message,
                "tags": shapes.pairs(held.tags.get(row.id, {}).items()),
                "registrations": [
                    {"name": name, "version": str(version)}
                    for name, version in held.registered.get(row.model_id, ())
                ],
            },
            "data": {
                "params": shapes.pairs(held.params.get(row.id, {}).items()),
                "metrics": [_metric(row.model_id, found) for found in held.metrics.get(row.id, ())],
            },
        }
        for row in rows
    ]


def _metric(model_id: str, found: logged.Metric) -> dict[str, Any]:
    said = shapes.metric(found.key, found.value, found.timestamp_ms, found.step)
    said.update(model_id=model_id, run_id=found.run_id)
    if found.dataset_name:
        said.update(dataset_name=found.dataset_name, dataset_digest=found.dataset_digest)
    return said


def _one(conn: Connection, model_id: str, *, deleted: bool = False) -> dict[str, Any]:
    return {"model": models(conn, [logged.find(conn, model_id, deleted=deleted)])[0]}


def _pairs(given: Sequence[Pair], what: str, limit: int) -> dict[str, str]:
    for at, pair in enumerate(given):
        checks.key(pair.key, f"{what}[{at}].key")
        checks.length(f"{what}[{at}].value", pair.value, limit)
    return {pair.key: pair.value for pair in given}


def _create(asked: Create, now: int) -> Work:
    experiment = checks.experiment_id(asked.experiment_id)
    params = _pairs(asked.params, "params", checks.MAX_PARAM)
    tags = _pairs(asked.tags, "tags", checks.MAX_TAG)
    if any(mark in asked.name for mark in "/:.%\"'"):
        raise Invalid(
            f"Invalid model name ({asked.name!r}) provided. Model name must be a non-empty string and cannot"
            " contain the following characters: ('/', ':', '.', '%', '\"', \"'\")"
        )
    checks.plain(asked.name, "name")
    checks.length("name", asked.name, 500)

    def work(conn: Connection) -> dict[str, Any]:
        row = logged.create(
            conn,
            experiment,
            now,
            name=asked.name,
            model_type=asked.model_type,
            source_run_id=asked.source_run_id,
            params=params,
            tags=tags,
        )
        return {"model": models(conn, [row])[0]}

    return work


def _get(asked: One, _: int) -> Work:
    return lambda conn: _one(conn, asked.model_id, deleted=asked.allow_deleted)


def _finalize(asked: One, now: int) -> Work:
    if asked.status not in _STATUS:
        raise checks.invalid("status", asked.status, f"expected one of {', '.join(_STATUS)}")

    def work(conn: Connection) -> dict[str, Any]:
        logged.finalize(conn, asked.model_id, asked.status, now)
        return _one(conn, asked.model_id)

    return work


def _delete(asked: One, now: int) -> Work:
    return lambda conn: logged.delete_one(conn, asked.model_id, now)


def _set_tags(asked: One, now: int) -> Work:
    tags = _pairs(asked.tags, "tags", checks.MAX_TAG)

    def work(conn: Connection) -> dict[str, Any]:
        logged.set_tags(conn, logged.find(conn, asked.model_id), tags, now)
        return _one(conn, asked.model_id)

    return work


def _delete_tag(asked: One, _: int) -> Work:
    return lambda conn: logged.delete_tag(conn, asked.model_id, asked.tag_key)


def _log_params(asked: One, _: int) -> Work:
    params = _pairs(asked.params, "params", checks.MAX_PARAM)
    return lambda conn: logged.log_params(conn, logged.find(conn, asked.model_id), params)


def _search(asked: Search, _: int) -> Work:
    checks.page(asked.max_results, 1000)
    within = [checks.experiment_id(text) for text in dict.fromkeys(asked.experiment_ids)]
    if any(not dataset.dataset_name for dataset in asked.datasets):
        raise Invalid("`dataset_name` in the `datasets` clause must be specified.")
    of = [(dataset.dataset_name, dataset.dataset_digest) for dataset in asked.datasets]
    orders = [
        logged_search.By(order.field_name, order.ascending, order.dataset_name, order.dataset_digest)
        for order in asked.order_by
    ]

    def work(conn: Connection) -> dict[str, Any]:
        rows, token = logged_search.find(
            conn, within, asked.filter, of, orders, asked.max_results, asked.page_token
        )
        return {"models": models(conn, rows), **({"next_page_token": token} if token else {})}

    return work


OPERATIONS = [
    Operation("POST", "logged-models", Create, _create, "write"),
    Operation("POST", "logged-models/search", Search, _search),
    Operation("GET", "logged-models/{model_id}", One, _get),
    Operation("PATCH", "logged-models/{model_id}", One, _finalize, "write"),
    Operation("DELETE", "logged-models/{model_id}", One, _delete, "write"),
    Operation("PATCH", "logged-models/{model_id}/tags", One, _set_tags, "write"),
    Operation("DELETE", "logged-models/{model_id}/tags/{tag_key}", One, _delete_tag, "write"),
    Operation("POST", "logged-models/{model_id}/params", One, _log_params, "write"),
]
