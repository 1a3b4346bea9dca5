"""Operations on runs, and what is logged to them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct
from sqlalchemy import Connection

from modelkeep.core.errors import Invalid
from modelkeep.protocols.mlflow import checks, shapes
from modelkeep.protocols.mlflow.experiments import Pair, Text, View
from modelkeep.protocols.mlflow.wire import Operation, Work, missing
from modelkeep.registry import datasets, logged, names, runs, search, tracking
from modelkeep.registry.changes import RUN_NAME, Begin, End, Log, Point, Row
from modelkeep.registry.datasets import Dataset, DatasetInput

Status = Literal["RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED"]
_LOGS = "INVALID_PARAMETER_VALUE"
"""The error code of a conflict while logging: a param changed, or the run was deleted."""


class Create(Struct, frozen=True):
    """createRun."""

    experiment_id: str = "0"
    user_id: str = ""
    run_name: str = ""
    start_time: int | None = None
    tags: list[Pair] = []


class ById(Struct, frozen=True):
    """A run; ``run_uuid`` is its id in old clients."""

    run_id: str = ""
    run_uuid: str = ""


class Update(Struct, frozen=True):
    """updateRun."""

    run_id: str = ""
    run_uuid: str = ""
    status: Status | None = None
    end_time: int | None = None
    run_name: str = ""


class Metric(Struct, frozen=True, gc=False):
    """One point of a metric; of a logged model too when it has a ``model_id``."""

    key: str
    value: float
    timestamp: int
    step: int = 0
    model_id: str = ""
    dataset_name: str = ""
    dataset_digest: str = ""


class LogMetric(Metric, frozen=True, gc=False):
    """logMetric."""

    run_id: str = ""
    run_uuid: str = ""


class LogParam(Struct, frozen=True):
    """logParam and setTag."""

    key: str
    value: str = ""
    run_id: str = ""
    run_uuid: str = ""


class DeleteTag(Struct, frozen=True):
    """deleteTag."""

    run_id: str
    key: str


class LogBatch(Struct, frozen=True):
    """logBatch."""

    run_id: str
    metrics: list[Metric] = []
    params: list[Pair] = []
    tags: list[Pair] = []


class LogModel(Struct, frozen=True):
    """logModel, of clients before MLflow 3."""

    run_id: str
    model_json: str = ""


class InputUse(Struct, frozen=True):
    """A dataset and the tags of its use."""

    dataset: Dataset
    tags: list[Pair] = []


class ModelUse(Struct, frozen=True):
    """A logged model that went in or came out."""

    model_id: str
    step: int = 0


class LogInputs(Struct, frozen=True):
    """logInputs."""

    run_id: str
    datasets: list[InputUse] = []
    models: list[ModelUse] = []


class LogOutputs(Struct, frozen=True):
    """logOutputs."""

    run_id: str
    models: list[ModelUse] = []


class Search(Struct, frozen=True):
    """searchRuns."""

    experiment_ids: list[str] = []
    filter: str = ""
    run_view_type: View = "ACTIVE_ONLY"
    max_results: int = 1000
    order_by: list[str] = []
    page_token: Text = ""


def id_of(asked: Any) -> str:
    """The run a request names. Raises ``Invalid``."""
    found: str = asked.run_id or asked.run_uuid
    if not found:
        raise missing("run_id")
    checks.run_id(found)
    return found


def _create(asked: Create, now: int) -> Work:
    experiment = checks.experiment_id(asked.experiment_id)
    for at, pair in enumerate(asked.tags):  # no more is asked of the tags a run begins with
        checks.length(f"tags[{at}].key", pair.key, checks.MAX_KEY)
    tags = {pair.key: pair.value for pair in asked.tags}
    tagged = tags.pop(RUN_NAME, "")
    if asked.run_name and tagged and tagged != asked.run_name:
        raise Invalid(
            "Both 'run_name' argument and 'mlflow.runName' tag are specified, but with different values"
            f" (run_name='{asked.run_name}', mlflow.runName='{tagged}')."
        )
    name = asked.run_name or tagged or names.fresh()
    start = now if asked.start_time is None else asked.start_time
    checks.whole("start_time", start)

    source = tags.get("mlflow.source.name", "")
    return Begin(experiment, name, start, {**tags, RUN_NAME: name}, user=asked.user_id, source=source)


def _begun(row: Row, work: Begin) -> dict[str, Any]:
    return {"run": shapes.fresh_run(row, work.tags)}


def _get(asked: ById, _: int) -> Work:
    run_id = id_of(asked)
    return lambda conn: {"run": shapes.runs(conn, [runs.find(conn, run_id)])[0]}


def _update(asked: Update, _: int) -> Work:
    run_id = id_of(asked)

    if asked.end_time is not None:
        checks.whole("end_time", asked.end_time)
    return End(run_id, asked.status, asked.end_time, asked.run_name or None)


def _ended(row: Row, _: End) -> dict[str, Any]:
    return {"run_info": shapes.run_info(row)}


def _stage(stage: str) -> Any:
    def run(asked: ById, now: int) -> Work:
        run_id = id_of(asked)
        return lambda conn: tracking.set_stage(conn, run_id, stage, now)

    return run


def _points(metrics: Sequence[Metric], path: str = "metrics[{}].") -> list[Point]:
    """Points of metrics, checked together; which one is at fault is looked for only when one is."""
    points = [(metric.key, metric.value, metric.timestamp, metric.step) for metric in metrics]
    try:
        for key in {point[0] for point in points}:
            checks.key(key, "name")
        _, _, stamps, steps = zip(*points, strict=True) if points else ((), (), (0,), (0,))
        checks.stamp("timestamp", min(stamps))
        checks.stamp("timestamp", max(stamps))
        checks.whole("step", min(steps))
        checks.whole("step", max(steps))
    except Invalid:
        for at, (key, _, ms, step) in enumerate(points):
            checks.key(key, f"{path.format(at)}name")
            checks.stamp(f"{path.format(at)}timestamp", ms)
            checks.whole(f"{path.format(at)}step", step)
        raise
    return points


def _params(given: Iterable[Pair]) -> dict[str, str]:
    found: dict[str, str] = {}
    for at, pair in enumerate(given):
        key, value = pair.key, pair.value
        checks.key(key, f"params[{at}].key")
        if len(value) > checks.MAX_PARAM:
            value = checks.cut(f"params[{at}].value", value, checks.MAX_PARAM)
        if key in found:
            raise Invalid(
                f"Duplicate parameter keys have been submitted: {[key]}. Please ensure the request contains only"
                " one param value per param key."
            )
        found[key] = value
    return found


def _tags(given: Iterable[Pair]) -> dict[str, str]:
    found = {}
    for at, pair in enumerate(given):
        key, value = pair.key, pair.value
        checks.key(key, f"tags[{at}].key")
        if len(value) > checks.MAX_TAG:
            value = checks.cut(f"tags[{at}].value", value, checks.MAX_TAG)
        found[key] = value
    return found


def _log_metric(asked: LogMetric, _: int) -> Work:
    return _log(id_of(asked), _points([asked], ""), {}, {}, [asked])


def _log_param(asked: LogParam, _: int) -> Work:
    return Log(id_of(asked), (), _params([Pair(asked.key, asked.value)]))


def _set_tag(asked: LogParam, _: int) -> Work:
    return Log(id_of(asked), (), {}, _tags([Pair(asked.key, asked.value)]))


def _log_batch(asked: LogBatch, _: int) -> Work:
    checks.run_id(asked.run_id)
    checks.count("metrics", len(asked.metrics), checks.MAX_METRICS)
    checks.count("params", len(asked.params), checks.MAX_PARAMS_TAGS)
    checks.count("tags", len(asked.tags), checks.MAX_PARAMS_TAGS)
    checks.count(
        "metrics, params, and tags",
        len(asked.metrics) + len(asked.params) + len(asked.tags),
        checks.MAX_BATCH,
    )
    return _log(asked.run_id, _points(asked.metrics), _params(asked.params), _tags(asked.tags), asked.metrics)


def _log(
    run_id: str, points: list[Point], params: dict[str, str], tags: dict[str, str], metrics: Sequence[Metric]
) -> Work:
    change = Log(run_id, points, params, tags)
    if not any([metric.model_id for metric in metrics]):  # noqa: C419 - a list is twice as fast
        return change

    def work(conn: Connection) -> None:
        change(conn)
        for metric in metrics:
            if metric.model_id:
                said = (metric.value, metric.timestamp, metric.step, metric.dataset_name, metric.dataset_digest)
                logged.log_metric(conn, metric.model_id, run_id, metric.key, *said)

    return work


def _delete_tag(asked: DeleteTag, _: int) -> Work:
    checks.run_id(asked.run_id)
    return lambda conn: tracking.delete_tag(conn, asked.run_id, asked.key)


def _log_model(asked: LogModel, _: int) -> Work:
    checks.run_id(asked.run_id)
    try:
        described = msgspec.json.decode(asked.model_json, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        raise Invalid("Malformed model info. \n model_json is not a JSON object") from None
    if not {"artifact_path", "flavors", "utc_time_created", "run_id"} <= set(described):
        raise Invalid("Model json is missing mandatory fields: artifact_path, flavors, utc_time_created, run_id")
    return lambda conn: logged.append_history(conn, asked.run_id, described)


def _log_inputs(asked: LogInputs, _: int) -> Work:
    checks.run_id(asked.run_id)
    checks.count("datasets", len(asked.datasets), 1000)
    given = []
    for at, use in enumerate(asked.datasets):
        if not use.dataset.name or not use.dataset.digest:
            raise Invalid("Dataset name and digest cannot be empty", path=f"datasets[{at}]")
        checks.length("name", use.dataset.name, 500)
        checks.length("digest", use.dataset.digest, 36)
        checks.length("source", use.dataset.source, 65_535)
        checks.length("schema", use.dataset.schema, 1_048_575)
        checks.length("profile", use.dataset.profile, 16_777_215)
        given.append(DatasetInput(use.dataset, {tag.key: tag.value for tag in use.tags}))

    def work(conn: Connection) -> dict[str, Any]:
        datasets.log_inputs(conn, asked.run_id, given)
        datasets.log_models(conn, asked.run_id, "input", {model.model_id: model.step for model in asked.models})
        return {}

    return work


def _log_outputs(asked: LogOutputs, _: int) -> Work:
    checks.run_id(asked.run_id)
    given = {model.model_id: model.step for model in asked.models}
    return lambda conn: datasets.log_models(conn, asked.run_id, "output", given)


def _search(asked: Search, _: int) -> Work:
    checks.page(asked.max_results, 50_000)
    within = [checks.experiment_id(text) for text in dict.fromkeys(asked.experiment_ids)]

    def work(conn: Connection) -> dict[str, Any]:
        rows, token = search.runs(
            conn,
            within,
            asked.filter,
            asked.order_by,
            asked.run_view_type,
            asked.max_results,
            asked.page_token,
        )
        return {"runs": shapes.runs(conn, rows), **({"next_page_token": token} if token else {})}

    return work


OPERATIONS = [
    Operation("POST", "runs/create", Create, _create, "write", shape=_begun),
    Operation("GET", "runs/get", ById, _get),
    Operation("POST", "runs/update", Update, _update, "write", _LOGS, _ended),
    Operation("POST", "runs/delete", ById, _stage("deleted"), "write"),
    Operation("POST", "runs/restore", ById, _stage("active"), "write"),
    Operation("POST", "runs/log-metric", LogMetric, _log_metric, "write", _LOGS),
    Operation("POST", "runs/log-parameter", LogParam, _log_param, "write", _LOGS),
    Operation("POST", "runs/set-tag", LogParam, _set_tag, "write", _LOGS),
    Operation("POST", "runs/delete-tag", DeleteTag, _delete_tag, "write", _LOGS),
    Operation("POST", "runs/log-batch", LogBatch, _log_batch, "write", _LOGS),
    Operation("POST", "runs/log-model", LogModel, _log_model, "write", _LOGS),
    Operation("POST", "runs/log-inputs", LogInputs, _log_inputs, "write", _LOGS),
    Operation("POST", "runs/outputs", LogOutputs, _log_outputs, "write", _LOGS),
    Operation("POST", "runs/search", Search, _search),
]
