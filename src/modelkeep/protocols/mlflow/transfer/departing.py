"""What this home holds, as the records that travel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, select

from modelkeep.protocols.mlflow.transfer.records import Experiment, LoggedModel, Model, Point, Run, Version
from modelkeep.registry import artifacts, datasets, experiments, logged, model_contents, tracking
from modelkeep.registry.datasets import Dataset, DatasetInput
from modelkeep.store import tables
from modelkeep.store.bulk import fetch_each, select_in
from modelkeep.store.logged_tables import logged_model_metrics, logged_models

PAGE = 500
PIECE = 50_000


def all_experiments(conn: Connection) -> list[Experiment]:
    """All, deleted ones too, by number."""
    rows = conn.execute(select(tables.experiments).order_by(tables.experiments.c.id)).all()
    return [
        Experiment(
            each.id,
            each.name,
            each.artifact_location,
            each.lifecycle_stage,
            each.created_ms,
            each.updated_ms,
            dict(sorted(each.tags.items())),
        )
        for each in experiments.load(conn, rows)
    ]


def pages(conn: Connection, experiment: int) -> Iterator[list[Run]]:
    """All runs of an experiment, in the order they were made."""
    last = 0
    while True:
        query = select(tables.runs).where(tables.runs.c.experiment == experiment, tables.runs.c.id > last)
        rows = conn.execute(query.order_by(tables.runs.c.id).limit(PAGE)).all()
        if not rows:
            return
        yield shaped(conn, rows)
        last = rows[-1].id


def runs_of(conn: Connection, ids: Sequence[str]) -> dict[str, Run]:
    """Runs by id, of those that are here."""
    rows = conn.execute(select(tables.runs).where(tables.runs.c.run_id.in_(ids))).all()
    return {run.run_id: run for run in shaped(conn, rows)}


def shaped(conn: Connection, rows: Sequence[Any]) -> list[Run]:
    """Rows of ``runs`` as records."""
    ids = [row.id for row in rows]
    held = tracking.Contents(conn, ids)
    related = datasets.Related(conn, *fetch_each(conn, datasets.asking(conn, ids)))
    return [
        Run(
            run_id=row.run_id,
            experiment=row.experiment,
            name=row.name,
            status=row.status,
            lifecycle_stage=row.lifecycle_stage,
            artifact_uri=row.artifact_uri,
            start_ms=row.start_ms,
            end_ms=row.end_ms,
            deleted_ms=row.deleted_ms,
            user_id=row.user_id,
            source_type=row.source_type,
            source_name=row.source_name,
            source_version=row.source_version,
            entry_point_name=row.entry_point_name,
            params=dict(sorted(held.params.get(row.id, ()))),
            tags=dict(sorted(held.tags.get(row.id, ()))),
            latest=sorted(held.metrics.get(row.id, ()), key=lambda each: str(each[0])),
            datasets=[_use(each) for each in related.datasets.get(row.id, ())],
            models=sorted(
                (kind, *each) for kind in ("input", "output") for each in related.models.get((row.id, kind), ())
            ),
        )
        for row in rows
    ]


def points(conn: Connection, runs: Sequence[Run]) -> Iterator[list[Point]]:
    """The whole histories of these runs, by run, key and time, in pieces of bounded size."""
    table = tables.metrics
    for row in select_in(conn, "id, run_id", tables.runs, "run_id", [run.run_id for run in runs]):
        number, run_id = row
        query = select(table.c.key, table.c.timestamp_ms, table.c.step, table.c.value, table.c.is_nan)
        query = query.where(table.c.run == number)
        for piece in conn.execution_options(yield_per=PIECE).execute(query).partitions():
            yield [(run_id, key, ms, step, None if nan else value) for key, ms, step, value, nan in piece]


def model_pages(conn: Connection, experiment: int) -> Iterator[list[LoggedModel]]:
    """All logged models of an experiment, in the order they were made."""
    last = 0
    while True:
        query = select(logged_models).where(logged_models.c.experiment == experiment, logged_models.c.id > last)
        rows = conn.execute(query.order_by(logged_models.c.id).limit(PAGE)).all()
        if not rows:
            return
        yield _logged(conn, rows)
        last = rows[-1].id


def logged_models_of(conn: Connection, ids: Sequence[str]) -> dict[str, LoggedModel]:
    """Logged models by id, of those that are here."""
    rows = conn.execute(select(logged_models).where(logged_models.c.model_id.in_(ids))).all()
    return {model.model_id: model for model in _logged(conn, rows)}


def registered(conn: Connection) -> Iterator[Model]:
    """All registered models, by name, with their versions."""
    for name in conn.execute(select(tables.models.c.name).order_by(tables.models.c.name)).scalars().all():
        found = registered_model(conn, name)
        if found is not None:
            yield found


def registered_model(conn: Connection, name: str) -> Model | None:
    """A registered model with its versions; None when it is not here."""
    row = conn.execute(select(tables.models).where(tables.models.c.name == name)).first()
    if row is None:
        return None
    held = model_contents.Contents(conn, [row.id])
    query = select(tables.versions).where(tables.versions.c.model == row.id).order_by(tables.versions.c.version)
    return Model(
        name=name,
        created_ms=row.created_ms,
        updated_ms=row.updated_ms,
        description=row.description,
        tags=dict(held.tags.get(row.id, ())),
        aliases=dict(held.aliases.get(row.id, ())),
        versions=[_version(each, held) for each in conn.execute(query)],
    )


def _version(row: Any, held: model_contents.Contents) -> Version:
    return Version(
        version=row.version,
        created_ms=row.created_ms,
        updated_ms=row.updated_ms,
        source=row.source,
        location=artifacts.package_of(row),
        run_id=row.run_id,
        run_link=row.run_link,
        description=row.description,
        user_id=row.user_id,
        stage=row.stage,
        status=row.status,
        status_message=row.status_message,
        tags=dict(held.version_tags.get((row.model, row.version), ())),
    )


def _logged(conn: Connection, rows: Sequence[Any]) -> list[LoggedModel]:
    held = logged.Contents(conn, rows)
    columns = "model, key, run_id, dataset_name, dataset_digest, timestamp_ms, step, value, is_nan"
    metrics: dict[int, list[Any]] = {}
    for row in select_in(conn, columns, logged_model_metrics, "model", [row.id for row in rows]):
        number, *about, value, nan = row
        metrics.setdefault(number, []).append((*about, None if nan else value))
    return [
        LoggedModel(
            model_id=row.model_id,
            experiment=row.experiment,
            name=row.name,
            status=row.status,
            lifecycle_stage=row.lifecycle_stage,
            artifact_uri=row.artifact_uri,
            created_ms=row.created_ms,
            updated_ms=row.updated_ms,
            model_type=row.model_type,
            source_run_id=row.source_run_id,
            status_message=row.status_message,
            params=dict(held.params.get(row.id, {})),
            tags=dict(held.tags.get(row.id, {})),
            metrics=metrics.get(row.id, []),
        )
        for row in rows
    ]


def _use(given: dict[str, Any]) -> DatasetInput:
    said = msgspec.convert(given["dataset"], Dataset)
    return DatasetInput(said, {tag["key"]: tag["value"] for tag in given["tags"]})
