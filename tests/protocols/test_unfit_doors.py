"""A model's own code refuses what it was given: that is the client's fault, whatever it asks by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from grpc_kit import GrpcWorker, grpc_worker
from isolated_kit import files_of
from serving_kit import Home
from tensorflow_client import Client

from modelkeep.core.errors import Refused
from modelkeep.formats import adopt
from modelkeep.formats.signature import Field
from modelkeep.protocols.grpc.messages import message
from modelkeep.store.blobs import put_tree

tensor_util = Client("tensorflow.python.framework.tensor_util")
predict_pb2 = Client("tensorflow_serving.apis.predict_pb2")
prediction_service_pb2_grpc = Client("tensorflow_serving.apis.prediction_service_pb2_grpc")
_Infer = message("inference.ModelInferRequest")
_Inferred = message("inference.ModelInferResponse")

SCORE = """
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE

RAISED = {
    "value": ValueError("secret"),
    "type": TypeError("secret"),
    "key": KeyError("secret"),
    "mlflow 400": MlflowException("secret", INVALID_PARAMETER_VALUE),
    "mlflow 500": MlflowException("secret", INTERNAL_ERROR),
    "runtime": RuntimeError("secret"),
    "index": IndexError("secret"),
}

def predict(columns):
    for kind in columns["kind"]:
        if kind in RAISED:
            raise RAISED[kind]
    return [1.0] if "rows" in list(columns["kind"]) else columns["x"]
"""
FIELDS = [Field(name="x", type="float64"), Field(name="kind", type="string")]
CLIENTS = ("value", "type", "key", "mlflow 400")
OURS = ("mlflow 500", "runtime", "index")
NAMES = {400: "INVALID_ARGUMENT", 500: "INTERNAL"}
OTHERS = {grpc.StatusCode.INVALID_ARGUMENT: 400, grpc.StatusCode.INTERNAL: 500}


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GrpcWorker]:
    folder = tmp_path_factory.mktemp("unfit") / "function"
    folder.mkdir()
    (folder / "score.py").write_text(SCORE)
    sample: dict[str, list[Any]] = {"x": [1.0], "kind": ["fine"]}
    with pytest.raises(Refused) as refused:
        adopt.adopt_function(folder, "score.py", FIELDS, sample)
    digest = refused.value.hint.split()[-1]
    adopt.adopt_function(folder, "score.py", FIELDS, sample, trusted=[digest])
    home = Home(tmp_path_factory.mktemp("unfit") / "home")
    package = put_tree(home.blobs, files_of(folder))
    home.serve("open", (1, package, 1.0, "stable"), trust=[digest])
    home.serve("closed", (1, package, 1.0, "stable"), trust=[digest], deploy={"errors": "redacted"})
    with grpc_worker(home, ready=False) as found:
        found.until(lambda health: len(health["endpoints"]) == 2, 120)
        yield found


def posted(process: GrpcWorker, path: str, body: Any) -> tuple[int, str]:
    response = process.client.post(path, json=body)
    return response.status_code, response.json().get("error", "")


def called(call: Callable[[], Any]) -> tuple[int, str]:
    try:
        call()
    except grpc.RpcError as error:
        return OTHERS[error.code()], error.details()
    return 200, ""


def invocations(process: GrpcWorker, name: str, kind: str) -> tuple[int, str]:
    return posted(process, f"/endpoints/{name}/invocations", {"dataframe_records": [{"x": 1.0, "kind": kind}]})


def oip(process: GrpcWorker, name: str, kind: str) -> tuple[int, str]:
    inputs = [
        {"name": "x", "shape": [1], "datatype": "FP64", "data": [1.0]},
        {"name": "kind", "shape": [1], "datatype": "BYTES", "data": [kind]},
    ]
    return posted(process, f"/v2/models/{name}/infer", {"inputs": inputs})


def tfserving(process: GrpcWorker, name: str, kind: str) -> tuple[int, str]:
    return posted(process, f"/v1/models/{name}:predict", {"instances": [{"x": 1.0, "kind": kind}]})


def oip_grpc(process: GrpcWorker, name: str, kind: str) -> tuple[int, str]:
    request = _Infer(model_name=name)
    request.inputs.add(name="x", datatype="FP64", shape=[1]).contents.fp64_contents.append(1.0)
    request.inputs.add(name="kind", datatype="BYTES", shape=[1]).contents.bytes_contents.append(kind.encode())
    path = "/inference.GRPCInferenceService/ModelInfer"
    with process.channel() as channel:
        call = channel.unary_unary(path, _Infer.SerializeToString, _Inferred.FromString)
        return called(lambda: call(request, timeout=20))


def tfserving_grpc(process: GrpcWorker, name: str, kind: str) -> tuple[int, str]:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    request.inputs["x"].CopyFrom(tensor_util.make_tensor_proto([1.0]))
    request.inputs["kind"].CopyFrom(tensor_util.make_tensor_proto([kind]))
    with process.channel() as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        return called(lambda: stub.Predict(request, timeout=20))


DOORS = [invocations, oip, oip_grpc, tfserving, tfserving_grpc]


@pytest.mark.parametrize("ask", DOORS)
def test_the_clients_faults_are_400_and_all_others_500(process: GrpcWorker, ask: Any) -> None:
    assert ask(process, "open", "fine")[0] == 200
    told = {kind: ask(process, "open", kind) for kind in (*CLIENTS, *OURS)}
    assert {kind: code for kind, (code, _) in told.items()} == {
        **dict.fromkeys(CLIENTS, 400),
        **dict.fromkeys(OURS, 500),
    }
    assert all("could not predict these rows" in text and "secret" in text for _, text in told.values())


@pytest.mark.parametrize("ask", DOORS)
def test_redacted_they_say_nothing_of_it(process: GrpcWorker, ask: Any) -> None:
    for kind, code in (("value", 400), ("mlflow 400", 400), ("runtime", 500)):
        found, text = ask(process, "closed", kind)
        assert (found, "secret" in text, "Error" in text) == (code, False, False), text


def test_an_answer_that_cannot_be_read_is_not_the_clients_fault(process: GrpcWorker) -> None:
    body = {"dataframe_records": [{"x": 1.0, "kind": "rows"}, {"x": 2.0, "kind": "rows"}]}
    assert posted(process, "/endpoints/open/invocations", body)[0] == 500
