"""What the transfer tests begin with: experiments, runs and models made by the real client of MLflow."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_ENABLE_ASYNC_LOGGING", "false")

KEY = "T0vKjS5vXgXw0pJq8m3yq1nQm0o8mYw8c2l7bqk3v0s="
"""What MLflow encrypts the secrets of webhooks with; a Fernet key."""

os.environ.setdefault("MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY", KEY)
os.environ.setdefault("MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS", "true")  # so that no name is looked up

POINTS = 1500
"""Points of the longest history."""


def seed(tracking: str, folder: Path) -> dict[str, Any]:
    """Fill a tracking server or database; returns the ids of what was made.

    Holds NaN and infinities, negative steps, equal steps, unicode, deleted things, parents and children,
    empty artifacts, nested folders, datasets with context, logged models as input and output, aliases, stages.
    """
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(tracking)  # where its registry looks for models:/m-...
    try:
        return _seed(mlflow.MlflowClient(), tracking, folder)
    finally:
        mlflow.set_tracking_uri(before)


def _seed(client: Any, tracking: str, folder: Path) -> dict[str, Any]:
    made: dict[str, Any] = {"uri": tracking}
    made["work"] = client.create_experiment("Fünf Flüge", tags={"team": "a/b", "emoji": "✈"})
    made["gone"] = client.create_experiment("deleted one")
    _training(client, made, folder)
    _odd(client, made, folder)
    made["trace"] = _trace(client, made)
    if not tracking.startswith("file:"):  # folders hold neither
        _evaluation(client, made)
    client.delete_experiment(made["gone"])
    _models(client, made, folder)
    return made


def _training(client: Any, made: dict[str, Any], folder: Path) -> None:
    from mlflow.entities import (
        Dataset,
        DatasetInput,
        InputTag,
        LoggedModelInput,
        LoggedModelOutput,
        Metric,
        Param,
        RunTag,
    )

    run = client.create_run(made["work"], start_time=1_600_000_000_123, run_name="training", tags={"who": "Zoë"})
    made["run"] = run.info.run_id
    points = [Metric("loss", 1 / (step + 1), 1_600_000_000_000 + step, step) for step in range(POINTS)]
    for at in range(0, POINTS, 500):
        client.log_batch(made["run"], metrics=points[at : at + 500])
    client.log_batch(
        made["run"],
        metrics=[
            Metric("odd", math.nan, 5, 0),
            Metric("odd", math.inf, 6, 1),
            Metric("odd", -math.inf, 7, -2),
            Metric("odd", 1.5, 6, 1),
            Metric("final", math.nan, 1, 1),
        ],
        params=[Param("rate", "0.1"), Param("long", "x" * 5000), Param("empty", "")],
        tags=[RunTag("note", "line\nbreak"), RunTag("mlflow.note.content", "**bold**")],
    )
    dataset = Dataset(
        name="rows", digest="abc123", source_type="local", source='{"uri": "/rows"}', schema="{}", profile=None
    )
    context = InputTag("mlflow.data.context", "training")
    model = client.create_logged_model(
        made["work"],
        name="trees",
        source_run_id=made["run"],
        params={"depth": "3"},
        tags={"kind": "forest"},
        model_type="agent",
    )
    made["model_id"] = model.model_id
    client.log_metric(
        made["run"],
        "accuracy",
        0.75,
        timestamp=9,
        step=3,
        model_id=model.model_id,
        dataset_name="rows",
        dataset_digest="abc123",
    )
    client.log_inputs(
        made["run"], datasets=[DatasetInput(dataset, [context])], models=[LoggedModelInput(model.model_id)]
    )
    client.log_outputs(made["run"], [LoggedModelOutput(model.model_id, step=4)])
    weights = folder / "model" / "data"
    weights.mkdir(parents=True)
    (weights / "weights.bin").write_bytes(os.urandom(300_000))
    (weights.parent / "MLmodel").write_text("flavors: {}\n")
    client.log_model_artifacts(model.model_id, str(weights.parent))
    client.finalize_logged_model(model.model_id, "READY")
    client.log_artifacts(made["run"], str(weights.parent), "model")
    client.set_terminated(made["run"], end_time=1_600_000_100_456)


def _odd(client: Any, made: dict[str, Any], folder: Path) -> None:
    child = client.create_run(made["work"], tags={"mlflow.parentRunId": made["run"]}, run_name="child")
    made["child"] = child.info.run_id
    (folder / "empty.txt").write_bytes(b"")
    (folder / "päth with space.txt").write_text("grüße")
    client.log_artifact(made["child"], str(folder / "empty.txt"))
    client.log_artifact(made["child"], str(folder / "päth with space.txt"), "deep/er")
    client.set_terminated(made["child"], "FAILED")
    made["running"] = client.create_run("0", run_name="still going").info.run_id
    client.log_metric(made["running"], "x", 1.0, timestamp=1, step=0)
    made["deleted"] = client.create_run(made["work"]).info.run_id
    client.log_param(made["deleted"], "kept", "yes")
    client.delete_run(made["deleted"])
    made["of_gone"] = client.create_run(made["gone"]).info.run_id


def _trace(client: Any, made: dict[str, Any]) -> str:
    """A trace of two spans, one of which failed, with a tag, metadata, and assessments of both kinds."""
    import mlflow
    from mlflow.entities import AssessmentSource

    mlflow.set_experiment(experiment_id=made["work"])
    with mlflow.start_span("outer", attributes={"count": 3, "share": 0.5, "list": [1, "zwei"]}) as outer:
        outer.set_inputs({"question": "wieviel ü?"})
        try:
            with mlflow.start_span("inner", span_type="LLM") as inner:
                inner.set_attribute(
                    "mlflow.chat.tokenUsage", {"input_tokens": 7, "output_tokens": 2, "total_tokens": 9}
                )
                raise ValueError("it broke")
        except ValueError:
            outer.set_outputs({"answer": [1, 2]})
        mlflow.update_current_trace(tags={"colour": "grün"}, metadata={"build": "7"})
    mlflow.flush_trace_async_logging()
    trace_id = str(outer.trace_id)
    judge = AssessmentSource("LLM_JUDGE", "m")
    mlflow.log_feedback(
        trace_id=trace_id, name="good", value=False, rationale="no", source=judge, metadata={"a": "b"}
    )
    mlflow.log_feedback(trace_id=trace_id, name="score", value={"x": [1.5, "y"]})
    mlflow.log_expectation(trace_id=trace_id, name="wanted", value={"answer": 3})
    client.set_trace_tag(trace_id, "later", "yes")
    return trace_id


def _evaluation(client: Any, made: dict[str, Any]) -> None:
    """A dataset of two experiments with records of every form, one without any, and webhooks."""
    from mlflow.entities.webhook import WebhookEvent
    from mlflow.genai.datasets import create_dataset

    dataset = create_dataset("Fragen", experiment_id=[made["work"], "0"], tags={"kind": "grün"})
    dataset.merge_records(
        [
            {
                "inputs": {"question": "wieviel ü?"},
                "outputs": {"answer": 3},
                "expectations": {"expected": [1, None]},
                "tags": {"hard": "yes"},
            },
            {"inputs": {"question": "none"}},
            {
                "inputs": {"question": "traced"},
                "outputs": "text",
                "source": {"source_type": "TRACE", "source_data": {"trace_id": made["trace"]}},
            },
        ]
    )
    made["dataset"] = dataset.dataset_id
    create_dataset("empty", experiment_id=made["work"])
    made["hook"] = client.create_webhook(
        "told",
        "https://hooks.example.com/mlflow?x=1",
        [WebhookEvent.from_str("prompt_alias.deleted"), WebhookEvent.from_str("model_version_alias.deleted")],
        description="who is töld",
        secret="s3cret",
    ).webhook_id
    client.create_webhook("unsigned", "https://hooks.example.com/", ["model_version_tag.set"], status="DISABLED")


def _models(client: Any, made: dict[str, Any], folder: Path) -> None:
    del folder
    client.create_registered_model("flüge", tags={"owner": "x"}, description="late or not")
    for number in range(3):
        version = client.create_model_version(
            "flüge",
            f"runs:/{made['run']}/model" if number else f"models:/{made['model_id']}",
            run_id=made["run"],
            tags={"n": str(number)},
            description=f"v{number}",
            model_id=None if number else made["model_id"],
        )
        made["version"] = version.version
    client.delete_model_version("flüge", "2")
    client.set_registered_model_alias("flüge", "champion", "3")
    client.set_registered_model_alias("flüge", "first", "1")
    client.transition_model_version_stage("flüge", "1", "Production")
    client.create_registered_model("nothing yet")
