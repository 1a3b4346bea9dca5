"""Numbers with more digits than any number has: refused for what they are, by every server and in every place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from safety_site import Site, site
from serving_kit import Home, Worker, named, tensor, tumours, worker

DIGITS = {"thousands": "9" * 5000, "more than 64 bits": "9" * 25}
MLFLOW = "/api/2.0/mlflow"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("site")) as found:
        found.mlflow("root", "POST", "registered-models/create", name="m")
        found.mlflow("root", "POST", "model-versions/create", name="m", source="s3://a/b")
        yield found


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Worker, Any]]:
    home, made = Home(tmp_path_factory.mktemp("serving")), tumours()
    home.serve("tumours", (1, home.keep(made), 1.0, "stable"))
    with worker(home) as found:
        yield found, made


@pytest.mark.parametrize("digits", DIGITS.values(), ids=DIGITS)
@pytest.mark.parametrize(
    "path",
    [
        "/events?page={}",
        "/models/m/{}",
        "/api/modelkeep/models/m/versions/{}",
        "/api/modelkeep/events?limit={}",
        "/api/modelkeep/endpoints/e/windows?version={}",
        f"{MLFLOW}/experiments/get?experiment_id={{}}",
        f"{MLFLOW}/model-versions/get?name=m&version={{}}",
        f"{MLFLOW}/metrics/get-history?run_id=x&metric_key=a&max_results={{}}",
        f"{MLFLOW}/registered-models/search?page_token={{}}",
        f"{MLFLOW}/model-versions/search?filter=version_number%20%3E%20{{}}",
        "/model-versions/get-artifact?name=m&version={}&path=x",
    ],
)
def test_in_paths_and_queries(here: Site, path: str, digits: str) -> None:
    assert here.ask("root", "GET", path.format(digits)).status_code < 500


@pytest.mark.parametrize("digits", DIGITS.values(), ids=DIGITS)
@pytest.mark.parametrize(
    ("path", "field", "body"),
    [
        ("runs/log-metric", "timestamp", '{"run_id": "x", "key": "a", "value": 1, "timestamp": %s}'),
        ("runs/log-metric", "step", '{"run_id": "x", "key": "a", "value": 1, "timestamp": 1, "step": %s}'),
        ("runs/create", "start_time", '{"experiment_id": "0", "start_time": %s}'),
        ("runs/search", "max_results", '{"experiment_ids": ["0"], "max_results": %s}'),
        ("traces/search", "max_results", '{"max_results": "%s"}'),
    ],
)
def test_in_bodies(here: Site, path: str, field: str, body: str, digits: str) -> None:
    answer = here.ask("root", "POST", f"{MLFLOW}/{path}", content=body % digits)
    assert answer.status_code == 400
    assert field in answer.text or len(digits) > 4300, "beyond that Python's own JSON says only how many there are"


@pytest.mark.parametrize("span", ["bytes={}-", "bytes=0-{}", "bytes=1-{}"])
def test_in_ranges(here: Site, span: str) -> None:
    info = here.mlflow("root", "POST", "runs/create", experiment_id="0").json()["run"]["info"]
    path = f"/api/2.0/mlflow-artifacts/artifacts/{info['artifact_uri'].removeprefix('mlflow-artifacts:/')}/f"
    assert here.ask("root", "PUT", path, content=b"bytes").status_code == 200
    answer = here.ask("root", "GET", path, headers={"range": span.format("9" * 5000)})
    assert (answer.status_code, answer.content) == (200, b"bytes"), "a range that is none is not heeded"


@pytest.mark.parametrize("digits", DIGITS.values(), ids=DIGITS)
def test_asked_of_endpoints(serving: tuple[Worker, Any], digits: str) -> None:
    server, made = serving
    address = server.url
    asked = named(made, [0])
    with httpx.Client(base_url=address, timeout=30) as client:
        for path in ("/v2/models/tumours/versions/{}", "/v1/models/tumours/versions/{}"):
            assert client.get(path.format(digits)).status_code == 404
        assert client.post(f"/v2/models/tumours/versions/{digits}/infer", json=asked).status_code == 404
        assert client.post(f"/v1/models/tumours/versions/{digits}:predict", json={}).status_code in (400, 404)
        whole = tensor(made, [0])
        for path, body, field in (
            ("/v2/models/tumours/infer", {"inputs": [{**whole["inputs"][0], "shape": ["@"]}]}, "inputs"),
            ("/v2/models/tumours/infer", {"inputs": [{**whole["inputs"][0], "data": ["@"]}]}, "inputs"),
            ("/v1/models/tumours:predict", {"instances": ["@"]}, "instances"),
            ("/invocations", {"inputs": ["@"]}, ""),
            ("/endpoints/tumours/invocations", {"dataframe_split": {"columns": ["a"], "data": [["@"]]}}, ""),
        ):
            text = httpx.Request("POST", address, json=body).content.replace(b'"@"', digits.encode())
            answer = client.post(path, content=text, headers={"content-type": "application/json"})
            assert answer.status_code == 400, (path, answer.text)
            assert field in answer.text or len(digits) > 4300
