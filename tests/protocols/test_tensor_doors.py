"""Models of images, logged with MLflow, asked by every protocol in the shape they were logged with."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from grpc_kit import GrpcWorker, grpc_worker
from serving_kit import Home
from tensorflow_client import Client

sys.path.insert(0, str(Path(__file__).parents[1] / "formats"))
from tensor_cases import Kept, blend, colours, digits, images, scores, weighed

from modelkeep.store.blobs import put_tree

tensor_util = Client("tensorflow.python.framework.tensor_util")
predict_pb2 = Client("tensorflow_serving.apis.predict_pb2")
prediction_service_pb2_grpc = Client("tensorflow_serving.apis.prediction_service_pb2_grpc")


def serve(home: Home, name: str, kept: Kept) -> None:
    home.serve(name, (1, put_tree(home.blobs, kept.files), 1.0, "stable"), trust=list(kept.trusted))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    made = Home(tmp_path_factory.mktemp("tensors"))
    for name, kept in (("digits", digits()), ("blend", blend()), ("colours", colours())):
        serve(made, name, kept)
    return made


@pytest.fixture(scope="module")
def process(home: Home) -> Iterator[GrpcWorker]:
    with grpc_worker(home, ready=False) as found:
        found.until(lambda health: health["ready"], 120)
        yield found


@pytest.fixture(scope="module")
def http(process: GrpcWorker) -> Iterator[triton_http.InferenceServerClient]:
    with triton_http.InferenceServerClient(process.url.removeprefix("http://")) as found:
        yield found


@pytest.fixture(scope="module")
def grpc(process: GrpcWorker) -> Iterator[triton_grpc.InferenceServerClient]:
    with triton_grpc.InferenceServerClient(process.grpc) as found:
        yield found


def tensor(kind: Any, name: str, values: Any, datatype: str, **how: Any) -> Any:
    made = kind.InferInput(name, list(values.shape), datatype)
    made.set_data_from_numpy(values, **how)
    return made


def test_metadata_tells_the_true_shape(http: Any, grpc: Any, process: GrpcWorker) -> None:
    assert http.get_model_metadata("digits")["inputs"] == [
        {"name": "x", "datatype": "FP64", "shape": [-1, 28, 28]}
    ]
    assert [list(one.shape) for one in grpc.get_model_metadata("colours").inputs] == [[-1, 3, 8, 8]]
    shapes = {one["name"]: one["shape"] for one in http.get_model_metadata("blend")["inputs"]}
    assert shapes == {"pixels": [-1, 1, 2, 3], "weight": [-1], "words": [-1, 2]}
    assert http.get_model_config("digits")["input"][0]["dims"] == [28, 28]
    told = process.client.get("/v1/models/digits/metadata").json()["metadata"]["signature_def"]["signature_def"]
    dims = told["serving_default"]["inputs"]["x"]["tensor_shape"]["dim"]
    assert [dim["size"] for dim in dims] == ["-1", "28", "28"]


@pytest.mark.parametrize("rows", [1, 2, 40])
@pytest.mark.parametrize("name", ["x", "image"])
@pytest.mark.parametrize("binary", [True, False])
def test_tritons_client_sends_images_as_they_are(http: Any, rows: int, name: str, binary: bool) -> None:
    X = images(rows)
    answer = http.infer("digits", [tensor(triton_http, name, X, "FP32", binary_data=binary)])
    assert np.allclose(answer.as_numpy("score"), scores(X), atol=1e-3)


def test_every_datatype_that_fits_carries_an_image(http: Any, grpc: Any) -> None:
    X = np.arange(784, dtype=np.uint8).reshape(1, 28, 28)
    for kind, client in ((triton_http, http), (triton_grpc, grpc)):
        for datatype, dtype in (
            ("UINT8", np.uint8),
            ("FP64", np.float64),
            ("BF16", ml_dtypes.bfloat16),
            ("FP16", np.float16),
        ):
            answer = client.infer("digits", [tensor(kind, "x", X.astype(dtype), datatype)])
            assert np.allclose(answer.as_numpy("score"), scores(X), rtol=0.01), datatype
        colours = images(5, 3, 8, 8)
        answer = client.infer("colours", [tensor(kind, "input", colours, "FP32")])
        assert np.allclose(answer.as_numpy("prediction"), colours.mean(axis=(2, 3)), atol=1e-5)


def test_several_tensors_numbers_and_texts_together(http: Any, grpc: Any) -> None:
    pixels, weight = images(3, 1, 2, 3), np.array([0.5, 2.0, -1.0])
    words = np.array([["a", "b"], ["c], [d", "e"], ["", "\N{SNOWMAN}"]], dtype=object)
    for kind, client, hows in ((triton_http, http, (True, False)), (triton_grpc, grpc, (None,))):
        for binary in hows:
            how = {} if binary is None else {"binary_data": binary}
            given = [
                tensor(kind, "words", words, "BYTES", **how),
                tensor(kind, "pixels", pixels, "FP32", **how),
                tensor(kind, "weight", weight.reshape(-1, 1), "FP64", **how),
            ]
            outputs = [kind.InferRequestedOutput(name, **how) for name in ("picture", "words")]
            answer = client.infer("blend", given, outputs=outputs)
            assert np.allclose(answer.as_numpy("picture"), weighed(pixels[:, 0], weight))
            found = [one.decode() if isinstance(one, bytes) else one for one in answer.as_numpy("words").ravel()]
            assert found == words[:, ::-1].ravel().tolist()


def test_tensorflow_servings_nested_lists(process: GrpcWorker) -> None:
    X = images(3)
    nested, path = X.tolist(), "/v1/models/digits:predict"
    for body, key in (
        ({"instances": nested}, "predictions"),
        ({"instances": [{"x": one} for one in nested]}, "predictions"),
        ({"inputs": nested}, "outputs"),
        ({"inputs": {"x": nested}}, "outputs"),
    ):
        response = process.client.post(path, json=body)
        assert response.status_code == 200, response.text
        assert np.allclose(response.json()[key], scores(X), atol=1e-3)
    pixels = images(2, 1, 2, 3)
    rows = [{"pixels": one, "weight": 2.0, "words": ["a", "b"]} for one in pixels.tolist()]
    answer = process.client.post("/v1/models/blend:predict", json={"instances": rows}).json()["predictions"]
    assert np.allclose([row["picture"] for row in answer], pixels[:, 0] * 2)
    assert [row["words"] for row in answer] == [["b", "a"]] * 2


@pytest.mark.parametrize("rows", [1, 3])
def test_tensorflow_servings_messages(process: GrpcWorker, rows: int) -> None:
    X = images(rows)
    with process.channel() as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        for values in (X, X.astype(np.float64)):
            for _ in range(2):  # the second is read by the form that the first showed
                request = predict_pb2.PredictRequest()
                request.model_spec.name = "digits"
                request.inputs["x"].CopyFrom(tensor_util.make_tensor_proto(values))
                found = tensor_util.MakeNdarray(stub.Predict(request, timeout=20).outputs["score"])
                assert np.allclose(found, scores(X), atol=1e-3)


def test_tensorflow_servings_messages_of_several_tensors(process: GrpcWorker) -> None:
    pixels, words = images(2, 1, 2, 3), np.array([["a", "b"], ["c", "d"]], dtype=object)
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "blend"
    for name, values in (("pixels", pixels), ("weight", np.array([1.0, 3.0])), ("words", words)):
        request.inputs[name].CopyFrom(tensor_util.make_tensor_proto(values))
    with process.channel() as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        outputs = stub.Predict(request, timeout=20).outputs
    assert np.allclose(tensor_util.MakeNdarray(outputs["picture"]), weighed(pixels[:, 0], [1.0, 3.0]))
    assert tensor_util.MakeNdarray(outputs["words"]).tolist() == [[b"b", b"a"], [b"d", b"c"]]


def test_mlflows_scoring_takes_nested_lists(process: GrpcWorker) -> None:
    X = images(2)
    nested = X.tolist()
    for body in (
        {"inputs": nested},
        {"inputs": {"x": nested}},
        {"instances": nested},
        {"instances": [{"x": one} for one in nested]},
        {"dataframe_records": [{"x": one} for one in nested]},
        {"dataframe_split": {"columns": ["x"], "data": [[one] for one in nested]}},
    ):
        response = process.client.post("/endpoints/digits/invocations", json=body)
        assert response.status_code == 200, response.text
        assert np.allclose(response.json()["predictions"]["score"], scores(X), atol=1e-3)
    pixels = images(2, 1, 2, 3)
    body = {"inputs": {"pixels": pixels.tolist(), "weight": [[1.0], [2.0]], "words": [["a", "b"], ["c", "d"]]}}
    answer = process.client.post("/endpoints/blend/invocations", json=body)
    assert answer.status_code == 200, answer.text


WRONG = [
    ("/v2/models/digits/infer", "[1, 27, 28] is not [n, 28, 28]"),
    ("/v1/models/digits:predict", "inputs.x[0]: has shape [27, 28], expected shape [28, 28]"),
    ("/endpoints/digits/invocations", "inputs.x[0]: has shape [27, 28], expected shape [28, 28]"),
]


@pytest.mark.parametrize(("path", "said"), WRONG)
def test_another_shape_is_refused_with_both_shapes(process: GrpcWorker, path: str, said: str) -> None:
    X = images(1, 27, 28)
    tensor = {"name": "x", "shape": list(X.shape), "datatype": "FP32", "data": X.ravel().tolist()}
    body = {"inputs": [tensor]} if path.startswith("/v2") else {"instances": X.tolist()}
    response = process.client.post(path, json=body)
    assert response.status_code == 400
    assert said in response.text


@pytest.mark.parametrize("shape", [(2, 784), (2, 28, 28, 1), (2, 28), (1568,)])
def test_raw_tensors_of_another_shape_are_refused_with_both_shapes(http: Any, grpc: Any, shape: Any) -> None:
    X = np.zeros(shape, np.float32)
    for kind, client in ((triton_http, http), (triton_grpc, grpc)):
        with pytest.raises(Exception, match=r"is not \[n, 28, 28\]") as refused:
            client.infer("digits", [tensor(kind, "x", X, "FP32")])
        assert str(list(shape)) in str(refused.value)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"inputs": [[[0.0] * 28] * 27 + [[0.0] * 27]]}, "inputs.x[0]: has lists of unequal lengths, expected"),
        ({"inputs": [[[0.0] * 28] * 28, 3]}, "inputs.x[1]: has shape [], expected shape [28, 28]"),
        ({"inputs": [[[0.0] * 28] * 27 + [[0.0] * 27 + ["a"]]]}, "inputs.x[0]: found 'a' at [27, 27], expected a"),
        (
            {"inputs": [[[0.0] * 28] * 28, [[None] * 28] * 28]},
            "inputs.x[1]: found None at [0, 0], expected a number",
        ),
        ({"inputs": [[[2**2000] * 28] * 28]}, "found an integer of 2001 bits at [0, 0]"),
        ({"inputs": [[[[0.0]] * 28] * 28]}, "has shape [28, 28, 1], expected shape [28, 28]"),
        ({"inputs": {"y": [[[0.0] * 28] * 28]}}, "inputs.x: is missing"),
        ({"inputs": []}, "hold no rows"),
        ({"dataframe_split": {"columns": ["x"], "data": [[1, 2]]}}, "dataframe_split.data[0]: has 2 values"),
        ({"dataframe_records": [{"x": [[0.0] * 28] * 28}, {}]}, "dataframe_records[1].x: is missing"),
    ],
)
def test_what_is_wrong_with_an_image_is_told(process: GrpcWorker, body: Any, said: str) -> None:
    response = process.client.post("/endpoints/digits/invocations", json=body)
    assert response.status_code == 400, response.text
    assert said in response.text.replace('\\"', '"')


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ([("x", [1, 28, 28], "FP32", 783)], "holds 783 values where the shape says 784"),
        ([("x", [1, 28, 28], "BYTES", 784)], "BYTES does not fit an input of type float64"),
        ([("x", [0, 28, 28], "FP32", 0)], "hold no rows"),
        ([("x", [1, 28, 28], "FP32", 784), ("y", [1], "FP32", 1)], "'y' is no input; expected x"),
        ([("x", [1, 28, 28], "FP32", 784)] * 2, "is given twice"),
    ],
)
def test_what_is_wrong_with_a_tensor_is_told(process: GrpcWorker, tensors: Any, said: str) -> None:
    made = [
        {"name": name, "shape": shape, "datatype": datatype, "data": [0] * count}
        for name, shape, datatype, count in tensors
    ]
    response = process.infer("digits", {"inputs": made})
    assert response.status_code == 400, response.text
    assert said in response.text


def test_inputs_that_do_not_belong_together_are_refused(process: GrpcWorker) -> None:
    two = {"name": "pixels", "shape": [2, 1, 2, 3], "datatype": "FP32", "data": [0.0] * 12}
    one = {"name": "weight", "shape": [1], "datatype": "FP64", "data": [1.0]}
    response = process.infer("blend", {"inputs": [two, one]})
    assert response.status_code == 400
    assert "[1] is not [n] or [n, 1]" in response.text
    assert "inputs.words: is missing" in response.text
    response = process.client.post("/endpoints/blend/invocations", json={"instances": [[1.0]]})
    assert response.status_code == 400
    assert "the inputs are pixels, weight, words" in response.text


def test_many_requests_of_other_sizes_share_batches(process: GrpcWorker) -> None:
    """Raw, JSON and a faulty one at once: each gets its own answer."""

    def ask(number: int) -> None:
        X = images(1 + number % 3, seed=number)
        data = [*X.ravel().tolist()[:-1], None] if number % 5 == 0 else X.ravel().tolist()
        tensor = {"name": "x", "shape": list(X.shape), "datatype": "FP32", "data": data}
        response = process.infer("digits", {"inputs": [tensor]})
        if number % 5 == 0:
            assert response.status_code == 400, response.text
            assert f"inputs.x[{len(X) - 1}]: found None at [27, 27]" in response.text
        else:
            assert np.allclose(response.json()["outputs"][0]["data"], scores(X), atol=1e-3)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(60)))


def test_a_body_without_a_head_is_images(process: GrpcWorker) -> None:
    X = images(2).astype(np.float64)
    headers = {"Inference-Header-Content-Length": "0", "Content-Type": "application/octet-stream"}
    response = process.client.post("/v2/models/digits/infer", content=X.tobytes(), headers=headers)
    assert response.status_code == 200
    length = int(response.headers["Inference-Header-Content-Length"])
    assert np.allclose(np.frombuffer(response.content[length:], np.float64), scores(X), atol=1e-3)
    response = process.client.post("/v2/models/digits/infer", content=bytes(8 * 100), headers=headers)
    assert response.status_code == 400
    assert "rows of shape [28, 28]" in response.text


def test_answers_are_captured_without_the_images(process: GrpcWorker, home: Home) -> None:
    pixels = images(2, 1, 2, 3)
    body = {"inputs": {"pixels": pixels.tolist(), "weight": [3.0, 4.0], "words": [["a", "b"], ["c", "d"]]}}
    assert process.client.post("/endpoints/blend/invocations", json=body).status_code == 200
    end = time.monotonic() + 30
    while 4.0 not in (found := home.captured_rows("blend").to_pydict()).get("in.weight", ()):
        assert time.monotonic() < end
        time.sleep(0.1)
    assert [name for name in found if name.startswith("in.")] == ["in.weight"]
    place = found["in.weight"].index(4.0)
    assert np.allclose(found["out.picture"][place], weighed(pixels[1:, 0], [4.0]).ravel())
