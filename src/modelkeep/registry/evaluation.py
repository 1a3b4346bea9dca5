"""Datasets that evaluations run on: records told apart by their inputs, grown and corrected by merging.

The data model is MLflow's (mlflow.org/docs, "Evaluation Datasets"). Versions are made of snapshots, not of these.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct
from sqlalchemy import Connection, Row, delete, func, insert, select, update

from modelkeep.core.errors import NotFound
from modelkeep.registry import experiments, queries
from modelkeep.registry.filters import TEXT_OPERATORS, Language, Order
from modelkeep.registry.queries import Attribute, Part, Search, Values
from modelkeep.store.bulk import insert_rows, select_in
from modelkeep.store.trace_tables import (
    evaluation_datasets,
    evaluation_experiments,
    evaluation_records,
    evaluation_tags,
)

USER = "mlflow.user"
_AT_ONCE = 1000
_REPLACE = "ON CONFLICT (dataset, key) DO UPDATE SET value = excluded.value"
_MERGE = (
    "ON CONFLICT (dataset, inputs_digest) DO UPDATE SET content = excluded.content, updated_ms ="
    " excluded.updated_ms, updated_by = coalesce(excluded.updated_by, evaluation_records.updated_by)"
)
_RECORD = (
    "dataset",
    "record_id",
    "inputs_digest",
    "content",
    "created_by",
    "updated_by",
    "created_ms",
    "updated_ms",
)
_TYPES = {bool: "boolean", int: "integer", float: "float", str: "string", list: "array", dict: "object"}
_SEARCH = Search(
    language=Language(
        entities={"attribute": "attribute", "attributes": "attribute", "tag": "tag", "tags": "tag"},
        attributes={
            "name": "text",
            "created_by": "text",
            "last_updated_by": "text",
            "created_time": "number",
            "last_update_time": "number",
        },
        listed=frozenset({"name"}),
        orders=frozenset({"name", "created_time", "last_update_time"}),
        nulls=frozenset(),
        operators={"tag": TEXT_OPERATORS - {"IN", "NOT IN"}},
    ),
    base="evaluation_datasets r",
    columns="r.*",
    attributes={
        "name": Attribute("r.name"),
        "created_by": Attribute("r.created_by"),
        "last_updated_by": Attribute("r.updated_by"),
        "created_time": Attribute("r.created_ms"),
        "last_update_time": Attribute("r.updated_ms"),
        "dataset_id": Attribute("r.dataset_id"),
    },
    values={"tag": Values("evaluation_tags", "dataset")},
    ties=(("dataset_id", True),),
)


class Record(Struct, frozen=True):
    """A record as it is offered.

    Attributes:
        inputs: What the application is given: what makes a record this one and no other.
        fields: What else was given of ``outputs``, ``expectations``, ``tags`` and ``source``; None where null.
    """

    inputs: dict[str, Any]
    fields: dict[str, Any]


def create(conn: Connection, name: str, within: Sequence[int], tags: Mapping[str, str], now_ms: int) -> Row[Any]:
    """Begin a dataset of these experiments and return its row. Raises ``NotFound``: no such experiment."""
    made = f"d-{secrets.token_hex(16)}"
    row = {
        "dataset_id": made,
        "name": name,
        "digest": _digest(made, now_ms),
        "created_by": tags.get(USER),
        "updated_by": tags.get(USER),
        "created_ms": now_ms,
        "updated_ms": now_ms,
    }
    conn.execute(insert(evaluation_datasets), row)
    found = find(conn, made)
    _set_tags(conn, found.id, tags)
    _join(conn, found.id, within)
    return found


def _digest(dataset_id: str, now_ms: int) -> str:
    """Another one after every change."""
    return hashlib.sha256(f"{dataset_id}:{now_ms}:{secrets.token_hex(4)}".encode()).hexdigest()[:8]


def find(conn: Connection, dataset_id: str) -> Row[Any]:
    """The row of a dataset. Raises ``NotFound``."""
    row = conn.execute(select(evaluation_datasets).where(evaluation_datasets.c.dataset_id == dataset_id)).first()
    if row is None:
        raise NotFound(f"Evaluation dataset with id '{dataset_id}' not found")
    return row


def forget(conn: Connection, dataset_id: str) -> None:
    """Delete a dataset with its records. A repetition changes nothing."""
    conn.execute(delete(evaluation_datasets).where(evaluation_datasets.c.dataset_id == dataset_id))


def search(
    conn: Connection, within: Sequence[int], text: str, orders: Sequence[str], limit: int, token: str
) -> tuple[list[Any], str]:
    """A page of rows of datasets (of these experiments, if any are named), newest first unless ordered.

    Raises:
        Invalid: The filter, the order or the token makes no sense.
    """
    conditions = []
    if within:
        marks = ", ".join("?" * len(within))
        sql = f"SELECT 1 FROM evaluation_experiments e WHERE e.dataset = r.id AND e.experiment IN ({marks})"
        conditions.append(Part(f"EXISTS ({sql})", tuple(within)))
    return queries.find(
        conn,
        _SEARCH,
        text=text,
        orders=orders,
        limit=limit,
        token=token,
        conditions=conditions,
        sign=sorted(within),
        default=[Order("attribute", "created_time", False)],
    )


def set_tags(conn: Connection, dataset_id: str, tags: Mapping[str, str]) -> None:
    """Set tags of a dataset. Raises ``NotFound``."""
    _set_tags(conn, find(conn, dataset_id).id, tags)


def _set_tags(conn: Connection, number: int, tags: Mapping[str, str]) -> None:
    rows = [(number, key, value) for key, value in tags.items()]
    insert_rows(conn, evaluation_tags, ("dataset", "key", "value"), rows, _REPLACE)


def delete_tag(conn: Connection, dataset_id: str, key: str) -> None:
    """Take a tag away, if it is there. Raises ``NotFound``: there is no such dataset."""
    row = find(conn, dataset_id)
    conn.execute(delete(evaluation_tags).where(evaluation_tags.c.dataset == row.id, evaluation_tags.c.key == key))


def tags(conn: Connection, numbers: Iterable[int]) -> dict[int, dict[str, str]]:
    """Tags of datasets by row number."""
    found: dict[int, dict[str, str]] = {}
    for number, key, value in select_in(conn, "dataset, key, value", evaluation_tags, "dataset", numbers):
        found.setdefault(number, {})[key] = value
    return found


def experiments_of(conn: Connection, numbers: Iterable[int]) -> dict[int, list[int]]:
    """Experiments of datasets by row number."""
    found: dict[int, list[int]] = {}
    for number, experiment in sorted(
        select_in(conn, "dataset, experiment", evaluation_experiments, "dataset", numbers)
    ):
        found.setdefault(number, []).append(experiment)
    return found


def join(conn: Connection, dataset_id: str, within: Sequence[int], now_ms: int) -> Row[Any]:
    """Add a dataset to experiments. Raises ``NotFound``: there is no such dataset, or no such experiment."""
    row = find(conn, dataset_id)
    _join(conn, row.id, within)
    return _touched(conn, row, now_ms)


def _join(conn: Connection, number: int, within: Sequence[int]) -> None:
    wanted = list(dict.fromkeys(within))
    for experiment in wanted:
        experiments.find(conn, experiment)
    rows = [(number, experiment) for experiment in wanted]
    insert_rows(conn, evaluation_experiments, ("dataset", "experiment"), rows, "ON CONFLICT DO NOTHING")


def leave(conn: Connection, dataset_id: str, within: Sequence[int], now_ms: int) -> Row[Any]:
    """Take a dataset from experiments; those it is not of are left out. Raises ``NotFound``."""
    row, table = find(conn, dataset_id), evaluation_experiments
    conn.execute(delete(table).where(table.c.dataset == row.id, table.c.experiment.in_(within)))
    return _touched(conn, row, now_ms)


def _touched(conn: Connection, row: Row[Any], now_ms: int, **changes: Any) -> Row[Any]:
    table = evaluation_datasets
    changes |= {"updated_ms": now_ms, "digest": _digest(row.dataset_id, now_ms)}
    conn.execute(update(table).where(table.c.id == row.id).values(**changes))
    return find(conn, row.dataset_id)


# -- records ----------------------------------------------------------------------------------------------------


def merge(conn: Connection, dataset_id: str, records: Sequence[Record], now_ms: int) -> tuple[int, int]:
    """Add records, or merge them into those of the same inputs; how many were added, and how many merged.

    Outputs and source are replaced when they are given; expectations and tags are added to what there is.

    Raises:
        NotFound: There is no such dataset.
    """
    row = find(conn, dataset_id)
    digests = [inputs_digest(record.inputs) for record in records]
    known = _contents(conn, row.id, digests)
    merged: dict[str, dict[str, Any]] = {}
    authors: dict[str, str | None] = {}
    inserted = 0
    for record, digest in zip(records, digests, strict=True):
        content = merged.get(digest)
        if content is None:
            text = known.get(digest)
            content = {"inputs": record.inputs, "outputs": {}} if text is None else json.loads(text)
            inserted += text is None
            merged[digest] = content
        _merge(content, record.fields)
        authors[digest] = (record.fields.get("tags") or {}).get(USER) or authors.get(digest)
    rows = [
        (row.id, f"dr-{secrets.token_hex(16)}", digest, json.dumps(content), by, by, now_ms, now_ms)
        for (digest, content), by in zip(merged.items(), authors.values(), strict=True)
    ]
    insert_rows(conn, evaluation_records, _RECORD, rows, _MERGE)
    by = next((author for author in reversed(authors.values()) if author), None)
    schema = json.dumps(_schema(row.schema, records)) if records else row.schema
    _touched(conn, row, now_ms, records=_count(conn, row.id), schema=schema, updated_by=by)
    return inserted, len(records) - inserted


def inputs_digest(inputs: dict[str, Any]) -> str:
    """What tells records of a dataset apart."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def _contents(conn: Connection, number: int, digests: Sequence[str]) -> dict[str, str]:
    table = evaluation_records
    found: dict[str, str] = {}
    for at in range(0, len(digests), _AT_ONCE):
        query = select(table.c.inputs_digest, table.c.content).where(
            table.c.dataset == number, table.c.inputs_digest.in_(digests[at : at + _AT_ONCE])
        )
        found.update((digest, content) for digest, content in conn.execute(query))
    return found


