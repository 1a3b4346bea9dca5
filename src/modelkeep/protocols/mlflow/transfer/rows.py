"""Rows of MLflow's tables in the form that travels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from modelkeep.protocols.mlflow.transfer.records import LoggedModel, Model, Run, Version, plain
from modelkeep.registry.datasets import Dataset, DatasetInput

Rows = list[dict[str, Any]]
Lookup = Callable[..., dict[Any, Rows]]
"""(table, column, values, **equal) -> rows by that column; none when the table is not there."""

_STATUSES = {0: "UNSPECIFIED", 1: "PENDING", 2: "READY", 3: "UPLOAD_FAILED"}


def runs(rows: Rows, look: Lookup) -> list[Run]:
    """Rows of ``runs``."""
    ids = [row["run_uuid"] for row in rows]
    params, tags, latest = (look(name, "run_uuid", ids) for name in ("params", "tags", "latest_metrics"))
    datasets, models = _inputs(ids, look)
    return [
        Run(
            run_id=row["run_uuid"],
            experiment=int(row["experiment_id"]),
            name=row["name"] or "",
            status=row["status"] or "FINISHED",
            lifecycle_stage=row["lifecycle_stage"] or "active",
            artifact_uri=row["artifact_uri"] or "",
            start_ms=row["start_time"] or 0,
            end_ms=row["end_time"] or None,
            deleted_ms=row["deleted_time"],
            user_id=row["user_id"] or "",
            source_type=row["source_type"] or "LOCAL",
            source_name=row["source_name"] or "",
            source_version=row["source_version"] or "",
            entry_point_name=row["entry_point_name"] or "",
            params=texts(params.get(row["run_uuid"], ())),
            tags=texts(tags.get(row["run_uuid"], ())),
            latest=sorted(
                (each["key"], None if each["is_nan"] else each["value"], each["timestamp"] or 0, each["step"])
                for each in latest.get(row["run_uuid"], ())
            ),
            datasets=datasets.get(row["run_uuid"], []),
            models=sorted(models.get(row["run_uuid"], [])),
        )
        for row in rows
    ]


def _inputs(
    ids: list[str], look: Lookup
) -> tuple[dict[str, list[DatasetInput]], dict[str, list[tuple[str, str, int]]]]:
    uses: dict[str, list[dict[str, Any]]] = {}
    models: dict[str, list[tuple[str, str, int]]] = {}
    for kind in ("input", "output"):
        for run, rows in look("inputs", "source_id", ids, source_type=f"RUN_{kind.upper()}").items():
            models.setdefault(run, []).extend((kind, row["destination_id"], row.get("step") or 0) for row in rows)
    for run, rows in look("inputs", "destination_id", ids, destination_type="RUN", source_type="DATASET").items():
        uses[run] = rows
    flat = [row for rows in uses.values() for row in rows]
    known = look("datasets", "dataset_uuid", {row["source_id"] for row in flat})
    tags = look("input_tags", "input_uuid", [row["input_uuid"] for row in flat])
    return {
        run: [
            DatasetInput(
                _dataset(known[row["source_id"]][0]),
                {tag["name"]: tag["value"] for tag in tags.get(row["input_uuid"], ())},
            )
            for row in sorted(rows, key=lambda row: str(row["source_id"]))
            if row["source_id"] in known
        ]
        for run, rows in uses.items()
    }, models


def logged_models(rows: Rows, look: Lookup) -> list[LoggedModel]:
    """Rows of ``logged_models``."""
    ids = [row["model_id"] for row in rows]
    params = look("logged_model_params", "model_id", ids)
    tags = look("logged_model_tags", "model_id", ids)
    metrics = look("logged_model_metrics", "model_id", ids)
    return [
        LoggedModel(
            model_id=row["model_id"],
            experiment=int(row["experiment_id"]),
            name=row["name"],
            status=f"LOGGED_MODEL_{_STATUSES.get(row['status'], 'UNSPECIFIED')}",
            lifecycle_stage=row["lifecycle_stage"] or "active",
            artifact_uri=row["artifact_location"] or "",
            created_ms=row["creation_timestamp_ms"],
            updated_ms=row["last_updated_timestamp_ms"],
            model_type=row["model_type"] or "",
            source_run_id=row["source_run_id"] or "",
            status_message=row["status_message"] or "",
            params={each["param_key"]: each["param_value"] for each in params.get(row["model_id"], ())},
            tags={each["tag_key"]: each["tag_value"] for each in tags.get(row["model_id"], ())},
            metrics=[
                (
                    each["metric_name"],
                    each["run_id"],
                    each["dataset_name"] or "",
                    each["dataset_digest"] or "",
                    each["metric_timestamp_ms"],
                    each["metric_step"],
                    each["metric_value"],
                )
                for each in metrics.get(row["model_id"], ())
            ],
        )
        for row in rows
    ]


def models(rows: Rows, look: Lookup) -> list[Model]:
    """Rows of ``registered_models``."""
    names = [row["name"] for row in rows]
    versions, tags, of_versions, aliases = (
        look(table, "name", names)
        for table in (
            "model_versions",
            "registered_model_tags",
            "model_version_tags",
            "registered_model_aliases",
        )
    )
    return [
        Model(
            name=row["name"],
            created_ms=row["creation_time"] or 0,
            updated_ms=row["last_updated_time"] or 0,
            description=row["description"] or "",
            tags=texts(tags.get(row["name"], ())),
            aliases={each["alias"]: int(each["version"]) for each in aliases.get(row["name"], ())},
            versions=_versions(versions.get(row["name"], ()), of_versions.get(row["name"], ())),
        )
        for row in rows
    ]


def _versions(rows: Iterable[dict[str, Any]], tags: Iterable[dict[str, Any]]) -> list[Version]:
    by_version: dict[int, list[dict[str, Any]]] = {}
    for tag in tags:
        by_version.setdefault(int(tag["version"]), []).append(tag)
    return [
        Version(
            version=int(row["version"]),
            created_ms=row["creation_time"] or 0,
            updated_ms=row["last_updated_time"] or 0,
            source=row["source"] or "",
            location=row.get("storage_location") or "",
            run_id=row["run_id"] or "",
            run_link=row["run_link"] or "",
            description=row["description"] or "",
            user_id=row["user_id"] or "",
            stage=row["current_stage"] or "None",
            status=row["status"] or "READY",
            status_message=row["status_message"] or "",
            tags=texts(by_version.get(int(row["version"]), ())),
        )
        for row in sorted(rows, key=lambda row: int(row["version"]))
        if row["current_stage"]
        != "Deleted_Internal"  # MLflow keeps an emptied row, so that numbers are not used again
    ]


def _dataset(row: Mapping[str, Any]) -> Dataset:
    return Dataset(
        name=row["name"],
        digest=row["digest"],
        source_type=row["dataset_source_type"],
        source=row["dataset_source"],
        schema=row["dataset_schema"] or "",
        profile=row["dataset_profile"] or "",
    )


def texts(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Values by key."""
    return {row["key"]: plain(row["value"] or "") for row in sorted(rows, key=lambda row: str(row["key"]))}
