"""MLflow's own client against the tracking door: experiments, runs, what is logged."""

from __future__ import annotations

import math
import threading
from typing import Any

import httpx
import mlflow
import pytest
from mlflow.entities import Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException


def refused(code: str, words: str = "") -> Any:
    return pytest.raises(MlflowException, match=words or None, check=lambda error: error.error_code == code)


def test_the_client_shakes_hands_under_both_roots(address: str) -> None:
    assert httpx.get(f"{address}/health").text == "OK"
    assert httpx.get(f"{address}/version").status_code == 200
    for root in ("api", "ajax-api"):
        said = httpx.get(f"{address}/{root}/3.0/mlflow/server-info").json()
        assert said["workspaces_enabled"] is False
        got = httpx.get(f"{address}/{root}/2.0/mlflow/experiments/get", params={"experiment_id": "0"}).json()
        assert got["experiment"]["name"] == "Default"


def test_an_experiment_lives(client: Any) -> None:
    made = client.create_experiment("péché/1", tags={"team": "ü"})
    assert client.get_experiment(made).name == "péché/1"
    assert client.get_experiment_by_name("péché/1").tags == {"team": "ü"}
    assert client.get_experiment(made).artifact_location == f"mlflow-artifacts:/{made}"
    assert client.get_experiment_by_name("none") is None
    with refused("RESOURCE_ALREADY_EXISTS", "already exists"):
        client.create_experiment("péché/1")
    client.rename_experiment(made, "renamed")
    client.set_experiment_tag(made, "team", "b")
    client.set_experiment_tag(made, "more", "c")
    client.delete_experiment_tag(made, "more")
    run = client.create_run(made).info.run_id
    client.delete_experiment(made)
    found = client.get_experiment(made)
    assert (found.name, found.lifecycle_stage, found.tags) == ("renamed", "deleted", {"team": "b"})
    assert client.get_run(run).info.lifecycle_stage == "deleted"
    with refused("INVALID_PARAMETER_VALUE", "active"):
        client.create_run(made)
    with refused("RESOURCE_ALREADY_EXISTS"):
        client.create_experiment("renamed")
    client.restore_experiment(made)
    assert client.get_run(run).info.lifecycle_stage == "active"
    with refused("RESOURCE_DOES_NOT_EXIST", "No Experiment with id=999 exists"):
        client.get_experiment("999")


def test_a_run_lives(client: Any) -> None:
    made = client.create_experiment("e")
    run = client.create_run(made, start_time=1234, tags={"a": "1", "mlflow.user": "ann"}, run_name="first")
    run_id = run.info.run_id
    assert (run.info.start_time, run.info.run_name, run.info.status) == (1234, "first", "RUNNING")
    assert run.data.tags["mlflow.runName"] == "first"
    assert run.info.artifact_uri == f"mlflow-artifacts:/{made}/{run_id}/artifacts"
    client.log_param(run_id, "depth", 3)
    client.log_param(run_id, "depth", 3)
    with refused("INVALID_PARAMETER_VALUE", "Changing param values is not allowed"):
        client.log_param(run_id, "depth", 4)
    client.set_tag(run_id, "mlflow.runName", "second")
    client.set_tag(run_id, "gone", "x")
    client.delete_tag(run_id, "gone")
    with refused("RESOURCE_DOES_NOT_EXIST", "No tag with name: gone"):
        client.delete_tag(run_id, "gone")
    client.set_terminated(run_id, "FAILED", end_time=5678)
    found = client.get_run(run_id)
    assert (found.info.run_name, found.info.status, found.info.end_time) == ("second", "FAILED", 5678)
    assert found.data.params == {"depth": "3"}
    assert "gone" not in found.data.tags
    client.update_run(run_id, name="third")
    assert client.get_run(run_id).data.tags["mlflow.runName"] == "third"
    client.delete_run(run_id)
    with refused("INVALID_PARAMETER_VALUE", "must be in the 'active' state"):
        client.log_metric(run_id, "m", 1)
    assert client.search_runs([made], run_view_type=ViewType.DELETED_ONLY)[0].info.run_id == run_id
    client.restore_run(run_id)
    client.log_metric(run_id, "m", 1)
    with refused("RESOURCE_DOES_NOT_EXIST", "Run with id=abc not found"):
        client.get_run("abc")