def _merge(content: dict[str, Any], fields: Mapping[str, Any]) -> None:
    for name in ("outputs", "source"):
        if name in fields:
            content[name] = fields[name]
    for name in ("expectations", "tags"):
        if fields.get(name):
            content[name] = {**(content.get(name) or {}), **fields[name]}
    source = content.get("source")
    if source:
        content["source_type"] = source["source_type"]
        data = source.get("source_data") or {}
        named = data.get("trace_id" if source["source_type"] == "TRACE" else "source_id")
        if named is not None:
            content["source_id"] = named


def _schema(known: str | None, records: Sequence[Record]) -> dict[str, Any]:
    """The kind of every field seen, as it was first seen."""
    kinds: dict[str, Any] = json.loads(known) if known else {"version": "1.0"}
    for part in ("inputs", "outputs", "expectations"):
        kinds.setdefault(part, {})
    for record in records:
        for part, held in (("inputs", record.inputs), *record.fields.items()):
            if part not in ("inputs", "outputs", "expectations") or held is None:
                continue
            if isinstance(held, dict) and isinstance(kinds[part], dict):
                for key, value in held.items():
                    kinds[part].setdefault(key, "null" if value is None else _TYPES.get(type(value), "unknown"))
            elif not kinds[part]:
                kinds[part] = _TYPES.get(type(held), "unknown")
    return kinds


