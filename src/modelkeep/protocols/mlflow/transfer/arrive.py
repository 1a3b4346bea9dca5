"""Records written to the database, many rows at a time. Writing one again changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, func, select, text, update

from modelkeep.protocols.mlflow.transfer.records import Experiment, LoggedModel, Model, Point, Run
from modelkeep.registry.datasets import CONTEXT
from modelkeep.store import tables
from modelkeep.store.bulk import encode, insert_rows, select_in
from modelkeep.store.logged_tables import (
    datasets,
    logged_model_artifacts,
    logged_model_metrics,
    logged_model_params,
    logged_model_tags,
    logged_models,
    run_datasets,
    run_models,
)
from modelkeep.store.transfer_tables import imports

Files = Mapping[str, Mapping[str, tuple[str, int]]]
"""Digest and size in bytes by path, by run id or model id."""

_SKIP = "ON CONFLICT DO NOTHING"


def _replace(key: str, *columns: str) -> str:
    changes = ", ".join(f"{name} = excluded.{name}" for name in columns)
    return f"ON CONFLICT ({key}) DO UPDATE SET {changes}"


def mark(conn: Connection, origin: str, kind: str, marks: Iterable[tuple[str, str, str]]) -> None:
    """Remember name there, name here and fingerprint of what was copied."""
    rows = [(origin, kind, *each) for each in marks]
    columns = ("origin", "kind", "name", "target", "fingerprint")
    insert_rows(conn, imports, columns, rows, _replace("origin, kind, name", "target", "fingerprint"))


def marked(conn: Connection, origin: str, kind: str, names: Iterable[str] | None = None) -> dict[str, Any]:
    """Rows of ``imports`` by name; of all when ``names`` is None."""
    query = select(imports).where(imports.c.origin == origin, imports.c.kind == kind)
    if names is not None:
        query = query.where(imports.c.name.in_(list(names)))
    return {row.name: row for row in conn.execute(query)}


def experiment(conn: Connection, given: Experiment, target: int | None, name: str, location: str) -> int:
    """Write an experiment and return its number; None as the target makes a new one."""
    row = (name, location, given.lifecycle_stage, given.created_ms, given.updated_ms)
    columns: tuple[str, ...] = ("name", "artifact_location", "lifecycle_stage", "created_ms", "updated_ms")
    if target is None:
        insert_rows(conn, tables.experiments, columns, [row])
        target = int(
            conn.execute(select(tables.experiments.c.id).where(tables.experiments.c.name == name)).scalar_one()
        )
    else:
        conflict = _replace("id", *columns)
        insert_rows(conn, tables.experiments, ("id", *columns), [(target, *row)], conflict)
        _count_on(conn)
    rows = [(target, key, value) for key, value in given.tags.items()]
    conflict = _replace("experiment, key", "value")
    insert_rows(conn, tables.experiment_tags, ("experiment", "key", "value"), rows, conflict)
    return target


def runs(
    conn: Connection,
    given: Sequence[Run],
    target: int,
    files: Files,
    locations: Mapping[str, str],
    now_ms: int,
) -> None:
    """Write runs of one experiment with everything but their histories.

    Args:
        target: The experiment's number here.
        now_ms: Counts as the time of a deletion that the source does not tell.
        locations: Artifact URI of the runs whose files stay where they are.
    """
    columns = (
        *("run_id", "experiment", "name", "status", "lifecycle_stage", "user_id", "source_type", "source_name"),
        *("source_version", "entry_point_name", "artifact_uri", "start_ms", "end_ms", "deleted_ms"),
    )
    rows = [
        (
            *(run.run_id, target, run.name, run.status, run.lifecycle_stage, run.user_id, run.source_type),
            *(run.source_name, run.source_version, run.entry_point_name, locations.get(run.run_id, "")),
            *(run.start_ms, run.end_ms, _deleted(run, now_ms)),
        )
        for run in given
    ]
    changing: tuple[str, ...] = ("name", "status", "lifecycle_stage", "user_id", "start_ms", "end_ms")
    changing += () if locations else ("artifact_uri",)
    kept = "CASE WHEN excluded.lifecycle_stage = 'deleted' THEN coalesce(runs.deleted_ms, excluded.deleted_ms) END"
    conflict = f"{_replace('run_id', *changing)}, deleted_ms = {kept}"
    _move(conn, given)
    insert_rows(conn, tables.runs, columns, rows, conflict)
    ids = numbers(conn, given)
    placed = [(run, ids[run.run_id], target, run.start_ms) for run in given]
    texts = ("run", "experiment", "start_ms", "key", "value")
    params = [(*place, *pair) for run, *place in placed for pair in run.params.items()]
    insert_rows(conn, tables.params, texts, params, _SKIP)
    tags = [(*place, *pair) for run, *place in placed for pair in run.tags.items()]
    insert_rows(conn, tables.tags, texts, tags, _replace("run, key", "value"))
    latest = [(*place, *point) for run, *place in placed for point in run.latest]
    values = (*texts[:4], "value", "timestamp_ms", "step")
    insert_rows(conn, tables.latest_metrics, values, latest, _replace("run, key", *values[4:]))
    _uses(conn, given, target, ids)
    attached = [
        (ids[run_id], path, *blob)
        for run_id, listed in files.items()
        if run_id in ids
        for path, blob in listed.items()
    ]
    conflict = _replace("run, path", "digest", "size")
    insert_rows(conn, tables.run_artifacts, ("run", "path", "digest", "size"), attached, conflict)


def _move(conn: Connection, given: Sequence[Run]) -> None:
    """Let what repeats a run's start follow it, should it be another one now."""
    starts = {run.run_id: run.start_ms for run in given}
    for number, run_id, start_ms in select_in(conn, "id, run_id, start_ms", tables.runs, "run_id", starts):
        if start_ms != starts[run_id]:
            for table in (tables.params, tables.tags, tables.latest_metrics):
                conn.execute(update(table).where(table.c.run == number).values(start_ms=starts[run_id]))