def test_metrics_keep_their_history_and_their_last_value(client: Any) -> None:
    run = client.create_run("0").info.run_id
    for step, value in ((0, 1.0), (2, 3.0), (1, 2.0), (-5, 9.0)):
        client.log_metric(run, "loss", value, timestamp=1000 + step, step=step)
    assert client.get_run(run).data.metrics == {"loss": 3.0}
    client.log_metric(run, "odd", math.nan)
    client.log_metric(run, "high", math.inf)
    client.log_metric(run, "low", -math.inf)
    found = client.get_run(run).data.metrics
    assert math.isnan(found["odd"]) and (found["high"], found["low"]) == (math.inf, -math.inf)
    history = client.get_metric_history(run, "loss")
    assert [(point.step, point.value) for point in history] == [(-5, 9.0), (0, 1.0), (1, 2.0), (2, 3.0)]
    assert math.isnan(client.get_metric_history(run, "odd")[0].value)


def test_a_history_comes_in_pages(client: Any, http: httpx.Client) -> None:
    run = client.create_run("0").info.run_id
    for first in range(0, 2500, 1000):
        points = [Metric("m", at / 7, 5, at) for at in range(first, min(first + 1000, 2500))]
        client.log_batch(run, metrics=points)
    seen: list[int] = []
    token = ""
    while True:
        asked = {"run_id": run, "metric_key": "m", "max_results": 700, "page_token": token}
        page = http.get("metrics/get-history", params=asked).json()
        seen += [point["step"] for point in page["metrics"]]
        token = page.get("next_page_token", "")
        if not token:
            break
    assert seen == list(range(2500))
    asked = {"run_ids": [run], "metric_key": "m", "max_results": 10}
    sampled = http.get("metrics/get-history-bulk-interval", params=asked).json()["metrics"]
    assert (len(sampled), sampled[0]["step"], sampled[-1]["step"]) == (10, 0, 2499)
    assert {point["run_id"] for point in sampled} == {run}


def test_a_batch_is_all_or_nothing_and_may_be_repeated(client: Any) -> None:
    run = client.create_run("0").info.run_id
    metrics = [Metric("m", at, 10, at) for at in range(1000)]
    params = [Param("long", "v" * 6000)]
    client.log_batch(run, metrics, params, [])
    client.log_batch(run, metrics, params, [])
    assert len(client.get_metric_history(run, "m")) == 1000
    client.log_batch(run, [], [Param("a", "1")], [RunTag("t", "x" * 8000)])
    with refused("INVALID_PARAMETER_VALUE", "Changing param values"):
        client.log_batch(run, [Metric("n", 1, 1, 1)], [Param("b", "1"), Param("a", "2")], [])
    found = client.get_run(run).data
    assert (found.params["a"], found.metrics, len(found.tags["t"])) == ("1", {"m": 999.0}, 8000)
    assert set(found.params) == {"a", "long"}


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("runs/log-batch", {"metrics": [{"key": "m", "value": 1, "timestamp": 1}] * 1001}, "at most 1000 metrics"),
        (
            "runs/log-batch",
            {"params": [{"key": f"p{at}", "value": ""} for at in range(101)]},
            "at most 100 params",
        ),
        ("runs/log-batch", {"tags": [{"key": f"p{at}", "value": ""} for at in range(101)]}, "at most 100 tags"),
        ("runs/log-batch", {"params": [{"key": "p", "value": "1"}] * 2}, r"submitted: ['p']. Please ensure"),
        ("runs/set-tag", {"key": "p" * 251, "value": "v"}, "250"),
        ("runs/log-metric", {"key": "../m", "value": 1, "timestamp": 1}, "Invalid value"),
        ("runs/log-metric", {"key": "m#", "value": 1, "timestamp": 1}, "Names may only contain"),
        ("runs/log-metric", {"key": "m", "value": "high", "timestamp": 1}, "value"),
        ("runs/log-metric", {"key": "m", "value": 1, "timestamp": -1}, "timestamp"),
        ("runs/log-metric", {"key": "m", "value": 1, "timestamp": 10**19}, "timestamp"),
        ("runs/log-metric", {"key": "m", "timestamp": 1}, "Missing value for required parameter 'value'"),
        ("runs/log-metric", {"key": "", "value": 1, "timestamp": 1}, "key name must be provided"),
        ("runs/update", {"status": "ASLEEP"}, "status"),
    ],
)
def test_what_does_not_fit_is_refused(light: str, path: str, body: dict[str, Any], words: str) -> None:
    with httpx.Client(base_url=f"{light}/api/2.0/mlflow") as http:
        run = http.post("runs/create", json={"experiment_id": "0"}).json()["run"]["info"]["run_id"]
        answer = http.post(path, json={"run_id": run, **body})
        assert answer.status_code == 400
        assert answer.json()["error_code"] == "INVALID_PARAMETER_VALUE"
        assert words in answer.json()["message"]
        assert http.get("runs/get", params={"run_id": run}).json()["run"]["data"]["metrics"] == []