def _count(conn: Connection, number: int) -> int:
    table = evaluation_records
    return int(conn.execute(select(func.count()).where(table.c.dataset == number)).scalar_one())


def page(conn: Connection, dataset_id: str, limit: int, after: int) -> tuple[list[Any], int]:
    """Rows of records in the order they were added, and the number to go on after; 0 at the end.

    Args:
        after: The last page's number; 0 for the first page.

    Raises:
        NotFound: There is no such dataset.
    """
    table = evaluation_records
    mine = (table.c.dataset == find(conn, dataset_id).id, table.c.id > after)
    rows = conn.execute(select(table).where(*mine).order_by(table.c.id).limit(limit + 1)).all()
    return list(rows[:limit]), rows[limit - 1].id if len(rows) > limit else 0


def remove(conn: Connection, dataset_id: str, ids: Sequence[str], now_ms: int) -> int:
    """Delete records by id and return how many there were. Raises ``NotFound``."""
    row, table, gone = find(conn, dataset_id), evaluation_records, 0
    for at in range(0, len(ids), _AT_ONCE):
        mine = (table.c.dataset == row.id, table.c.record_id.in_(ids[at : at + _AT_ONCE]))
        gone += conn.execute(delete(table).where(*mine)).rowcount
    if gone:
        _touched(conn, row, now_ms, records=_count(conn, row.id))
    return gone
