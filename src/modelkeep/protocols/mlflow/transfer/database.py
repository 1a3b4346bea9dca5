"""The database of an MLflow server, read directly: SQLite, PostgreSQL, or another that SQLAlchemy speaks to.

The tables are found as they are (reflection), so that releases with more columns can be read too. Source of what
they mean: mlflow/store/db_migrations and mlflow/store/tracking/dbmodels in MLflow's repository.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from sqlalchemy import MetaData, Table, case, create_engine, func, select
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from modelkeep.core.errors import Invalid, MissingExtra, NotFound, Refused, Unavailable
from modelkeep.protocols.mlflow.transfer import evaluated, hooked, rows, traced
from modelkeep.protocols.mlflow.transfer.places import Places
from modelkeep.protocols.mlflow.transfer.records import (
    EvaluationDataset,
    EvaluationRecord,
    Experiment,
    Hook,
    LoggedModel,
    Model,
    Owned,
    Point,
    Run,
    Trace,
)

PAGE = 500
PIECE = 50_000
"""Points read at a time."""

NEEDED: Mapping[str, frozenset[str]] = {
    "experiments": frozenset({"experiment_id", "name", "artifact_location", "lifecycle_stage", "creation_time"}),
    "experiment_tags": frozenset({"experiment_id", "key", "value"}),
    "runs": frozenset({"run_uuid", "experiment_id", "name", "status", "artifact_uri", "deleted_time"}),
    "metrics": frozenset({"run_uuid", "key", "timestamp", "step", "value", "is_nan"}),
    "latest_metrics": frozenset({"run_uuid", "key", "timestamp", "step", "value", "is_nan"}),
    "params": frozenset({"run_uuid", "key", "value"}),
    "tags": frozenset({"run_uuid", "key", "value"}),
    "registered_models": frozenset({"name", "description", "creation_time", "last_updated_time"}),
    "registered_model_tags": frozenset({"name", "key", "value"}),
    "model_versions": frozenset({"name", "version", "source", "run_id", "current_stage", "run_link"}),
    "model_version_tags": frozenset({"name", "version", "key", "value"}),
}
"""What a database must have to be read: the schema of MLflow 2.0 (2022)."""

_POINTS = (
    'SELECT run_uuid, "key", "timestamp", step, CASE WHEN is_nan THEN NULL ELSE value END FROM metrics'
    " WHERE run_uuid IN ({})"
)
LATER = (
    "datasets",
    "inputs",
    "input_tags",
    "registered_model_aliases",
    "logged_models",
    "logged_model_params",
    "logged_model_tags",
    "logged_model_metrics",
    "trace_info",
    "trace_tags",
    "trace_request_metadata",
    "spans",
    "assessments",
    "entity_associations",
    "evaluation_datasets",
    "evaluation_dataset_tags",
    "evaluation_dataset_records",
    "webhooks",
    "webhook_events",
    "scorers",
)
_NOT_COPIED = {"scorers": "scorers"}


class DatabaseSource:
    """The ``Source`` port on a database of MLflow's tracking and registry."""

    untold: frozenset[str] = frozenset()

    def __init__(self, url: str, places: Places, workspace: str = "default") -> None:
        """Connect and look at the schema.

        Raises:
            Invalid: The URL is of no known kind.
            Unavailable: The database cannot be reached.
            Refused: It is not MLflow's, or older than can be read.
        """
        parsed = _parse(url)
        self.origin = parsed.set(password=None).render_as_string(hide_password=True)
        self._places, self._workspace = places, workspace
        self._engine = _connect(parsed)
        self._tables: dict[str, Table] = {}
        try:
            self._conn = self._engine.connect()
            self.note = self._look()
        except SQLAlchemyError as error:
            self._engine.dispose()
            raise Unavailable(
                f"{self.origin} cannot be read: {str(error).splitlines()[0]}", hint="check the address"
            ) from None
        except Refused:
            self._conn.close()
            self._engine.dispose()
            raise

    def experiments(self) -> list[Experiment]:
        """All, deleted ones too."""
        table = self._tables["experiments"]
        query = self._here(select(table).order_by(table.c.experiment_id), table)
        found = [dict(row) for row in self._conn.execute(query).mappings()]
        tags = self._by("experiment_tags", "experiment_id", [row["experiment_id"] for row in found])
        return [
            Experiment(
                id=int(row["experiment_id"]),
                name=row["name"],
                artifact_location=row["artifact_location"] or "",
                lifecycle_stage=row["lifecycle_stage"] or "active",
                created_ms=row["creation_time"] or 0,
                updated_ms=row.get("last_update_time") or row["creation_time"] or 0,
                tags=rows.texts(tags.get(row["experiment_id"], ())),
            )
            for row in found
        ]

    def runs(self, experiment: int) -> Iterator[list[Run]]:
        """Pages of all runs, in order of their ids."""
        table = self._tables["runs"]
        wanted = select(table).where(table.c.experiment_id == experiment)
        for found in self._pages(wanted, table.c.run_uuid):
            yield rows.runs(found, self._by)

    def points(self, runs: Sequence[Run]) -> Iterator[list[Point]]:
        """The histories of a page's runs."""
        ids = [run.run_id for run in runs]
        mark = {"sqlite": "?", "postgresql": "%s"}.get(self._engine.dialect.name)
        if mark is None:
            yield from self._points(ids)
            return
        # The driver's own cursor: SQLAlchemy's rows take six times as long.
        raw: Any = self._conn.connection.driver_connection
        cursor = raw.cursor(name="modelkeep") if mark == "%s" else raw.cursor()
        with closing(cursor):
            cursor.execute(_POINTS.format(", ".join([mark] * len(ids))), ids)
            while piece := cursor.fetchmany(PIECE):
                yield piece

    def _points(self, ids: Sequence[str]) -> Iterator[list[Point]]:
        table = self._tables["metrics"]
        value = case((table.c.is_nan, None), else_=table.c.value)
        query = select(table.c.run_uuid, table.c.key, table.c.timestamp, table.c.step, value)
        found = self._conn.execution_options(yield_per=PIECE).execute(query.where(table.c.run_uuid.in_(ids)))
        for piece in found.partitions():
            yield [row._tuple() for row in piece]

    def logged_models(self, experiment: int) -> Iterator[list[LoggedModel]]:
        """Pages of all logged models, in order of their ids."""
        table = self._tables.get("logged_models")
        if table is None:
            return
        for found in self._pages(select(table).where(table.c.experiment_id == experiment), table.c.model_id):
            yield rows.logged_models(found, self._by)

    def traces(self, experiment: int) -> Iterator[list[Trace]]:
        """Pages of all traces, in order of their ids; with spans as far as the database holds them."""
        table = self._tables.get("trace_info")
        if table is None:
            return
        for found in self._pages(select(table).where(table.c.experiment_id == experiment), table.c.request_id):
            yield traced.of_rows(found, self._by)

    def models(self) -> Iterator[list[Model]]:
        """Pages of registered models, by name."""
        table = self._tables["registered_models"]
        for found in self._pages(self._here(select(table), table), table.c.name):
            yield rows.models(found, self._by)

    def evaluation_datasets(self) -> Iterator[list[EvaluationDataset]]:
        """Pages of the datasets of evaluations, in order of their ids."""
        table = self._tables.get("evaluation_datasets")
        if table is None:
            return
        for found in self._pages(self._here(select(table), table), table.c.dataset_id):
            yield evaluated.of_rows(found, self._by)

    def evaluation_records(self, dataset_id: str) -> Iterator[list[EvaluationRecord]]:
        """Pages of the records of one, in order of their ids."""
        table = self._tables["evaluation_dataset_records"]
        for found in self._pages(select(table).where(table.c.dataset_id == dataset_id), table.c.dataset_record_id):
            yield [evaluated.record_of_row(row) for row in found]

    def webhooks(self) -> list[Hook]:
        """All, with their secrets as far as they can be read."""
        table = self._tables.get("webhooks")
        if table is None:
            return []
        found = [dict(row) for row in self._conn.execute(self._here(select(table), table)).mappings()]
        return hooked.of_rows(sorted(found, key=lambda row: str(row["webhook_id"])), self._by)

    def files(self, owner: Owned) -> list[tuple[str, int | None]]:
        """What lies at its artifact URI. Raises ``Invalid``."""
        return self._places.files(owner)

    def open(self, owner: Owned, path: str) -> AbstractContextManager[BinaryIO]:
        """One file's bytes. Raises ``NotFound``, ``Unavailable``."""
        return self._places.open(owner, path)

    def totals(self) -> dict[str, int]:
        """Runs and points of this workspace."""
        runs, metrics, experiments = (self._tables[name] for name in ("runs", "metrics", "experiments"))
        joined = runs.join(experiments, experiments.c.experiment_id == runs.c.experiment_id)
        counts = {}
        for name, counted in (
            ("runs", joined),
            ("points", joined.join(metrics, metrics.c.run_uuid == runs.c.run_uuid)),
        ):
            query = self._here(select(func.count()).select_from(counted), experiments)
            counts[name] = int(self._conn.execute(query).scalar_one())
        return counts

    def others(self) -> dict[str, int]:
        """What has tables of its own that are not read."""
        found = {}
        for name, called in _NOT_COPIED.items():
            if name in self._tables:
                counted = self._conn.execute(select(func.count()).select_from(self._tables[name])).scalar_one()
                found[called] = int(counted)
        elsewhere = 0
        for name in ("experiments", "registered_models"):
            table = self._tables[name]
            if "workspace" in table.c:
                apart = select(func.count()).select_from(table).where(table.c.workspace != self._workspace)
                elsewhere += int(self._conn.execute(apart).scalar_one())
        found["experiments and models of other workspaces"] = elsewhere
        return {name: count for name, count in found.items() if count}

    def close(self) -> None:
        """End the connection."""
        self._conn.close()
        self._engine.dispose()

    def _look(self) -> str:
        found = MetaData()
        found.reflect(
            self._conn, only=lambda name, _: name in NEEDED or name in LATER or name == "alembic_version"
        )
        self._tables = dict(found.tables)
        revision = ""
        if "alembic_version" in self._tables:
            revision = str(self._conn.execute(select(self._tables["alembic_version"].c.version_num)).scalar())
        if "experiments" not in self._tables and "registered_models" not in self._tables:
            raise Refused(
                f"{self.origin} has none of MLflow's tables", hint="name the database of the MLflow server"
            )
        lacking = [
            f"{name}.{column}"
            for name, columns in NEEDED.items()
            for column in sorted(columns)
            if name not in self._tables or column not in self._tables[name].c
        ]
        if lacking:
            raise Refused(
                f"the schema of {self.origin} (revision {revision or 'unknown'}) is older than MLflow 2.0:"
                f" it lacks {', '.join(lacking[:5])}{', ...' if len(lacking) > 5 else ''}",
                hint="bring a copy of it up to date with 'mlflow db upgrade URL', then import that",
            )
        return f"schema {revision}"

    def _here(self, query: Any, table: Table) -> Any:
        return query.where(table.c.workspace == self._workspace) if "workspace" in table.c else query

    def _pages(self, query: Any, key: Any) -> Iterator[rows.Rows]:
        last: Any = None
        while True:
            page = query if last is None else query.where(key > last)
            found = [dict(row) for row in self._conn.execute(page.order_by(key).limit(PAGE)).mappings()]
            if found:
                yield found
            if len(found) < PAGE:
                return
            last = found[-1][key.name]

    def _by(self, name: str, owner: str, wanted: Iterable[Any], **equal: str) -> dict[Any, rows.Rows]:
        """Rows of a table by the owner they belong to; none when the table is not there."""
        found: dict[Any, rows.Rows] = {}
        ids = list(wanted)
        if name not in self._tables or not ids:
            return found
        table = self._tables[name]
        conditions = [table.c[column] == value for column, value in equal.items()]
        query = self._here(select(table).where(table.c[owner].in_(ids), *conditions), table)
        for row in self._conn.execute(query).mappings():
            found.setdefault(row[owner], []).append(dict(row))
        return found