def test_long_values_are_cut(client: Any) -> None:
    run = client.create_run("0", tags={"begun": "t" * 9000}).info.run_id
    client.log_param(run, "a", "ü" * 6001)
    client.log_param(run, "a", "ü" * 6002)  # the same when it is cut
    client.set_tag(run, "b", "v" * 8001)
    client.log_batch(run, [], [Param("c", "v" * 6001)], [RunTag("d", "v" * 8001)])
    found = client.get_run(run).data
    assert found.params == {"a": "ü" * 6000, "c": "v" * 6000}
    assert [len(found.tags[key]) for key in ("begun", "b", "d")] == [9000, 8000, 8000]


def test_long_values_are_refused_when_the_environment_says_so(light: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRUNCATE_LONG_VALUES", "False")
    with httpx.Client(base_url=f"{light}/api/2.0/mlflow") as http:
        run = http.post("runs/create", json={"experiment_id": "0"}).json()["run"]["info"]["run_id"]
        for path, longest in (("runs/log-parameter", 6000), ("runs/set-tag", 8000)):
            body = {"run_id": run, "key": "k", "value": "v" * longest}
            assert http.post(path, json=body).status_code == 200
            answer = http.post(path, json={**body, "value": "v" * (longest + 1)})
            assert (answer.status_code, answer.json()["error_code"]) == (400, "INVALID_PARAMETER_VALUE")
            assert str(longest) in answer.json()["message"]


def test_requests_may_be_written_as_protobuf_writes_them(light: str) -> None:
    with httpx.Client(base_url=f"{light}/ajax-api/2.0/mlflow", headers={"x-mlflow-workspace": "default"}) as http:
        run = http.post("runs/create", json={"experiment_id": "0", "tags": None, "odd": {}}).json()["run"]
        run_id = run["info"]["run_id"]
        body = {"run_uuid": run_id, "key": "m", "value": "-Infinity", "timestamp": "12", "step": "3"}
        assert http.post("runs/log-metric", json=body).json() == {}
        raw = b'{"run_id": "%s", "key": "n", "value": NaN, "timestamp": 1}' % run_id.encode()
        assert http.post("runs/log-metric", content=raw).status_code == 200
        found = http.get("runs/get", params={"run_uuid": run_id}).json()["run"]["data"]["metrics"]
        assert found == [
            {"key": "m", "value": "-Infinity", "timestamp": 12, "step": 3},
            {"key": "n", "value": "NaN", "timestamp": 1, "step": 0},
        ]
        for broken in (b"{", b"[]", b"\xff", b"[" * 100_000):
            assert http.post("runs/log-metric", content=broken).status_code == 400
        answer = http.get("nothing/here")
        assert (answer.status_code, answer.json()["error_code"]) == (404, "ENDPOINT_NOT_FOUND")


def test_datasets_of_runs_are_kept(client: Any, http: httpx.Client) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    run = client.create_run("0").info.run_id
    use = DatasetInput(Dataset("d", "abc", "local", "{}", "{}", "{}"), [InputTag("mlflow.data.context", "train")])
    client.log_inputs(run, [use])
    client.log_inputs(run, [use])
    (found,) = client.get_run(run).inputs.dataset_inputs
    assert (found.dataset.name, found.dataset.digest, found.tags[0].value) == ("d", "abc", "train")
    said = http.post("experiments/search-datasets", json={"experiment_ids": ["0"]}).json()
    assert said["dataset_summaries"] == [{"experiment_id": "0", "name": "d", "digest": "abc", "context": "train"}]
    assert len(client.search_runs(["0"], "dataset.name = 'd' AND dataset.context IN ('train')")) == 1
    assert client.search_runs(["0"], "dataset.digest LIKE 'x%'") == []


def test_eight_writers_lose_nothing(client: Any) -> None:
    run = client.create_run("0").info.run_id

    def write(number: int) -> None:
        for step in range(50):
            client.log_metric(run, f"m{number}", step, step=step)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert client.get_run(run).data.metrics == {f"m{number}": 49.0 for number in range(8)}
    assert all(len(client.get_metric_history(run, f"m{number}")) == 50 for number in range(8))


def test_the_fluent_interface_works(light: str) -> None:
    mlflow.set_tracking_uri(light)
    mlflow.set_experiment("fluent")
    with mlflow.start_run(run_name="outer") as outer, mlflow.start_run(nested=True) as inner:
        mlflow.log_params({"a": 1, "b": "x"})
        mlflow.log_metrics({"auc": 0.9, "loss": 0.1}, step=2)
        mlflow.set_tags({"k": "v"})
    found = mlflow.search_runs(
        filter_string=f"tags.mlflow.parentRunId = '{outer.info.run_id}'", output_format="list"
    )
    assert [run.info.run_id for run in found] == [inner.info.run_id]
    assert found[0].data.metrics == {"auc": 0.9, "loss": 0.1}
    assert found[0].info.status == "FINISHED"
