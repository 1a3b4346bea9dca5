"""Legal hold as MLflow's own client meets it: nothing that is there changes or goes; what is new may come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities import AssessmentSource, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from serving_mlflow import answering, home

from modelkeep.lifecycle.keep import Keep
from modelkeep.registry import holds

HUMAN = AssessmentSource(source_type="HUMAN", source_id="ann")


@pytest.fixture
def keep(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Keep]:
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")
    with home(url, tmp_path) as opened, answering(opened) as address:
        mlflow.set_tracking_uri(address)
        mlflow.set_registry_uri(address)
        mlflow.set_experiment("held")
        yield opened
        mlflow.set_tracking_uri(None)
        mlflow.set_registry_uri(None)


def hold(keep: Keep, kind: str, name: str) -> None:
    keep.db.write(lambda conn: holds.add(conn, kind, name, "case 4711", now=1.0, actor="ann"))


def release(keep: Keep, kind: str, name: str) -> None:
    keep.db.write(lambda conn: holds.release(conn, kind, name, "over", now=2.0))


def refused(kind: str, name: str, calls: dict[str, Callable[[], Any]]) -> None:
    """Each call is refused, and told by which hold, why, and how it ends."""
    for what, call in calls.items():
        with pytest.raises(MlflowException) as told:
            call()
        said = str(told.value)
        assert told.value.get_http_status_code() == 403, (what, said)
        assert told.value.error_code == "PERMISSION_DENIED", what
        for part in ("case 4711", f"modelkeep hold remove {kind} {name}"):
            assert part in said, (what, said)


def test_what_a_held_run_has_does_not_change(keep: Keep) -> None:
    client = mlflow.MlflowClient()
    with mlflow.start_run(run_name="first") as run:
        mlflow.set_tags({"a": "1", "mlflow.note.content": "seen"})
        mlflow.log_metric("m", 1.0, step=0)
        mlflow.log_param("p", "1")
        model = client.create_logged_model(run.info.experiment_id, source_run_id=run.info.run_id, tags={"a": "1"})
    mine, model_id = run.info.run_id, model.model_id
    other = client.create_run(run.info.experiment_id).info.run_id
    hold(keep, "run", mine)
    calls: dict[str, Callable[[], Any]] = {
        "tag": lambda: client.set_tag(mine, "a", "2"),
        "batch": lambda: client.log_batch(mine, [Metric("n", 1.0, 1, 0)], [Param("q", "1")], [RunTag("a", "2")]),
        "note": lambda: client.set_tag(mine, "mlflow.note.content", "nothing"),
        "name": lambda: client.update_run(mine, name="second"),
        "name's tag": lambda: client.set_tag(mine, "mlflow.runName", "second"),
        "state": lambda: client.update_run(mine, status="RUNNING"),
        "end": lambda: client.set_terminated(mine, "FINISHED", end_time=1),
        "tag's end": lambda: client.delete_tag(mine, "a"),
        "run's end": lambda: client.delete_run(mine),
        "model's tag": lambda: client.set_logged_model_tags(model_id, {"a": "2"}),
        "model's tag's end": lambda: client.delete_logged_model_tag(model_id, "a"),
        "model's end": lambda: client.delete_logged_model(model_id),
    }
    before = client.get_run(mine)
    refused("run", mine, calls)
    after = client.get_run(mine)
    assert (after.info.to_proto(), after.data.to_dictionary()) == (
        before.info.to_proto(),
        before.data.to_dictionary(),
    )
    with pytest.raises(MlflowException, match="not allowed"):
        client.log_param(mine, "p", "2")
    client.log_batch(mine, [Metric("m", 2.0, 1, 1)], tags=[RunTag("a", "1"), RunTag("b", "1")])
    assert len(client.get_metric_history(mine, "m")) == 2
    refused("run", mine, {"what came under hold": lambda: client.set_tag(mine, "b", "2")})
    client.set_tag(other, "a", "1")
    client.set_tag(other, "a", "2")
    release(keep, "run", mine)
    for call in calls.values():
        if call not in (calls["run's end"], calls["tag's end"]):
            call()


def test_a_held_run_may_end(keep: Keep) -> None:
    client = mlflow.MlflowClient()
    with mlflow.start_run() as run:
        hold(keep, "run", run.info.run_id)
        mlflow.log_metric("m", 1.0)
        mlflow.set_tag("new", "1")
    assert client.get_run(run.info.run_id).info.status == "FINISHED"


def test_what_a_held_version_has_does_not_change(keep: Keep) -> None:
    client = mlflow.MlflowClient()
    client.create_registered_model("m", tags={"a": "1"}, description="seen")
    client.create_model_version("m", "s3://x/y", tags={"a": "1"}, description="seen")
    client.create_model_version("m", "s3://x/z", description="seen")
    hold(keep, "version", "m@1")
    refused(
        *("version", "m@1"),
        {
            "tag": lambda: client.set_model_version_tag("m", "1", "a", "2"),
            "tag's end": lambda: client.delete_model_version_tag("m", "1", "a"),
            "description": lambda: client.update_model_version("m", "1", "nothing"),
            "version's end": lambda: client.delete_model_version("m", "1"),
            "model's end": lambda: client.delete_registered_model("m"),
            "model's name": lambda: client.rename_registered_model("m", "n"),
        },
    )
    client.set_model_version_tag("m", "1", "new", "1")
    client.update_model_version("m", "2", "other")
    client.update_registered_model("m", "of the model")
    client.set_registered_model_alias("m", "best", "1")
    client.set_registered_model_alias("m", "best", "2")
    client.delete_registered_model_alias("m", "best")
    client.transition_model_version_stage("m", "1", "Archived")
    release(keep, "version", "m@1")
    hold(keep, "model", "m")
    refused(
        *("model", "m"),
        {
            "tag": lambda: client.set_registered_model_tag("m", "a", "2"),
            "tag's end": lambda: client.delete_registered_model_tag("m", "a"),
            "description": lambda: client.update_registered_model("m", "nothing"),
            "its version's": lambda: client.update_model_version("m", "2", "nothing"),
        },
    )


@pytest.mark.parametrize("kind", ["run", "trace", "experiment"])
def test_a_held_trace_stays(keep: Keep, kind: str) -> None:
    client = mlflow.MlflowClient()

    @mlflow.trace
    def work() -> int:
        return 1

    def made() -> str:
        work()
        found = mlflow.get_last_active_trace_id()
        assert found is not None
        return found

    with mlflow.start_run() as run:
        mine = made()
    other = made()
    number = run.info.experiment_id
    client.set_trace_tag(mine, "a", "1")
    said = mlflow.log_feedback(trace_id=mine, name="good", value=True, source=HUMAN).assessment_id
    assert said is not None
    name = {"run": run.info.run_id, "trace": mine, "experiment": number}[kind]
    hold(keep, kind, name)
    refused(
        *(kind, name),
        {
            "tag": lambda: client.set_trace_tag(mine, "a", "2"),
            "tag's end": lambda: client.delete_trace_tag(mine, "a"),
            "assessment's end": lambda: mlflow.delete_assessment(mine, said),
            "assessment": lambda: mlflow.override_feedback(trace_id=mine, assessment_id=said, value=False),
            "end": lambda: client.delete_traces(number, trace_ids=[other, mine]),
            "experiment": lambda: client.delete_experiment(number),
        },
    )
    client.set_trace_tag(mine, "new", "1")
    gone = client.delete_traces(number, max_timestamp_millis=2**52, max_traces=10)
    assert gone == (0 if kind == "experiment" else 1)
    release(keep, kind, name)
    assert client.delete_traces(number, max_timestamp_millis=2**52, max_traces=10) == 2 - gone