def numbers(conn: Connection, given: Sequence[Run]) -> dict[str, int]:
    """Row number by run id, of those that are here."""
    found = select_in(conn, "run_id, id", tables.runs, "run_id", [run.run_id for run in given])
    return {str(run_id): int(number) for run_id, number in found}


def points(conn: Connection, given: Sequence[Point], ids: Mapping[str, int]) -> None:
    """Write points of histories; ``ids`` are the runs' row numbers."""
    rows = [
        (ids[run], key, ms, step, 0.0 if value is None else value, int(value is None))
        for run, key, ms, step, value in given
    ]
    columns = ("run", "key", "timestamp_ms", "step", "value", "is_nan")
    insert_rows(conn, tables.metrics, columns, rows, _SKIP)


def models(
    conn: Connection,
    given: Sequence[LoggedModel],
    target: int,
    files: Files,
    locations: Mapping[str, str],
    *,
    moved: bool,
) -> None:
    """Write logged models of one experiment.

    Args:
        locations: Artifact URI of each, here.
        moved: Whether that holds also of those that are here already: their files have come.
    """
    columns: tuple[str, ...] = (
        *("model_id", "experiment", "name", "model_type", "source_run_id", "status", "status_message"),
        *("artifact_uri", "lifecycle_stage", "created_ms", "updated_ms"),
    )
    rows = [
        (
            *(each.model_id, target, each.name, each.model_type, each.source_run_id, each.status),
            *(each.status_message, locations[each.model_id], each.lifecycle_stage, each.created_ms),
            each.updated_ms,
        )
        for each in given
    ]
    changing: tuple[str, ...] = ("name", "status", "status_message", "lifecycle_stage", "updated_ms")
    changing += ("artifact_uri",) if moved else ()
    insert_rows(conn, logged_models, columns, rows, _replace("model_id", *changing))
    found = select_in(conn, "model_id, id", logged_models, "model_id", [each.model_id for each in given])
    ids = {str(name): int(number) for name, number in found}
    texts = ("model", "key", "value")
    params = [(ids[each.model_id], *pair) for each in given for pair in each.params.items()]
    insert_rows(conn, logged_model_params, texts, params, _SKIP)
    tags = [(ids[each.model_id], *pair) for each in given for pair in each.tags.items()]
    insert_rows(conn, logged_model_tags, texts, tags, _replace("model, key", "value"))
    values = [
        (ids[each.model_id], key, run, name, digest, ms, step, 0.0 if value is None else value, int(value is None))
        for each in given
        for key, run, name, digest, ms, step, value in each.metrics
    ]
    columns = (
        *("model", "key", "run_id", "dataset_name", "dataset_digest", "timestamp_ms", "step"),
        *("value", "is_nan"),
    )
    insert_rows(conn, logged_model_metrics, columns, values, _SKIP)
    attached = [
        (ids[each.model_id], path, *blob) for each in given for path, blob in files.get(each.model_id, {}).items()
    ]
    conflict = _replace("model, path", "digest", "size")
    insert_rows(conn, logged_model_artifacts, ("model", "path", "digest", "size"), attached, conflict)


