"""Datasets of evaluations on their way: from MLflow's tables and JSON to what travels, and to the database.

Source of what the columns mean: mlflow/store/tracking/dbmodels and mlflow/entities/dataset_record in MLflow's
repository.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, delete, func, select, update

from modelkeep.lifecycle.keep import Keep
from modelkeep.protocols.mlflow.transfer import arrive
from modelkeep.protocols.mlflow.transfer.records import (
    EvaluationDataset,
    EvaluationRecord,
    Source,
    fingerprint,
    plain,
)
from modelkeep.protocols.mlflow.transfer.rows import Lookup, Rows, texts
from modelkeep.registry import evaluation
from modelkeep.store.bulk import insert_rows
from modelkeep.store.tables import experiments
from modelkeep.store.trace_tables import evaluation_datasets as table
from modelkeep.store.trace_tables import evaluation_experiments, evaluation_records, evaluation_tags

KIND = "evaluation_dataset"
_CONTENT = ("inputs", "outputs", "expectations", "tags", "source", "source_id", "source_type")
_WRAPPED = "mlflow_wrapped"
_DATASET = ("dataset_id", "name", "digest", "schema", "created_by", "updated_by", "created_ms", "updated_ms")
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


def of_rows(rows: Rows, look: Lookup) -> list[EvaluationDataset]:
    """Rows of ``evaluation_datasets``."""
    ids = [row["dataset_id"] for row in rows]
    tags = look("evaluation_dataset_tags", "dataset_id", ids)
    within = look(
        "entity_associations",
        "source_id",
        ids,
        source_type="evaluation_dataset",
        destination_type="experiment",
    )
    return [
        EvaluationDataset(
            dataset_id=row["dataset_id"],
            name=plain(row["name"]),
            digest=row["digest"] or "",
            created_ms=row["created_time"] or 0,
            updated_ms=row["last_update_time"] or row["created_time"] or 0,
            schema=row["schema"],
            created_by=row["created_by"],
            updated_by=row["last_updated_by"],
            tags=texts(tags.get(row["dataset_id"], ())),
            experiments=sorted(int(each["destination_id"]) for each in within.get(row["dataset_id"], ())),
        )
        for row in rows
    ]


def record_of_row(row: Mapping[str, Any]) -> EvaluationRecord:
    """A row of ``evaluation_dataset_records``."""
    said = {**row, **{name: _read(row[name]) for name in _CONTENT[:5]}}
    said["outputs"] = said["outputs"].get(_WRAPPED) if said["outputs"] else None
    if not said["source"]:
        said["source_type"] = None
    return EvaluationRecord(
        record_id=row["dataset_record_id"],
        content={name: said[name] for name in _CONTENT if said.get(name) is not None},
        created_ms=row["created_time"] or 0,
        updated_ms=row["last_update_time"] or 0,
        created_by=row["created_by"],
        updated_by=row["last_updated_by"],
    )


def _read(held: Any) -> Any:
    """A column of JSON, as the database knows it or as text."""
    return json.loads(held) if isinstance(held, str) else held


def of_answer(said: Mapping[str, Any], within: Sequence[str]) -> EvaluationDataset:
    """MLflow's ``Dataset``, and the experiments it is of."""
    tags = json.loads(said.get("tags") or "{}")
    return EvaluationDataset(
        dataset_id=said["dataset_id"],
        name=said["name"],
        digest=said.get("digest", ""),
        created_ms=int(said.get("created_time", 0)),
        updated_ms=int(said.get("last_update_time", 0)),
        schema=said.get("schema"),
        created_by=said.get("created_by"),
        updated_by=said.get("last_updated_by"),
        tags={key: str(value) for key, value in sorted(tags.items()) if value is not None},
        experiments=sorted(int(each) for each in within),
    )


def records_of_answer(text: str) -> list[EvaluationRecord]:
    """The list of records, which is JSON inside a string."""
    return [
        EvaluationRecord(
            record_id=each["dataset_record_id"],
            content={name: each[name] for name in _CONTENT if each.get(name) is not None},
            created_ms=int(each.get("created_time") or 0),
            updated_ms=int(each.get("last_update_time") or 0),
            created_by=each.get("created_by"),
            updated_by=each.get("last_updated_by"),
        )
        for each in json.loads(text or "[]")
    ]


