"""What is under legal hold stays as it is for MLflow's own client: nothing that is there changes or goes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from modelkeep.lifecycle.keep import Keep
from modelkeep.registry import holds


def refused(act: Callable[[], Any], what: str = "") -> str:
    """An act that a hold refuses with 4xx; what it says."""
    with pytest.raises(MlflowException, match="legal hold") as caught:
        act()
    assert 400 <= caught.value.get_http_status_code() < 500
    assert what in str(caught.value)
    assert "case 7" in str(caught.value), "why it is held"
    return str(caught.value)


def hold(keep: Keep, kind: str, name: str) -> None:
    keep.db.write(lambda conn: holds.add(conn, kind, name, "case 7", now=time.time(), actor="ann"))


def release(keep: Keep, kind: str, name: str) -> None:
    keep.db.write(lambda conn: holds.release(conn, kind, name, "over", now=time.time(), actor="ann"))


def test_a_held_run_takes_more_and_changes_nothing(keep: Keep, client: MlflowClient) -> None:
    experiment = client.create_experiment("e")
    run = client.create_run(experiment, run_name="first").info.run_id
    client.set_tag(run, "a", "1")
    client.log_param(run, "p", "1")
    hold(keep, "run", run)
    refused(lambda: client.set_tag(run, "a", "2"), "'a' cannot be changed")
    refused(lambda: client.log_batch(run, tags=[RunTag("new", "x"), RunTag("a", "2")]), "'a'")
    refused(lambda: client.delete_tag(run, "a"))
    refused(lambda: client.update_run(run, name="second"), "name")
    refused(lambda: client.delete_run(run))
    refused(lambda: client.delete_experiment(experiment))
    client.set_tag(run, "a", "1")
    client.log_batch(run, [Metric("m", 1.0, 1, 0)], [Param("q", "1")], [RunTag("b", "1")])
    client.set_tag(run, "mlflow.note.content", "written once")
    refused(lambda: client.set_tag(run, "mlflow.note.content", "written twice"))
    client.set_terminated(run)
    refused(lambda: client.update_run(run, status="RUNNING"), "status")
    found = client.get_run(run)
    assert (found.info.run_name, found.info.status) == ("first", "FINISHED")
    told = {key: value for key, value in found.data.tags.items() if not key.startswith("mlflow.run")}
    assert told == {"a": "1", "b": "1", "mlflow.note.content": "written once"}
    assert (found.data.params, found.data.metrics) == ({"p": "1", "q": "1"}, {"m": 1.0})
    release(keep, "run", run)
    client.set_tag(run, "a", "2")
    client.update_run(run, name="second", status="RUNNING")
    client.delete_run(run)


def test_logs_that_come_together_are_refused_one_by_one(keep: Keep, client: MlflowClient) -> None:
    """The writer takes many at once; the ones beside a refused one are written."""
    from concurrent.futures import ThreadPoolExecutor

    experiment = client.create_experiment("e")
    runs = [client.create_run(experiment, tags={"a": "1"}).info.run_id for _ in range(8)]
    hold(keep, "run", runs[3])

    def log(run: str) -> str:
        try:
            client.log_batch(run, metrics=[Metric("m", 1.0, 1, 0)], tags=[RunTag("a", "2")])
        except MlflowException as error:
            return "held" if "legal hold" in str(error) else str(error)
        return "written"

    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(log, runs))
    assert said == ["held" if at == 3 else "written" for at in range(8)]
    assert [client.get_run(run).data.tags["a"] for run in runs] == ["1" if at == 3 else "2" for at in range(8)]


def test_a_held_version_keeps_its_texts_and_moves_between_stages(keep: Keep, client: MlflowClient) -> None:
    client.create_registered_model("m", tags={"of": "model"}, description="the model")
    client.create_model_version("m", "s3://bucket/model", tags={"a": "1"}, description="the version")
    hold(keep, "version", "m@1")
    refused(lambda: client.set_model_version_tag("m", "1", "a", "2"), "'a'")
    refused(lambda: client.delete_model_version_tag("m", "1", "a"))
    refused(lambda: client.update_model_version("m", "1", "another"), "description")
    refused(lambda: client.delete_model_version("m", "1"))
    refused(lambda: client.delete_registered_model("m"))
    client.set_model_version_tag("m", "1", "b", "1")
    client.update_registered_model("m", "what is held is the version")
    client.set_registered_model_alias("m", "champion", "1")
    client.transition_model_version_stage("m", "1", "Production")
    client.delete_registered_model_alias("m", "champion")
    release(keep, "version", "m@1")
    hold(keep, "model", "m")
    refused(lambda: client.update_registered_model("m", "another"), "description")
    refused(lambda: client.set_registered_model_tag("m", "of", "another"), "'of'")
    refused(lambda: client.delete_registered_model_tag("m", "of"))
    refused(lambda: client.update_model_version("m", "1", "another"), "description")
    client.set_registered_model_tag("m", "new", "1")
    release(keep, "model", "m")
    client.update_model_version("m", "1", "another")
    client.delete_registered_model("m")


@mlflow.trace(name="asked")
def asked(x: int) -> int:
    return x + 1


@pytest.mark.parametrize("kind", ["trace", "run", "experiment"])
def test_a_held_trace_stays(
    keep: Keep, address: str, client: MlflowClient, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")
    mlflow.set_tracking_uri(address)
    experiment = mlflow.set_experiment("traced").experiment_id
    with mlflow.start_run() as run:
        asked(1)
    held = str(mlflow.get_last_active_trace_id())
    asked(2)
    other = str(mlflow.get_last_active_trace_id())
    mlflow.set_trace_tag(held, "a", "1")
    said = mlflow.log_feedback(trace_id=held, name="right", value=True)
    name = {"trace": held, "run": run.info.run_id, "experiment": experiment}[kind]
    hold(keep, kind, name)
    refused(lambda: mlflow.set_trace_tag(held, "a", "2"), "'a'")
    refused(lambda: mlflow.delete_trace_tag(held, "a"))
    refused(lambda: mlflow.delete_assessment(trace_id=held, assessment_id=str(said.assessment_id)))
    refused(lambda: client.delete_traces(experiment, trace_ids=[other, held]))
    mlflow.set_trace_tag(held, "b", "1")
    gone = client.delete_traces(experiment, max_timestamp_millis=2**42, max_traces=10)
    assert gone == (0 if kind == "experiment" else 1)
    assert mlflow.get_trace(held) is not None
    release(keep, kind, name)
    mlflow.delete_assessment(trace_id=held, assessment_id=str(said.assessment_id))
    client.delete_traces(experiment, trace_ids=[held])
    assert mlflow.get_trace(held, flush=False) is None