def _parse(url: str) -> URL:
    try:
        found = make_url(url)
        if found.drivername in ("postgresql", "postgres"):
            found = found.set(drivername="postgresql+psycopg")
        found.get_dialect()
    except (ArgumentError, NoSuchModuleError) as error:
        raise Invalid(
            f"{url!r} is no address of a database: {error}",
            path="SOURCE",
            hint="expected sqlite:///PATH or postgresql://USER@HOST/NAME",
        ) from None
    return found


def _connect(url: URL) -> Engine:
    """An engine whose connections cannot change anything. Raises ``NotFound``, ``MissingExtra``."""
    if url.get_backend_name() == "sqlite":
        file = Path(url.database or "").absolute()
        if not file.is_file():
            raise NotFound(f"there is no file {file}", hint="name the database of the MLflow server")
        return create_engine(f"sqlite:///file:{quote(str(file))}?mode=ro&uri=true", pool_size=1)
    try:
        options: dict[str, Any] = {"isolation_level": "REPEATABLE READ"}
        options |= {"postgresql_readonly": True} if url.get_backend_name() == "postgresql" else {}
        return create_engine(url, pool_size=1, execution_options=options)
    except ModuleNotFoundError as error:
        if url.get_backend_name() == "postgresql":
            raise MissingExtra("psycopg", "postgres") from None
        raise Unavailable(f"the driver {error.name} is not installed", hint=f"pip install {error.name}") from None
