"""Every table. One definition for SQLite and PostgreSQL; the migrations hold the frozen history of it.

Units: columns ending in ``_ms`` are whole milliseconds since 1970 UTC (MLflow's unit); other times are seconds
since 1970 UTC as doubles. Columns of canonical JSON are ``Text``. Digests are 64 hexadecimal characters.

Metrics, params and tags repeat their run's experiment and start, by which their indexes find runs in order.

The experiment, run, metric, param, tag and registered-model tables carry every attribute of MLflow's data model
(mlflow.org/docs, "MLflow Tracking" and "Model Registry"), so its protocol is a door on them and not a copy.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    func,
)

from modelkeep.store.columns import Id, metadata
from modelkeep.store.columns import number as _number
from modelkeep.store.columns import of as _of
from modelkeep.store.columns import row_id as _id
from modelkeep.store.columns import text as _text
from modelkeep.store.columns import time as _time
from modelkeep.store.columns import values as _values

INDEXED_TEXT = 200
"""Characters of a param's or tag's value that are indexed: a PostgreSQL index row holds at most 2,704 bytes.

A search compares ``substr(value, 1, 200)`` to find rows by the index, then the whole value.
"""


def _by_value(table: Table, owner: str) -> None:
    """The index behind searches for one key's value among the runs of an experiment, by the runs' start."""
    value = func.substr(table.c.value, 1, INDEXED_TEXT)
    Index(f"ix_{table.name}_search", table.c.experiment, table.c.key, value, table.c.start_ms, table.c[owner])


# -- tracking ---------------------------------------------------------------------------------------------------

experiments = Table(
    "experiments",
    metadata,
    _id(),
    _text("name", unique=True),
    _text("artifact_location", ""),
    _text("lifecycle_stage", "active"),
    _number("created_ms"),
    _number("updated_ms"),
)

experiment_tags = _values("experiment_tags", "experiments", "experiment")

runs = Table(
    "runs",
    metadata,
    _id(),
    _text("run_id", unique=True),
    _of("experiments", "experiment"),
    _text("name", ""),
    _text("status", "RUNNING"),  # RUNNING, SCHEDULED, FINISHED, FAILED, KILLED
    _text("lifecycle_stage", "active"),
    _text("user_id", ""),
    _text("source_type", "LOCAL"),
    _text("source_name", ""),
    _text("source_version", ""),
    _text("entry_point_name", ""),
    _text("artifact_uri", ""),
    _number("start_ms"),
    Column("end_ms", BigInteger),
    Column("deleted_ms", BigInteger),
)
Index("ix_runs_recent", runs.c.experiment, runs.c.lifecycle_stage, runs.c.start_ms, runs.c.run_id)
Index("ix_runs_name", runs.c.experiment, runs.c.name)

metrics = Table(  # the whole history; equal points are kept once, so that a repeated batch changes nothing
    "metrics",
    metadata,
    _of("runs", "run", primary_key=True),
    _text("key", primary_key=True),
    _number("timestamp_ms", primary_key=True, autoincrement=False),
    _number("step", primary_key=True, autoincrement=False),
    Column("value", Double, primary_key=True, autoincrement=False),  # 0 where is_nan: SQLite keeps no NaN
    _number("is_nan", 0, SmallInteger, primary_key=True, autoincrement=False),
    sqlite_with_rowid=False,
)

latest_metrics = Table(  # the point of the highest (step, timestamp, value), as MLflow decides it
    "latest_metrics",
    metadata,
    _of("runs", "run", primary_key=True),
    _text("key", primary_key=True),
    _number("experiment"),
    Column("value", Double),  # NULL is NaN: it fails every comparison, and ordering puts it last
    _number("timestamp_ms"),
    _number("step"),
    _number("start_ms", 0),
    sqlite_with_rowid=False,
)
Index(
    "ix_latest_metrics_search",
    latest_metrics.c.experiment,
    latest_metrics.c.key,
    latest_metrics.c.value,
    latest_metrics.c.start_ms,
    latest_metrics.c.run,
)

params = _values("params", "runs", "run", _number("experiment"), _number("start_ms", 0))
_by_value(params, "run")
tags = _values("tags", "runs", "run", _number("experiment"), _number("start_ms", 0))
_by_value(tags, "run")

run_artifacts = Table(
    "run_artifacts",
    metadata,
    _of("runs", "run", primary_key=True),
    _text("path", primary_key=True),
    _text("digest"),
    _number("size"),
    sqlite_with_rowid=False,
)

# -- registered models ------------------------------------------------------------------------------------------

models = Table(
    "models",
    metadata,
    _id(),
    _text("name", unique=True),
    _text("description", ""),
    _number("created_ms"),
    _number("updated_ms"),
)

model_tags = _values("model_tags", "models", "model")

versions = Table(
    "versions",
    metadata,
    _of("models", "model", primary_key=True),
    _number("version", kind=Integer, primary_key=True, autoincrement=False),
    _text("run_id", ""),
    _text("source", ""),
    _text("run_link", ""),
    _text("description", ""),
    _text("user_id", ""),
    _text("stage", "None"),
    _text("status", "READY"),
    _text("status_message", ""),
    _number("created_ms"),
    _number("updated_ms"),
    _text("package", ""),
    _text("runtime", ""),
    _text("note", ""),
    _text("lineage", "{}"),
    _text("evaluation", "{}"),
    _text("model_id", ""),  # of the logged model it was registered from
    _text("files_of", ""),  # id of the run or logged model, or digest of the package, that has its files
)
Index("ix_versions_run_id", versions.c.run_id)
Index("ix_versions_files_of", versions.c.files_of)
Index("ix_versions_package", versions.c.package)
Index("ix_versions_created", versions.c.created_ms)
Index("ix_versions_updated", versions.c.updated_ms)
Index("ix_versions_stage", versions.c.model, versions.c.stage, versions.c.version)

version_tags = Table(
    "version_tags",
    metadata,
    _of("models", "model", primary_key=True),
    _number("version", kind=Integer, primary_key=True, autoincrement=False),
    _text("key", primary_key=True),
    _text("value"),
    sqlite_with_rowid=False,
)

aliases = Table(
    "aliases",
    metadata,
    _of("models", "model", primary_key=True),
    _text("alias", primary_key=True),
    _number("version", kind=Integer),
    sqlite_with_rowid=False,
)

# -- history ----------------------------------------------------------------------------------------------------

events = Table(
    "events",
    metadata,
    Column("seq", Id, primary_key=True, autoincrement=False),
    _time("at"),
    _text("kind"),
    _text("subject"),
    _text("actor"),
    _text("data"),
    _text("previous"),
    _text("hash"),
)
Index("ix_events_subject", events.c.subject, events.c.seq)
Index("ix_events_kind", events.c.kind, events.c.seq)

event_head = Table(  # one row: locking it puts concurrent appends in line, and a cut tail shows
    "event_head",
    metadata,
    _number("id", kind=Integer, primary_key=True, autoincrement=False),
    _number("seq"),
    _text("hash"),
)

# -- serving and watching ---------------------------------------------------------------------------------------

counters = Table("counters", metadata, _text("name", primary_key=True), _number("value"))

endpoints = Table(
    "endpoints",
    metadata,
    _text("endpoint", primary_key=True),
    _text("model", index=True),
    _number("generation"),
    _text("routes"),
    Column("rollout", Text),
    _text("settings"),
)

captures = Table(
    "captures",
    metadata,
    _id(),
    _text("endpoint"),
    _number("version", kind=Integer),
    _text("mode"),
    _time("start"),
    _time("end"),
    _number("rows"),
    _number("errors"),
    _number("dropped"),
    _text("digest"),
    Column("part", Text, unique=True),  # the spool file it came from: taken in once, however often it is offered
)
Index("ix_captures_time", captures.c.endpoint, captures.c.end, captures.c.start)

labels = Table(
    "labels",
    metadata,
    _text("prediction_id", primary_key=True),
    _text("value"),
    _time("time"),
    sqlite_with_rowid=False,
)
Index("ix_labels_time", labels.c.time)

windows = Table(
    "windows",
    metadata,
    _id(),
    _text("endpoint"),
    _text("model"),
    _number("version", kind=Integer),
    _text("mode"),
    _time("start"),
    _time("end"),
    _number("rows"),
    _number("errors"),
    _number("dropped"),
    _text("profile"),
    _text("latency"),
    _text("metrics"),
    _number("labels"),
    UniqueConstraint("endpoint", "version", "mode", "start"),
)
Index("ix_windows_time", windows.c.endpoint, windows.c.end)

findings = Table(
    "findings",
    metadata,
    _id(),
    _text("model"),
    _text("endpoint"),
    _number("version", kind=Integer),
    _text("kind"),
    _time("at"),
    Column("window", Id, ForeignKey("windows.id")),
    _text("evidence"),
)
Index("ix_findings_model", findings.c.model, findings.c.at)

# -- data and work ----------------------------------------------------------------------------------------------

snapshots = Table(
    "snapshots",
    metadata,
    _id(),
    _text("name"),
    _text("digest", index=True),
    _text("manifest"),
    _time("created"),
    _number("rows"),
    Column("parent", Text),
    _text("fingerprints"),
)
Index("ix_snapshots_name", snapshots.c.name, snapshots.c.id)

stages = Table(
    "stages",
    metadata,
    _text("key", primary_key=True),
    _text("stage"),
    _text("model"),
    _text("result"),
    _time("created"),
)
Index("ix_stages_model", stages.c.model, stages.c.stage, stages.c.created)

studies = Table(  # searches that are not over: the journals they go on from
    "studies",
    metadata,
    _text("study", primary_key=True),
    _number("number", primary_key=True, autoincrement=False),  # of the line; two writers cannot both add it
    _text("line"),
    _time("created"),
    sqlite_with_rowid=False,
)

jobs = Table(
    "jobs",
    metadata,
    _id(),
    _text("model"),
    _text("kind"),
    _text("payload"),
    _text("state"),  # queued, running, done, failed, cancelled
    _number("attempts", 0, Integer),
    _number("max_attempts", 3, Integer),
    Column("owner", Text),
    _time("not_before"),
    _time("lease_until", nullable=True),
    _time("created"),
    _time("started", nullable=True),
    _time("finished", nullable=True),
    Column("result", Text),
    Column("error", Text),
    _number("priority", 0, Integer),
    Column("resources", Text),
)
Index("ix_jobs_state", jobs.c.state, jobs.c.not_before)
Index("ix_jobs_model", jobs.c.model, jobs.c.id)
