"""Models of whose rows nothing is known are given whole requests, and answer as MLflow's own server does."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from grpc_kit import GrpcWorker, grpc_worker
from serving_kit import Home

sys.path.insert(0, str(Path(__file__).parents[1] / "formats"))
from runtime_cases import frame, logistic
from tensor_cases import Kept, images
from verbatim_cases import NESTED_JSON, ROWS, nested, unsigned, unsigned_graph, unsigned_sklearn

from modelkeep.core.errors import Refused
from modelkeep.formats import manifest, runtimes
from modelkeep.store.blobs import put_tree

MODELS = {
    "anything": unsigned,
    "pipeline": unsigned_sklearn,
    "graph": unsigned_graph,
    "nested": nested,
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    made = Home(tmp_path_factory.mktemp("verbatim"))
    for name, case in MODELS.items():
        kept = case()
        made.serve(name, (1, put_tree(made.blobs, kept.files), 1.0, "stable"), trust=list(kept.trusted))
    return made


@pytest.fixture(scope="module")
def process(home: Home) -> Iterator[GrpcWorker]:
    with grpc_worker(home, ready=False) as found:
        found.until(lambda health: health["ready"], 120)
        yield found


def invoke(process: GrpcWorker, name: str, body: Any, status: int = 200) -> Any:
    response = process.client.post(f"/endpoints/{name}/invocations", json=body)
    assert response.status_code == status, response.text
    return response.json()


@pytest.mark.parametrize("kept", MODELS.values())
def test_nothing_of_them_runs_unless_trusted(kept: Any) -> None:
    found: Kept = kept()
    assert len(found.trusted) == 1
    assert manifest.read(found.files).runtime == "pyfunc"
    with pytest.raises(Refused, match="code that its MLflow folder brings"):
        runtimes.load(found.files)


def test_the_package_says_why(process: GrpcWorker) -> None:
    notes = {name: manifest.read(case().files).note for name, case in MODELS.items()}
    assert "has no signature" in notes["anything"]
    assert "input 'image' of the graph has shape" in notes["graph"]
    assert "signature.inputs.words is a array" in notes["nested"]
    assert process.client.get("/v2/models/anything").json()["inputs"] == [
        {"name": "request", "datatype": "BYTES", "shape": [-1]}
    ]


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        ({"dataframe_split": ROWS}, {"kind": "DataFrame", "rows": 3}),
        ({"inputs": [[1, 2], [3, 4]]}, {"kind": "ndarray", "rows": 2}),
        ({"inputs": {"a": [1, 2], "b": [[1], [2]]}}, {"a": 3.0, "b": 3.0}),
    ],
)
def test_a_function_without_a_signature_gets_what_mlflow_would_give_it(
    process: GrpcWorker, body: Any, answer: Any
) -> None:
    assert invoke(process, "anything", body) == {"predictions": answer}


def test_csv_too(process: GrpcWorker) -> None:
    text, path = frame(3).to_csv(index=False), "/endpoints/pipeline/invocations"
    response = process.client.post(path, content=text, headers={"content-type": "text/csv"})
    assert response.json() == {"predictions": logistic().predict(frame(3)).tolist()}, response.text
    assert response.headers["x-modelkeep-prediction-id"]


def test_a_pipeline_without_a_signature(process: GrpcWorker) -> None:
    expected = logistic().predict(frame(3)).tolist()
    assert invoke(process, "pipeline", {"dataframe_split": ROWS}) == {"predictions": expected}


@pytest.mark.parametrize("side", [4, 9])
def test_a_graph_takes_images_of_any_size(process: GrpcWorker, side: int) -> None:
    X = images(2, side, side)
    answer = invoke(process, "graph", {"inputs": {"image": X.tolist()}})["predictions"]
    assert np.allclose(answer["score"], X.sum(axis=(1, 2)), atol=1e-3)


def test_columns_of_lists_objects_and_bytes(process: GrpcWorker) -> None:
    answer = invoke(process, "nested", {"dataframe_records": NESTED_JSON})["predictions"]
    assert answer == [{"words": 2, "size": 1, "bytes": 2}, {"words": 1, "size": 2, "bytes": 3}]
    refused = invoke(process, "nested", {"dataframe_records": [{**NESTED_JSON[0], "words": 3}]}, 400)
    assert "words" in str(refused)


@pytest.mark.parametrize("body", ["{", "[1]", '{"inputs": [1], "instances": [1]}', '{"x": 1}', '{"inputs": "a'])
def test_what_is_no_request_is_refused(process: GrpcWorker, body: str) -> None:
    headers = {"content-type": "application/json"}
    response = process.client.post("/endpoints/anything/invocations", content=body, headers=headers)
    assert response.status_code == 400, response.text
    assert "request" in response.text
    response = process.client.post("/endpoints/anything/invocations", content=b"\xff", headers=headers)
    assert response.status_code == 400
    assert "not UTF-8" in response.text


def test_what_the_model_raises_is_its_own_fault(process: GrpcWorker) -> None:
    body = {"dataframe_split": {"columns": ["fail"], "data": [[1]]}}
    assert "no luck" in str(invoke(process, "anything", body, 500))
    body = {"dataframe_split": {"columns": ["odd"], "data": [[1]]}}
    assert "no such column" in str(invoke(process, "anything", body, 400))  # that is its client's
    assert invoke(process, "anything", {"inputs": {"a": [1]}}) == {"predictions": {"a": 1.0}}


def test_requests_of_many_clients_do_not_mix(process: GrpcWorker) -> None:
    def ask(number: int) -> None:
        if number % 4 == 0:
            invoke(process, "anything", {"nothing": number}, 400)
        else:
            assert invoke(process, "anything", {"inputs": {"a": [number]}}) == {"predictions": {"a": number}}

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(40)))


def test_open_inference_carries_requests_as_texts(process: GrpcWorker) -> None:
    texts = np.array([json.dumps({"inputs": {"a": [1, number]}}) for number in range(3)], dtype=object)
    with triton.InferenceServerClient(process.url.removeprefix("http://")) as client:
        given = triton.InferInput("request", [3], "BYTES")
        given.set_data_from_numpy(texts)
        answers = client.infer("anything", [given]).as_numpy("answer")
    assert [json.loads(text)["predictions"]["a"] for text in answers] == [1, 2, 3]


def test_requests_are_not_captured(process: GrpcWorker, home: Home) -> None:
    invoke(process, "anything", {"inputs": {"a": [1]}})
    end = time.monotonic() + 30
    while not home.captured_rows("anything").num_rows:
        assert time.monotonic() < end
        time.sleep(0.1)
    names = home.captured_rows("anything").column_names
    assert "out.answer" in names
    assert not [name for name in names if name.startswith("in.")]
