"""MLflow's JSON in the form that travels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from modelkeep.protocols.mlflow.transfer.records import (
    Experiment,
    LoggedModel,
    Model,
    ModelPoint,
    Point,
    Run,
    Version,
    plain,
)
from modelkeep.registry.datasets import Dataset, DatasetInput

_LARGEST = 1.7976931348623157e308  # what MLflow's store keeps of an infinity


def experiment(given: Mapping[str, Any]) -> Experiment:
    """``mlflow.Experiment``."""
    created = int(given.get("creation_time", 0))
    return Experiment(
        id=int(given["experiment_id"]),
        name=given["name"],
        artifact_location=given.get("artifact_location", ""),
        lifecycle_stage=given.get("lifecycle_stage", "active"),
        created_ms=created,
        updated_ms=int(given.get("last_update_time", created)),
        tags=_pairs(given.get("tags", ())),
    )


def run(given: Mapping[str, Any]) -> Run:
    """``mlflow.Run``."""
    info, data = given["info"], given.get("data", {})
    inputs, outputs = given.get("inputs", {}), given.get("outputs", {})
    tags = _pairs(data.get("tags", ()))
    end = int(info.get("end_time", 0))
    latest = (point("", each) for each in data.get("metrics", ()))
    models = [("input", each["model_id"], 0) for each in inputs.get("model_inputs", ())]
    models += [("output", each["model_id"], int(each.get("step", 0))) for each in outputs.get("model_outputs", ())]
    return Run(
        run_id=info["run_id"],
        experiment=int(info["experiment_id"]),
        name=info.get("run_name", "") or tags.get("mlflow.runName", ""),
        status=info.get("status", "FINISHED"),
        lifecycle_stage=info.get("lifecycle_stage", "active"),
        artifact_uri=info.get("artifact_uri", ""),
        start_ms=int(info.get("start_time", 0)),
        end_ms=end or None,
        user_id=info.get("user_id", ""),
        source_type=tags.get("mlflow.source.type", "LOCAL"),
        source_name=tags.get("mlflow.source.name", ""),
        params=_pairs(data.get("params", ())),
        tags=tags,
        latest=sorted(((key, value, ms, step) for _, key, ms, step, value in latest), key=lambda each: each[0]),
        datasets=[_use(each) for each in inputs.get("dataset_inputs", ())],
        models=sorted(models),
    )


def point(run_id: str, given: Mapping[str, Any]) -> Point:
    """``mlflow.Metric`` of a run."""
    return run_id, given["key"], int(given.get("timestamp", 0)), int(given.get("step", 0)), _value(given)


def logged_model(given: Mapping[str, Any]) -> LoggedModel:
    """``mlflow.LoggedModel``."""
    info, data = given["info"], given.get("data", {})
    return LoggedModel(
        model_id=info["model_id"],
        experiment=int(info["experiment_id"]),
        name=info.get("name", ""),
        status=info.get("status", "LOGGED_MODEL_READY"),
        lifecycle_stage="active",
        artifact_uri=info.get("artifact_uri", ""),
        created_ms=int(info.get("creation_timestamp_ms", 0)),
        updated_ms=int(info.get("last_updated_timestamp_ms", 0)),
        model_type=info.get("model_type", ""),
        source_run_id=info.get("source_run_id", ""),
        status_message=info.get("status_message", ""),
        params=_pairs(data.get("params", ())),
        tags=_pairs(info.get("tags", ())),
        metrics=[_model_point(each) for each in data.get("metrics", ())],
    )


def model(given: Mapping[str, Any], versions: Sequence[Mapping[str, Any]]) -> Model:
    """``mlflow.RegisteredModel`` and its ``mlflow.ModelVersion``."""
    created = int(given.get("creation_timestamp", 0))
    return Model(
        name=given["name"],
        created_ms=created,
        updated_ms=int(given.get("last_updated_timestamp", created)),
        description=given.get("description", ""),
        tags=_pairs(given.get("tags", ())),
        aliases={each["alias"]: int(each["version"]) for each in given.get("aliases", ())},
        versions=[_version(each) for each in sorted(versions, key=lambda each: int(each["version"]))],
    )


def _version(given: Mapping[str, Any]) -> Version:
    created = int(given.get("creation_timestamp", 0))
    return Version(
        version=int(given["version"]),
        created_ms=created,
        updated_ms=int(given.get("last_updated_timestamp", created)),
        source=given.get("source", ""),
        run_id=given.get("run_id", ""),
        run_link=given.get("run_link", ""),
        description=given.get("description", ""),
        user_id=given.get("user_id", ""),
        stage=given.get("current_stage", "None"),
        status=given.get("status", "READY"),
        status_message=given.get("status_message", ""),
        tags=_pairs(given.get("tags", ())),
    )


def _model_point(given: Mapping[str, Any]) -> ModelPoint:
    return (
        given["key"],
        given.get("run_id", ""),
        given.get("dataset_name", ""),
        given.get("dataset_digest", ""),
        int(given.get("timestamp", 0)),
        int(given.get("step", 0)),
        _value(given),
    )


def _use(given: Mapping[str, Any]) -> DatasetInput:
    said = given["dataset"]
    described = Dataset(**{name: said.get(name) or "" for name in Dataset.__struct_fields__})
    return DatasetInput(described, _pairs(given.get("tags", ())))


def _value(given: Mapping[str, Any]) -> float | None:
    """A number, or one of the words JSON has none for."""
    value = float(given.get("value", 0.0))
    if math.isnan(value):
        return None
    return max(-_LARGEST, min(_LARGEST, value))


def _pairs(given: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    return {each["key"]: plain(each.get("value", "")) for each in sorted(given, key=lambda each: str(each["key"]))}
