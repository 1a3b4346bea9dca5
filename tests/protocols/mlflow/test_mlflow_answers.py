"""Operations that only older clients and MLflow's pages use, asked of MLflow's own server and of ours."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "transfer"))

from mlflow_server import tracking_server

Both = tuple[httpx.Client, httpx.Client]
"""MLflow's server and ours."""


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with tracking_server(tmp_path_factory.mktemp("peer")) as address:
        yield address


@pytest.fixture
def both(peer: str, place: str) -> Iterator[Both]:
    with httpx.Client(base_url=peer, timeout=60) as theirs, httpx.Client(base_url=place, timeout=60) as ours:
        yield theirs, ours


def ask(client: httpx.Client, path: str, /, **content: Any) -> Any:
    answer = client.post(f"/api/2.0/mlflow/{path}", json=content)
    assert answer.status_code == 200, answer.text
    return answer.json()


def new_run(client: httpx.Client) -> str:
    return str(ask(client, "runs/create", experiment_id="0", start_time=1)["run"]["info"]["run_id"])


def tag(client: httpx.Client, run: str, key: str) -> str | None:
    found = client.get("/api/2.0/mlflow/runs/get", params={"run_id": run}).json()["run"]["data"].get("tags", [])
    return next((str(each["value"]) for each in found if each["key"] == key), None)


def said(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json().get("error_code", "")


def described(run: str, path: str) -> dict[str, Any]:
    """A model as clients before MLflow 3 told of it."""
    return {
        "run_id": run,
        "artifact_path": path,
        "utc_time_created": "2024-05-06 07:08:09.123456",
        "flavors": {
            "python_function": {"loader_module": "mlflow.sklearn", "env": {"conda": "conda.yaml"}},
            "sklearn": {"sklearn_version": "1.4.0", "serialization_format": "cloudpickle"},
        },
        "model_uuid": "0" * 32,
        "mlflow_version": "2.12.1",
        "signature": {
            "inputs": '[{"type": "double", "name": "grün", "required": true}]',
            "outputs": None,
            "params": None,
        },
    }


def test_log_model_adds_to_the_history_of_a_run(both: Both) -> None:
    found = []
    for client in both:
        run = new_run(client)
        for path in ("first", "second"):
            given = json.dumps(described(run, path))
            assert ask(client, "runs/log-model", run_id=run, model_json=given) == {}
        history = tag(client, run, "mlflow.log-model.history")
        assert history is not None
        found.append(json.loads(history.replace(run, "RUN")))
        refused = [
            said(client.post("/api/2.0/mlflow/runs/log-model", json=body))
            for body in (
                {"run_id": run, "model_json": "{"},
                {"run_id": run, "model_json": json.dumps({"run_id": run})},
                {"run_id": "0" * 32, "model_json": json.dumps(described("0" * 32, "x"))},
            )
        ]
        found[-1].append(refused)
    theirs, ours = found
    assert [each["artifact_path"] for each in ours[:2]] == ["first", "second"]
    assert ours == theirs


def test_files_of_a_version_are_sent(both: Both) -> None:
    content = bytes(range(256)) * 50
    for client in both:
        run = new_run(client)
        stored = f"/api/2.0/mlflow-artifacts/artifacts/0/{run}/artifacts"
        client.put(f"{stored}/model/data/w%20%C3%A9.bin", content=content).raise_for_status()
        client.put(f"{stored}/beside.bin", content=b"beside").raise_for_status()
        name = f"m{run}"
        ask(client, "registered-models/create", name=name)
        source = f"mlflow-artifacts:/0/{run}/artifacts/model"
        ask(client, "model-versions/create", name=name, source=source, run_id=run)

        def get(path: str, version: str = "1", name: str = name, client: httpx.Client = client) -> httpx.Response:
            asked = {"name": name, "version": version, "path": path}
            return client.get("/model-versions/get-artifact", params=asked)

        answer = get("data/w é.bin")
        assert (answer.status_code, answer.content) == (200, content)
        assert "attachment" in answer.headers["content-disposition"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        for wrong in (get("../beside.bin"), get("data/none"), get("data/w é.bin", "2"), get("x", name="none")):
            assert wrong.status_code != 200


BULK = "/ajax-api/2.0/mlflow/metrics/get-history-bulk"


def test_histories_of_many_runs(both: Both) -> None:
    """By run's id, then time, step and value; without a limit 25,000 points."""
    found = []
    for client in both:
        runs = sorted(new_run(client) for _ in range(3))
        for at, run in enumerate(runs):
            points = [
                {"key": "m", "value": value, "timestamp": ms, "step": step}
                for value, ms, step in ((at, 5, 0), (2.5, 3, 7), (-1e300, 3, 7), (7, 3, -2), (8.5, 9, 9))
            ]
            other = {"key": "other", "value": 1, "timestamp": 1, "step": 0}
            ask(client, "runs/log-batch", run_id=run, metrics=[*points, other])
        for first in range(0, 3000, 1000):
            long = [{"key": "long", "value": s, "timestamp": s, "step": s} for s in range(first, first + 1000)]
            ask(client, "runs/log-batch", run_id=runs[2], metrics=long)
        names = {run: f"run {at}" for at, run in enumerate(runs)}
        told = []
        for asked in (
            {"run_id": runs[::-1], "metric_key": "m"},
            {"run_id": runs[::-1], "metric_key": "m", "max_results": 7},
            {"run_id": [runs[1], runs[1]], "metric_key": "m"},
            {"run_id": [runs[0], "0" * 32], "metric_key": "m"},
            {"run_id": runs[0], "metric_key": "none"},
            {"run_id": runs, "metric_key": "long"},
        ):
            answer = client.get(BULK, params=asked)
            assert answer.status_code == 200, answer.text
            points = answer.json()["metrics"]
            shape = ("key", "value", "timestamp", "step")
            told.append([(names[point["run_id"]], *(point[name] for name in shape)) for point in points])
        found.append(told)
        assert [said(client.get(BULK, params=wrong)) for wrong in ({"metric_key": "m"}, {"run_id": runs})] == [
            (400, "INVALID_PARAMETER_VALUE")
        ] * 2
    theirs, ours = found
    assert len(ours[-1]) == 3000
    assert ours == theirs
