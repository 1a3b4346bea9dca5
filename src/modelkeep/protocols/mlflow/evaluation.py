"""Operations on evaluation datasets. Records, tags and schemas travel as JSON inside strings, as MLflow has it."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

from msgspec import Struct
from sqlalchemy import Connection

from modelkeep.core.errors import Invalid
from modelkeep.protocols.mlflow import checks
from modelkeep.protocols.mlflow.experiments import Text
from modelkeep.protocols.mlflow.wire import Operation, Work, missing
from modelkeep.registry import evaluation
from modelkeep.registry.evaluation import Record

MAX_RECORDS = 100_000
MAX_PAGE = 50_000
_SOURCES = ("UNSPECIFIED", "TRACE", "HUMAN", "DOCUMENT", "CODE")


class Create(Struct, frozen=True):
    """createDataset."""

    name: str
    experiment_ids: list[str] = []
    tags: str = ""


class One(Struct, frozen=True):
    """A dataset, and what may be changed of it."""

    dataset_id: str
    tags: str = ""
    key: str = ""
    records: str = ""
    experiment_ids: list[str] = []
    dataset_record_ids: list[str] = []


class Page(Struct, frozen=True):
    """getDatasetRecords."""

    dataset_id: str
    max_results: int = 1000
    page_token: Text = ""


class Search(Struct, frozen=True):
    """searchEvaluationDatasets."""

    experiment_ids: list[str] = []
    filter_string: str = ""
    max_results: int = 1000
    order_by: list[str] = []
    page_token: Text = ""


def _datasets(conn: Connection, rows: Sequence[Any]) -> list[dict[str, Any]]:
    numbers = [row.id for row in rows]
    tags, within = evaluation.tags(conn, numbers), evaluation.experiments_of(conn, numbers)
    return [_dataset(row, tags.get(row.id, {}), within.get(row.id, [])) for row in rows]


def _dataset(row: Any, tags: dict[str, str], within: Sequence[int]) -> dict[str, Any]:
    said = {
        "dataset_id": row.dataset_id,
        "name": row.name,
        "digest": row.digest,
        "tags": json.dumps(tags),
        "created_time": row.created_ms,
        "last_update_time": row.updated_ms,
        "experiment_ids": [str(number) for number in within],
    }
    if row.records:
        said["profile"] = json.dumps({"num_records": row.records})
    for name, value in (
        ("schema", row.schema),
        ("created_by", row.created_by),
        ("last_updated_by", row.updated_by),
    ):
        if value is not None:
            said[name] = value
    return said


def _answer(conn: Connection, row: Any) -> dict[str, Any]:
    return {"dataset": _datasets(conn, [row])[0]}


def _inside(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Invalid(f"{name}: expected JSON") from None


def _tags(text: str) -> dict[str, str]:
    said = _inside(text, "tags") if text else {}
    if not isinstance(said, dict):
        raise Invalid("tags: expected a JSON object")
    for key, value in said.items():
        checks.key(key, "tags.key")
        if value is not None:
            checks.length(f"tags.{key}", str(value), checks.MAX_REGISTRY_TAG)
    return {key: _clean(str(value)) for key, value in said.items() if value is not None}


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")


def _within(ids: Sequence[str]) -> list[int]:
    return [checks.experiment_id(each) for each in ids]


def _create(asked: Create, now: int) -> Work:
    if not asked.name:
        raise missing("name")
    checks.length("name", asked.name, 255)
    within, tags = _within(asked.experiment_ids), _tags(asked.tags)
    return lambda conn: _answer(conn, evaluation.create(conn, _clean(asked.name), within, tags, now))


def _get(asked: One, _: int) -> Work:
    return lambda conn: _answer(conn, evaluation.find(conn, asked.dataset_id))


def _delete(asked: One, _: int) -> Work:
    return lambda conn: evaluation.forget(conn, asked.dataset_id)


def _search(asked: Search, _: int) -> Work:
    checks.page(asked.max_results, MAX_PAGE)
    within = _within(asked.experiment_ids)

    def work(conn: Connection) -> dict[str, Any]:
        rows, token = evaluation.search(
            conn, within, asked.filter_string, asked.order_by, asked.max_results, asked.page_token
        )
        return {"datasets": _datasets(conn, rows), **({"next_page_token": token} if token else {})}

    return work


def _set_tags(asked: One, _: int) -> Work:
    if not asked.tags:
        raise missing("tags")
    tags = _tags(asked.tags)
    return lambda conn: evaluation.set_tags(conn, asked.dataset_id, tags)


def _delete_tag(asked: One, _: int) -> Work:
    return lambda conn: evaluation.delete_tag(conn, asked.dataset_id, asked.key)


def _experiment_ids(asked: One, _: int) -> Work:
    def work(conn: Connection) -> dict[str, Any]:
        number = evaluation.find(conn, asked.dataset_id).id
        return {
            "experiment_ids": [str(each) for each in evaluation.experiments_of(conn, [number]).get(number, [])]
        }

    return work


def _join(asked: One, now: int) -> Work:
    within = _within(asked.experiment_ids)
    return lambda conn: _answer(conn, evaluation.join(conn, asked.dataset_id, within, now))


def _leave(asked: One, now: int) -> Work:
    within = _within(asked.experiment_ids)
    return lambda conn: _answer(conn, evaluation.leave(conn, asked.dataset_id, within, now))


def records(text: str) -> list[Record]:
    """Records as they are sent. Raises ``Invalid`` at ``records[i]``."""
    said = _inside(text, "records")
    if not isinstance(said, list):
        raise Invalid("records: expected a JSON list")
    if len(said) > MAX_RECORDS:
        raise Invalid(f"records: {len(said)} given; at most {MAX_RECORDS} at once")
    return [_record(each, f"records[{at}]") for at, each in enumerate(said)]


def _record(said: Any, path: str) -> Record:
    if not isinstance(said, dict):
        raise Invalid(f"{path}: expected an object")
    fields = {name: said[name] for name in ("outputs", "expectations", "tags", "source") if name in said}
    inputs = said.get("inputs")
    for name, held in (("inputs", inputs), *fields.items()):
        if name != "outputs" and held is not None and not isinstance(held, dict):
            raise Invalid(f"{path}.{name}: expected an object")
    source = fields.get("source")
    if source is not None:
        kind = str(source.get("source_type", "UNSPECIFIED")).upper()
        if kind not in _SOURCES:
            raise Invalid(f"{path}.source.source_type: expected one of {', '.join(_SOURCES)}, found {kind[:40]!r}")
        data = source.get("source_data")
        if data is not None and not isinstance(data, dict):
            raise Invalid(f"{path}.source.source_data: expected an object")
        fields["source"] = {"source_type": kind, "source_data": data or {}}
    if fields.get("tags"):
        fields["tags"] = {
            key: value if value is None else _clean(str(value)) for key, value in fields["tags"].items()
        }
    return Record(inputs or {}, fields)


def _merge(asked: One, now: int) -> Work:
    if not asked.records:
        raise missing("records")
    given = records(asked.records)

    def work(conn: Connection) -> dict[str, int]:
        inserted, updated = evaluation.merge(conn, asked.dataset_id, given, now)
        return {"inserted_count": inserted, "updated_count": updated}

    return work


def _page(asked: Page, _: int) -> Work:
    checks.page(asked.max_results, MAX_PAGE)
    after = _read_token(asked.page_token)

    def work(conn: Connection) -> dict[str, str]:
        rows, last = evaluation.page(conn, asked.dataset_id, asked.max_results, after)
        listed = ", ".join(_text(row, asked.dataset_id) for row in rows)
        token = base64.urlsafe_b64encode(str(last).encode()).decode()
        return {"records": f"[{listed}]", **({"next_page_token": token} if last else {})}

    return work


def _read_token(token: str) -> int:
    try:
        number = int(base64.urlsafe_b64decode(token.encode("ascii")).decode("ascii")) if token else 0
    except ValueError:
        number = -1
    if not 0 <= number < 2**63:
        raise Invalid("Invalid page token, could not base64-decode")
    return number


def _text(row: Any, dataset_id: str) -> str:
    """A record as JSON; what is kept of it is JSON already."""
    said = {
        "dataset_record_id": row.record_id,
        "dataset_id": dataset_id,
        "created_time": row.created_ms,
        "last_update_time": row.updated_ms,
    }
    for name, value in (("created_by", row.created_by), ("last_updated_by", row.updated_by)):
        if value is not None:
            said[name] = value
    return f"{json.dumps(said)[:-1]}, {row.content[1:]}"


def _remove(asked: One, now: int) -> Work:
    if len(asked.dataset_record_ids) > MAX_RECORDS:
        raise Invalid(f"dataset_record_ids: {len(asked.dataset_record_ids)} given; at most {MAX_RECORDS} at once")
    ids = asked.dataset_record_ids
    return lambda conn: {"deleted_count": evaluation.remove(conn, asked.dataset_id, ids, now)}


OPERATIONS = [
    Operation("POST", "datasets/create", Create, _create, "write"),
    Operation("GET", "datasets/{dataset_id}", One, _get),
    Operation("DELETE", "datasets/{dataset_id}", One, _delete, "write"),
    Operation("POST", "datasets/search", Search, _search),
    Operation("GET", "datasets/search", Search, _search),
    Operation("PATCH", "datasets/{dataset_id}/tags", One, _set_tags, "write"),
    Operation("DELETE", "datasets/{dataset_id}/tags/{key}", One, _delete_tag, "write"),
    Operation("POST", "datasets/{dataset_id}/records", One, _merge, "write"),
    Operation("GET", "datasets/{dataset_id}/records", Page, _page),
    Operation("DELETE", "datasets/{dataset_id}/records", One, _remove, "write"),
    Operation("GET", "datasets/{dataset_id}/experiment-ids", One, _experiment_ids),
    Operation("POST", "datasets/{dataset_id}/add-experiments", One, _join, "write"),
    Operation("POST", "datasets/{dataset_id}/remove-experiments", One, _leave, "write"),
]
