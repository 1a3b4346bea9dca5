"""TensorFlow Serving over gRPC, asked by its own client library."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_kit import GrpcWorker, grpc_worker
from serving_kit import Home, Made
from tensorflow_client import Client

dtypes = Client("tensorflow.python.framework.dtypes")
tensor_util = Client("tensorflow.python.framework.tensor_util")
tensor_pb2 = Client("tensorflow.core.framework.tensor_pb2")
classification_pb2 = Client("tensorflow_serving.apis.classification_pb2")
get_model_metadata_pb2 = Client("tensorflow_serving.apis.get_model_metadata_pb2")
get_model_status_pb2 = Client("tensorflow_serving.apis.get_model_status_pb2")
inference_pb2 = Client("tensorflow_serving.apis.inference_pb2")
model_management_pb2 = Client("tensorflow_serving.apis.model_management_pb2")
model_service_pb2_grpc = Client("tensorflow_serving.apis.model_service_pb2_grpc")
predict_pb2 = Client("tensorflow_serving.apis.predict_pb2")
prediction_service_pb2_grpc = Client("tensorflow_serving.apis.prediction_service_pb2_grpc")
regression_pb2 = Client("tensorflow_serving.apis.regression_pb2")


@pytest.fixture(scope="module")
def process(
    tmp_path_factory: pytest.TempPathFactory, tumour_model: Made, flight_model: Made, price_model: Made
) -> Iterator[GrpcWorker]:
    home = Home(tmp_path_factory.mktemp("tf"))
    home.serve("tumours", (1, home.keep(tumour_model), 1.0, "stable"), aliases={"old": 1})
    home.serve("flights", (3, home.keep(flight_model), 1.0, "stable"))
    home.serve("prices", (2, home.keep(price_model), 1.0, "stable"))
    with grpc_worker(home) as found:
        yield found


@pytest.fixture(scope="module")
def channel(process: GrpcWorker) -> Iterator[grpc.Channel]:
    with process.channel() as found:
        yield found


@pytest.fixture(scope="module")
def stub(channel: grpc.Channel) -> Any:
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


@pytest.fixture(scope="module")
def models(channel: grpc.Channel) -> Any:
    return model_service_pb2_grpc.ModelServiceStub(channel)


def predict(name: str, inputs: dict[str, Any], **fields: Any) -> Any:
    request = predict_pb2.PredictRequest(**fields)
    request.model_spec.name = name
    for key, value in inputs.items():
        request.inputs[key].CopyFrom(
            value if isinstance(value, tensor_pb2.TensorProto) else tensor_util.make_tensor_proto(value)
        )
    return request


def columns(made: Made, rows: int) -> dict[str, Any]:
    found = {}
    for name, column in made.frame.iloc[:rows].items():
        found[name] = column.to_numpy() if column.dtype.kind in "fi" else column.to_list()
    return found


def values(response: Any, name: str) -> list[Any]:
    found = tensor_util.MakeNdarray(response.outputs[name]).tolist()
    return [one.decode() if isinstance(one, bytes) else one for one in found]


@pytest.mark.parametrize("rows", [1, 2, 60])
def test_every_form_of_the_rows_gives_the_models_own_answer(stub: Any, tumour_model: Made, rows: int) -> None:
    assert tumour_model.probability is not None
    matrix = tumour_model.frame.iloc[:rows].to_numpy()
    vectors = {name: column.reshape(-1, 1) for name, column in columns(tumour_model, rows).items()}
    for inputs in (columns(tumour_model, rows), {"rows": matrix}, {"rows": matrix}, vectors):
        response = stub.Predict(predict("tumours", inputs))
        assert values(response, "label") == tumour_model.labels[:rows]
        assert np.allclose(values(response, "probability"), tumour_model.probability[:rows], atol=1e-5)
        spec = response.model_spec
        assert (spec.name, spec.version.value, spec.signature_name) == ("tumours", 1, "serving_default")


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-9), ("half", 0.02), ("bfloat16", 0.1)]
)
@pytest.mark.parametrize("content", [True, False])
def test_floats_of_every_width_raw_and_typed(
    stub: Any, price_model: Made, dtype: str, tolerance: float, content: bool
) -> None:
    inputs = {}
    for name, column in price_model.frame.iloc[:3].items():
        whole = tensor_util.make_tensor_proto(column.to_numpy(), dtype=dtype)
        if not content:  # as clients write that build the message themselves
            typed = tensor_util.make_tensor_proto(column.to_numpy()[0], dtype=dtype)
            for value in column.to_numpy()[1:]:
                typed.MergeFrom(tensor_util.make_tensor_proto(value, dtype=dtype))
            typed.tensor_shape.CopyFrom(whole.tensor_shape)
            assert not typed.tensor_content
            whole = typed
        inputs[name] = whole
    found = values(stub.Predict(predict("prices", inputs)), "prediction")
    assert np.allclose(found, price_model.labels[:3], atol=tolerance)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"])
def test_whole_numbers_texts_and_gaps(stub: Any, flight_model: Made, dtype: str) -> None:
    for rows in (1, 30):
        inputs = columns(flight_model, rows)
        inputs["hour"] = tensor_util.make_tensor_proto(inputs["hour"], dtype=dtype)
        response = stub.Predict(predict("flights", inputs))
        assert values(response, "label") == flight_model.labels[:rows]


def test_a_value_stands_for_all_that_follow_it(stub: Any, price_model: Made) -> None:
    made = tensor_util.make_tensor_proto(0.5, shape=[4], dtype=dtypes.float64)
    assert len(made.double_val) == 1
    found = values(stub.Predict(predict("prices", dict.fromkeys("abc", made))), "prediction")
    assert len(found) == 4 and len(set(found)) == 1


def test_outputs_versions_and_labels(stub: Any, tumour_model: Made) -> None:
    inputs = columns(tumour_model, 2)
    response = stub.Predict(predict("tumours", inputs, output_filter=["label"]))
    assert set(response.outputs) == {"label"}
    for choice in ({"version": {"value": 1}}, {"version_label": "old"}, {"version_label": "champion"}):
        request = predict("tumours", inputs, model_spec=choice)
        assert values(stub.Predict(request), "label") == tumour_model.labels[:2]
    response, call = stub.Predict.with_call(predict("tumours", inputs), metadata=[("x-modelkeep-key", "k")])
    told = dict(call.initial_metadata())["x-modelkeep-prediction-id"]
    assert told and values(response, "label") == tumour_model.labels[:2]


def examples(made: Made, rows: int, request: Any) -> Any:
    for row in made.frame.iloc[:rows].to_dict("records"):
        features = request.input.example_list.examples.add().features.feature
        for name, value in row.items():
            if isinstance(value, str):
                features[name].bytes_list.value.append(value.encode())
            elif isinstance(value, int):
                features[name].int64_list.value.append(value)
            elif value == value:
                features[name].float_list.value.append(value)
    return request


def test_classify(stub: Any, flight_model: Made) -> None:
    assert flight_model.probability is not None
    request = classification_pb2.ClassificationRequest(model_spec={"name": "flights"})
    response = stub.Classify(examples(flight_model, 20, request))
    found = response.result.classifications
    assert [[one.label for one in row.classes] for row in found] == [["late", "on time"]] * 20
    assert np.allclose(
        [[one.score for one in row.classes] for row in found], flight_model.probability[:20], atol=1e-3
    )
    assert response.model_spec.version.value == 3
    shared = classification_pb2.ClassificationRequest(model_spec={"name": "flights"})
    both = shared.input.example_list_with_context
    both.context.features.feature["carrier"].bytes_list.value.append(b"AA")
    both.examples.add().features.feature["hour"].int64_list.value.append(9)
    assert len(stub.Classify(shared).result.classifications) == 1


def test_regress_and_several_at_once(stub: Any, price_model: Made) -> None:
    request = examples(price_model, 20, regression_pb2.RegressionRequest(model_spec={"name": "prices"}))
    found = [one.value for one in stub.Regress(request).result.regressions]
    assert np.allclose(found, price_model.labels[:20], atol=1e-4)
    several = inference_pb2.MultiInferenceRequest()
    for _ in range(2):
        several.tasks.add(model_spec={"name": "prices"}, method_name="tensorflow/serving/regress")
    results = stub.MultiInference(examples(price_model, 5, several)).results
    for one in results:
        assert np.allclose([row.value for row in one.regression_result.regressions], found[:5])
        assert one.model_spec.name == "prices"
    assert len(results) == 2
    several.tasks[0].method_name = "tensorflow/serving/predict"
    assert refused(stub.MultiInference, several) == (grpc.StatusCode.INVALID_ARGUMENT, "tasks[0].method_name")


def test_metadata_and_status(stub: Any, models: Any) -> None:
    request = get_model_metadata_pb2.GetModelMetadataRequest(
        model_spec={"name": "flights"}, metadata_field=["signature_def"]
    )
    response = stub.GetModelMetadata(request)
    assert response.model_spec.version.value == 3
    found = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(found)
    default = found.signature_def["serving_default"]
    assert default.method_name == "tensorflow/serving/predict"
    assert {name: dtypes.as_dtype(one.dtype) for name, one in default.inputs.items()} == {
        "carrier": dtypes.string,
        "distance": dtypes.float64,
        "hour": dtypes.int64,
    }
    assert [dim.size for dim in default.outputs["probability"].tensor_shape.dim] == [-1, 2]
    status = models.GetModelStatus(get_model_status_pb2.GetModelStatusRequest(model_spec={"name": "flights"}))
    (one,) = status.model_version_status
    assert (one.version, one.state, one.status.error_code) == (
        3,
        get_model_status_pb2.ModelVersionStatus.AVAILABLE,
        0,
    )
    reload = model_management_pb2.ReloadConfigRequest()
    assert refused(models.HandleReloadConfigRequest, reload)[0] is grpc.StatusCode.UNIMPLEMENTED


def refused(method: Any, request: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as error:
        method(request, timeout=10)
    return error.value.code(), error.value.details().partition(":")[0]


def wrong(**tensor: Any) -> Any:
    made = tensor_pb2.TensorProto(**{"dtype": 2, "tensor_shape": {"dim": [{"size": 1}]}, **tensor})
    return predict("prices", {"a": made, "b": [0.5], "c": [0.5]})


@pytest.mark.parametrize(
    ("request_", "path"),
    [
        (lambda: wrong(dtype=8, scomplex_val=[1, 2]), "inputs.a.dtype"),
        (lambda: wrong(dtype=0), "inputs.a.dtype"),
        (lambda: wrong(), "inputs.a.double_val"),
        (lambda: wrong(double_val=[1.0, 2.0]), "inputs.a.double_val"),
        (lambda: wrong(tensor_content=b"1234"), "inputs.a.tensor_content"),
        (lambda: wrong(dtype=7, tensor_content=b"\x01a"), "inputs.a.tensor_content"),
        (lambda: wrong(dtype=7, string_val=[b"\xff"]), "inputs.a.string_val"),
        (lambda: wrong(tensor_shape={"unknown_rank": True}), "inputs.a.tensor_shape"),
        (lambda: wrong(tensor_shape={"dim": [{"size": -1}]}), "inputs.a.tensor_shape"),
        (lambda: wrong(tensor_shape={"dim": [{"size": 2**40}]}, double_val=[1.0]), "inputs.a.double_val"),
        (lambda: wrong(tensor_shape={"dim": [{"size": 2**62}] * 2}), "inputs.a.tensor_shape"),
        (lambda: wrong(double_val=[float("nan")]), "inputs.a[0]"),
        (lambda: wrong(double_val=[float("inf")]), "inputs.a[0]"),
        (lambda: predict("prices", {"a": [0.5], "b": [0.5]}), "inputs.c"),
        (lambda: predict("prices", {"a": [0.5], "b": [0.5], "c": [0.5], "d": [0.5]}), "inputs.d.name"),
        (lambda: predict("prices", {}), "inputs.a"),
        (lambda: predict("prices", {"rows": np.zeros((2, 4))}), "inputs.rows.name"),
        (lambda: predict("", {}), "model_spec.name"),
        (lambda: predict("prices", {"a": [0.5]}, output_filter=["label"]), "output_filter[0]"),
        (lambda: predict("prices", {}, model_spec={"signature_name": "x"}), "signature_name"),
    ],
)
def test_wrong_tensors_are_invalid_arguments(stub: Any, request_: Any, path: str) -> None:
    assert refused(stub.Predict, request_()) == (grpc.StatusCode.INVALID_ARGUMENT, path)


def test_wrong_models_and_examples(stub: Any, flight_model: Made) -> None:
    code, said = refused(stub.Predict, predict("nobody", {}))
    assert (code, said) == (grpc.StatusCode.NOT_FOUND, "Servable not found for request")
    code, said = refused(stub.Predict, predict("prices", {}, model_spec={"version": {"value": 9}}))
    assert code is grpc.StatusCode.NOT_FOUND
    request = classification_pb2.ClassificationRequest(model_spec={"name": "flights"})
    assert refused(stub.Classify, request) == (grpc.StatusCode.INVALID_ARGUMENT, "input")
    request.input.example_list.SetInParent()
    assert refused(stub.Classify, request) == (grpc.StatusCode.INVALID_ARGUMENT, "input.examples")
    examples(flight_model, 1, request)
    request.input.example_list.examples[0].features.feature["hour"].int64_list.value.append(7)
    assert refused(stub.Classify, request) == (grpc.StatusCode.INVALID_ARGUMENT, "input.examples[0].hour")
    request = examples(flight_model, 1, regression_pb2.RegressionRequest(model_spec={"name": "flights"}))
    assert refused(stub.Regress, request)[0] is grpc.StatusCode.INVALID_ARGUMENT