def bring(keep: Keep, source: Source, given: EvaluationDataset, *, again: bool) -> int | None:
    """Write a dataset with its records: how many; None when it is here unchanged. What was added here stays."""
    whole = fingerprint(given)
    with keep.db.read() as conn:
        known = arrive.marked(conn, source.origin, KIND, [given.dataset_id]).get(given.dataset_id)
    if known is not None and known.fingerprint == whole and not again:
        return None
    number = keep.db.write(lambda conn: _dataset(conn, source.origin, given))
    count = 0
    for page in source.evaluation_records(given.dataset_id):
        keep.db.write(lambda conn, page=page: _records(conn, number, page))  # type: ignore[misc]
        count += len(page)

    def done(conn: Connection) -> None:
        held = select(func.count()).where(evaluation_records.c.dataset == number).scalar_subquery()
        conn.execute(update(table).where(table.c.id == number).values(records=held))
        arrive.mark(conn, source.origin, KIND, [(given.dataset_id, given.dataset_id, whole)])

    keep.db.write(done)
    return count


def _dataset(conn: Connection, origin: str, given: EvaluationDataset) -> int:
    changes = ", ".join(f'"{name}" = excluded."{name}"' for name in _DATASET[1:])
    row = tuple(getattr(given, name) for name in _DATASET)
    insert_rows(conn, table, _DATASET, [row], f"ON CONFLICT (dataset_id) DO UPDATE SET {changes}")
    number = int(evaluation.find(conn, given.dataset_id).id)
    tags = [(number, key, value) for key, value in given.tags.items()]
    conflict = "ON CONFLICT (dataset, key) DO UPDATE SET value = excluded.value"
    insert_rows(conn, evaluation_tags, ("dataset", "key", "value"), tags, conflict)
    marks = arrive.marked(conn, origin, "experiment", [str(each) for each in given.experiments])
    wanted = [int(mark.target) for mark in marks.values()]
    there = conn.execute(select(experiments.c.id).where(experiments.c.id.in_(wanted))).scalars()
    rows = [(number, each) for each in sorted(there)]
    insert_rows(conn, evaluation_experiments, ("dataset", "experiment"), rows, "ON CONFLICT DO NOTHING")
    return number


def _records(conn: Connection, number: int, page: Sequence[EvaluationRecord]) -> None:
    rows = {}
    for each in page:
        digest = evaluation.inputs_digest(each.content.get("inputs") or {})
        said = (each.created_by, each.updated_by, each.created_ms, each.updated_ms)
        rows[digest] = (number, each.record_id, digest, json.dumps(each.content), *said)
    mine = evaluation_records.c.dataset == number
    ids = [each.record_id for each in page]
    conn.execute(delete(evaluation_records).where(mine, evaluation_records.c.record_id.in_(ids)))
    changes = ", ".join(f"{name} = excluded.{name}" for name in ("record_id", *_RECORD[3:]))
    conflict = f"ON CONFLICT (dataset, inputs_digest) DO UPDATE SET {changes}"
    insert_rows(conn, evaluation_records, _RECORD, list(rows.values()), conflict)


def all_here(conn: Connection) -> list[EvaluationDataset]:
    """Every dataset that is kept here."""
    rows = conn.execute(select(table).order_by(table.c.id)).all()
    numbers = [row.id for row in rows]
    tags, within = evaluation.tags(conn, numbers), evaluation.experiments_of(conn, numbers)
    return [
        EvaluationDataset(
            **{name: getattr(row, name) for name in _DATASET},
            tags=tags.get(row.id, {}),
            experiments=within.get(row.id, []),
        )
        for row in rows
    ]


def records_here(conn: Connection, dataset_id: str) -> dict[str, EvaluationRecord]:
    """The records of a dataset by id. Raises ``NotFound``."""
    number = evaluation.find(conn, dataset_id).id
    query = (
        select(evaluation_records).where(evaluation_records.c.dataset == number).order_by(evaluation_records.c.id)
    )
    return {
        row.record_id: EvaluationRecord(
            row.record_id, json.loads(row.content), row.created_ms, row.updated_ms, row.created_by, row.updated_by
        )
        for row in conn.execute(query)
    }


def differences(keep: Keep, source: Source) -> tuple[int, list[str]]:
    """Read every dataset once more from both sides: how many records are the same, and what differs."""
    same, faults = 0, []
    with keep.db.read() as conn:
        here = {each.dataset_id: each for each in all_here(conn)}
    for page in source.evaluation_datasets():
        for given in page:
            who = f"evaluation dataset {given.dataset_id}"
            mine = here.get(given.dataset_id)
            if mine is None:
                faults.append(f"{who}: is not here")
                continue
            for name in _DATASET:
                if getattr(mine, name) != getattr(given, name):
                    faults.append(f"{who}: {name} differs")
            if not given.tags.items() <= mine.tags.items():
                faults.append(f"{who}: tags differ")
            with keep.db.read() as conn:
                kept = records_here(conn, given.dataset_id)
            for records in source.evaluation_records(given.dataset_id):
                wrong = [each.record_id for each in records if kept.get(each.record_id) != each]
                same += len(records) - len(wrong)
                faults += [f"{who}: record {each} differs" for each in wrong[:5]]
    return same, faults
