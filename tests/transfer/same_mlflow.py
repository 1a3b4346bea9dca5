"""Whether two tracking servers hold the same, asked with the real client of MLflow."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import ViewType


def runs(client: MlflowClient, experiment: str) -> list[Any]:
    """All runs, deleted ones too."""
    return client.search_runs([experiment], run_view_type=ViewType.ALL, max_results=1000)


def describe(uri: str, *, ids: bool = True) -> dict[str, Any]:
    """Everything a client can see; without ``ids``, only what a server that gives its own can keep."""
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(
        uri
    )  # where files are downloaded from; without, a database is made in the current folder
    try:
        return _describe(MlflowClient(uri, registry_uri=uri), ids=ids)
    finally:
        mlflow.set_tracking_uri(before)


def _describe(client: MlflowClient, *, ids: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    numbers = {}
    for experiment in client.search_experiments(view_type=ViewType.ALL):
        numbers[experiment.experiment_id] = experiment.name
        if not ids and experiment.lifecycle_stage == "deleted":
            continue
        about: dict[str, Any] = {"tags": _clean(experiment.tags), "stage": experiment.lifecycle_stage}
        if ids:
            about |= {"id": experiment.experiment_id, "made": experiment.creation_time}
        listed = [
            run for run in runs(client, experiment.experiment_id) if ids or run.info.lifecycle_stage == "active"
        ]
        about["runs"] = sorted((_run(client, run, ids) for run in listed), key=lambda run: run["name"])
        found[f"experiment {experiment.name}"] = about
    for model in client.search_registered_models():
        found[f"model {model.name}"] = _model(client, model, ids)
    if ids:
        wanted = list(numbers)
        found["logged models"] = sorted(
            (_logged(model) for model in client.search_logged_models(wanted)), key=lambda each: each["id"]
        )
        if not client.tracking_uri.startswith("file:"):
            found |= _told_by_databases(client)
        found["traces"] = [_trace(trace) for trace in client.search_traces(locations=wanted)]
    return found


def _run(client: MlflowClient, run: Any, ids: bool) -> dict[str, Any]:
    run = client.get_run(run.info.run_id)  # a search leaves out the models that went in
    info, data = run.info, run.data
    about: dict[str, Any] = {
        "name": info.run_name,
        "status": info.status,
        "start": info.start_time,
        "end": info.end_time,
        "params": dict(data.params),
        "tags": {
            key: value for key, value in _clean(data.tags).items() if ids or not key.startswith("mlflow.parent")
        },
        "last": {key: _number(value) for key, value in data.metrics.items()},
        "history": {
            key: sorted(
                (point.timestamp, point.step, _number(point.value))
                for point in client.get_metric_history(info.run_id, key)
            )
            for key in data.metrics
        },
        "datasets": sorted(
            (
                use.dataset.name,
                use.dataset.digest,
                use.dataset.source,
                tuple((tag.key, tag.value) for tag in use.tags),
            )
            for use in run.inputs.dataset_inputs
        ),
        "files": dict(_files(client, info.run_id)),
    }
    if ids:
        about |= {"id": info.run_id, "stage": info.lifecycle_stage, "user": info.user_id}
        about["models"] = [model.model_id for model in run.inputs.model_inputs]
        about["outputs"] = [(model.model_id, model.step) for model in run.outputs.model_outputs]
    return about


def _files(client: MlflowClient, run_id: str, folder: str = "") -> Iterator[tuple[str, bytes]]:
    for entry in client.list_artifacts(run_id, folder or None):
        if entry.is_dir:
            yield from _files(client, run_id, entry.path)
        else:
            with tempfile.TemporaryDirectory() as to:
                yield entry.path, Path(client.download_artifacts(run_id, entry.path, to)).read_bytes()


def _model(client: MlflowClient, model: Any, ids: bool) -> dict[str, Any]:
    versions = client.search_model_versions(f"name = '{model.name}'")
    return {
        "description": model.description or "",
        "tags": _clean(model.tags),
        "aliases": {alias: str(version) for alias, version in model.aliases.items()},
        "made": model.creation_timestamp if ids else 0,
        "versions": sorted(
            (
                str(version.version),
                version.description or "",
                version.current_stage,
                version.status,
                tuple(sorted(_clean(version.tags).items())),
                (version.run_id, version.creation_timestamp) if ids else (),
            )
            for version in versions
        ),
    }


def _logged(model: Any) -> dict[str, Any]:
    return {
        "id": model.model_id,
        "name": model.name,
        "params": model.params,
        "tags": model.tags,
        "status": str(model.status),
        "type": model.model_type,
        "run": model.source_run_id,
        "made": model.creation_timestamp,
        "metrics": sorted(
            (each.key, each.value, each.step, each.timestamp, each.dataset_name) for each in model.metrics or ()
        ),
    }


def _told_by_databases(client: MlflowClient) -> dict[str, Any]:
    """What MLflow keeps in no folder."""
    datasets = [_dataset(client, each) for each in client.search_datasets()]
    hooks = client.list_webhooks()
    return {
        "evaluation datasets": sorted(datasets, key=lambda each: str(each["id"])),
        "webhooks": sorted(
            (each.name, each.url, each.description or "", sorted(map(str, each.events)), each.creation_timestamp)
            for each in hooks
        ),
    }


def _dataset(client: MlflowClient, dataset: Any) -> dict[str, Any]:
    dataset = client.get_dataset(dataset.dataset_id)
    records = sorted((each.to_dict() for each in dataset.records), key=lambda each: str(each["dataset_record_id"]))
    return {
        "id": dataset.dataset_id,
        "name": dataset.name,
        "digest": dataset.digest,
        "schema": json.loads(dataset.schema or "{}"),
        "tags": dataset.tags,
        "times": (dataset.created_time, dataset.last_update_time),
        "experiments": sorted(dataset.experiment_ids),
        "records": records,
    }


def _trace(trace: Any) -> dict[str, Any]:
    info = trace.info
    return {
        "id": info.trace_id,
        "state": str(info.state),
        "time": info.request_time,
        "duration": info.execution_duration,
        "previews": (info.request_preview, info.response_preview),
        "tags": {key: value for key, value in info.tags.items() if key != "mlflow.artifactLocation"},
        "metadata": {
            key: json.loads(value) if key == "mlflow.trace.tokenUsage" else value
            for key, value in info.trace_metadata.items()
            if key != "mlflow.trace.infoFinalized"
        },
        "assessments": sorted((_assessment(each) for each in info.assessments), key=lambda each: each["name"]),
        "spans": sorted(
            (
                {name: value for name, value in span.to_dict().items() if name != "links"}
                for span in trace.data.spans
            ),
            key=lambda span: str(span["name"]),
        ),
    }


def _assessment(given: Any) -> dict[str, Any]:
    return {
        "name": given.name,
        "id": given.assessment_id,
        "value": getattr(given, "value", None),
        "source": (given.source.source_type, given.source.source_id),
        "made": given.create_time_ms,
        "rationale": given.rationale,
        "metadata": given.metadata or {},
    }


def _number(value: float) -> float | str:
    return "nan" if math.isnan(value) else value


def _clean(tags: dict[str, str]) -> dict[str, str]:
    """Without what a copy says of its origin."""
    return {key: value for key, value in tags.items() if not key.startswith("modelkeep.")}