def registered(conn: Connection, given: Model, name: str, sources: Mapping[int, tuple[str, str, str]]) -> None:
    """Write a registered model with its versions, tags and aliases under ``name``.

    Args:
        sources: Of each version, by number: its source here, its logged model, and who has its files.
    """
    about = (name, given.description, given.created_ms, given.updated_ms)
    columns: tuple[str, ...] = ("name", "description", "created_ms", "updated_ms")
    insert_rows(conn, tables.models, columns, [about], _replace("name", "description", "updated_ms"))
    number = int(conn.execute(select(tables.models.c.id).where(tables.models.c.name == name)).scalar_one())
    rows = [
        (
            *(number, each.version, each.run_id, sources[each.version][0], each.run_link, each.description),
            *(each.user_id, each.stage, each.status, each.status_message, each.created_ms, each.updated_ms),
            *sources[each.version][1:],
        )
        for each in given.versions
    ]
    columns = (
        *("model", "version", "run_id", "source", "run_link", "description", "user_id", "stage", "status"),
        *("status_message", "created_ms", "updated_ms", "model_id", "files_of"),
    )
    changing = (
        *("description", "stage", "status", "status_message", "updated_ms"),
        *("source", "model_id", "files_of"),
    )
    insert_rows(conn, tables.versions, columns, rows, _replace("model, version", *changing))
    tags = [(number, *pair) for pair in given.tags.items()]
    insert_rows(conn, tables.model_tags, ("model", "key", "value"), tags, _replace("model, key", "value"))
    of_versions = [(number, each.version, *pair) for each in given.versions for pair in each.tags.items()]
    conflict = _replace("model, version, key", "value")
    insert_rows(conn, tables.version_tags, ("model", "version", "key", "value"), of_versions, conflict)
    named = [(number, alias, version) for alias, version in given.aliases.items()]
    conflict = _replace("model, alias", "version")
    insert_rows(conn, tables.aliases, ("model", "alias", "version"), named, conflict)


def _uses(conn: Connection, given: Sequence[Run], target: int, ids: Mapping[str, int]) -> None:
    """The datasets and logged models of runs."""
    described = {(use.dataset.name, use.dataset.digest): use.dataset for run in given for use in run.datasets}
    if described:
        columns = ("experiment", "name", "digest", "source_type", "source", "schema", "profile")
        rows = [
            (target, each.name, each.digest, each.source_type, each.source, each.schema, each.profile)
            for each in described.values()
        ]
        insert_rows(conn, datasets, columns, rows, _SKIP)
        query = select(datasets.c.name, datasets.c.digest, datasets.c.id).where(
            datasets.c.experiment == target, datasets.c.name.in_({name for name, _ in described})
        )
        known = {(name, digest): number for name, digest, number in conn.execute(query)}
        uses = [
            (
                *(ids[run.run_id], known[use.dataset.name, use.dataset.digest]),
                *(use.tags.get(CONTEXT, ""), encode(use.tags)),
            )
            for run in given
            for use in run.datasets
        ]
        insert_rows(conn, run_datasets, ("run", "dataset", "context", "tags"), uses, _SKIP)
    models = [(ids[run.run_id], *each) for run in given for each in run.models]
    insert_rows(conn, run_models, ("run", "kind", "model_id", "step"), models, _SKIP)


def _deleted(run: Run, now_ms: int) -> int | None:
    return (run.deleted_ms or now_ms) if run.lifecycle_stage == "deleted" else None


def _count_on(conn: Connection) -> None:
    """Let new experiments get numbers after those that were given; SQLite does so by itself."""
    if conn.dialect.name == "postgresql":
        highest = select(func.max(tables.experiments.c.id)).scalar_subquery()
        sequence = func.pg_get_serial_sequence("experiments", "id")
        following = func.nextval(text("pg_get_serial_sequence('experiments', 'id')::regclass"))
        conn.execute(select(func.setval(sequence, func.greatest(highest, following))))
