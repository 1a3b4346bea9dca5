"""Tables of what MLflow's tracking adds to runs: datasets that went in, and logged models that came out.

Units are those of ``tables``: columns ending in ``_ms`` are whole milliseconds since 1970 UTC.
"""

from __future__ import annotations

from sqlalchemy import Column as _Column
from sqlalchemy import Double, Index, SmallInteger, Table, UniqueConstraint

from modelkeep.store.columns import metadata, values
from modelkeep.store.columns import number as _number
from modelkeep.store.columns import of as _of
from modelkeep.store.columns import row_id as _id
from modelkeep.store.columns import text as _text

datasets = Table(
    "datasets",
    metadata,
    _id(),
    _of("experiments", "experiment"),
    _text("name"),
    _text("digest"),
    _text("source_type", ""),
    _text("source", ""),
    _text("schema", ""),
    _text("profile", ""),
    UniqueConstraint("experiment", "name", "digest"),
)

run_datasets = Table(
    "run_datasets",
    metadata,
    _of("runs", "run", primary_key=True),
    _of("datasets", "dataset", primary_key=True),
    _text("context", ""),  # the tag mlflow.data.context, for searches
    _text("tags", "{}"),
    sqlite_with_rowid=False,
)
Index("ix_run_datasets_dataset", run_datasets.c.dataset)

run_models = Table(
    "run_models",
    metadata,
    _of("runs", "run", primary_key=True),
    _text("kind", primary_key=True),  # input, output
    _text("model_id", primary_key=True),
    _number("step", 0),
    sqlite_with_rowid=False,
)

logged_models = Table(
    "logged_models",
    metadata,
    _id(),
    _text("model_id", unique=True),
    _of("experiments", "experiment"),
    _text("name"),
    _text("model_type", ""),
    _text("source_run_id", ""),
    _text("status", "LOGGED_MODEL_PENDING"),
    _text("status_message", ""),
    _text("artifact_uri", ""),
    _text("lifecycle_stage", "active"),
    _number("created_ms"),
    _number("updated_ms"),
)
Index("ix_logged_models_recent", logged_models.c.experiment, logged_models.c.created_ms, logged_models.c.model_id)

logged_model_params = values("logged_model_params", "logged_models", "model")
logged_model_tags = values("logged_model_tags", "logged_models", "model")

logged_model_metrics = Table(
    "logged_model_metrics",
    metadata,
    _of("logged_models", "model", primary_key=True),
    _text("key", primary_key=True),
    _text("run_id", primary_key=True),
    _text("dataset_name", "", primary_key=True),
    _text("dataset_digest", "", primary_key=True),
    _number("timestamp_ms", primary_key=True, autoincrement=False),
    _number("step", primary_key=True, autoincrement=False),
    _Column("value", Double, primary_key=True, autoincrement=False),  # 0 where is_nan
    _number("is_nan", 0, SmallInteger, primary_key=True, autoincrement=False),
    sqlite_with_rowid=False,
)

logged_model_artifacts = Table(
    "logged_model_artifacts",
    metadata,
    _of("logged_models", "model", primary_key=True),
    _text("path", primary_key=True),
    _text("digest"),
    _number("size"),
    sqlite_with_rowid=False,
)
