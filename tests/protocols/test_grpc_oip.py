"""The Open Inference door over gRPC, asked by the reference client: Triton's own."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from grpc_kit import GrpcWorker, grpc_worker
from serving_kit import Home, Made
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException


@pytest.fixture(scope="module")
def process(
    tmp_path_factory: pytest.TempPathFactory, tumour_model: Made, flight_model: Made, price_model: Made
) -> Iterator[GrpcWorker]:
    home = Home(tmp_path_factory.mktemp("grpc"))
    home.serve("tumours", (1, home.keep(tumour_model), 1.0, "stable"))
    home.serve("flights", (3, home.keep(flight_model), 1.0, "stable"))
    home.serve("prices", (2, home.keep(price_model), 1.0, "stable"), unknown_fields="ignore")
    with grpc_worker(home) as found:
        yield found


@pytest.fixture(scope="module")
def client(process: GrpcWorker) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(process.grpc) as found:
        yield found


@pytest.fixture(scope="module")
def stub(process: GrpcWorker) -> Iterator[Any]:
    with process.channel() as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def matrix(made: Made, rows: int, datatype: str = "FP64", name: str = "rows") -> list[triton.InferInput]:
    block = made.frame.iloc[:rows].to_numpy(dtype=triton_dtype(datatype))
    tensor = triton.InferInput(name, list(block.shape), datatype)
    tensor.set_data_from_numpy(block)
    return [tensor]


def triton_dtype(datatype: str) -> Any:
    return {"FP64": np.float64, "FP32": np.float32, "FP16": np.float16}[datatype]


def columns(made: Made, rows: Any) -> list[triton.InferInput]:
    found = []
    for name, column in made.frame.iloc[rows].items():
        kind = {"f": "FP64", "i": "INT64"}.get(column.dtype.kind, "BYTES")
        values = column.to_numpy()
        tensor = triton.InferInput(name, [len(values)], kind)
        tensor.set_data_from_numpy(values.astype(object) if kind == "BYTES" else values)
        found.append(tensor)
    return found


def texts(values: Any) -> list[str]:
    return [value.decode() for value in values.tolist()]


def test_what_is_served(client: triton.InferenceServerClient, flight_model: Made) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("tumours") and client.is_model_ready("tumours", "1")
    assert not client.is_model_ready("tumours", "9") and not client.is_model_ready("nobody")
    about = client.get_server_metadata(as_json=True)
    assert about["name"] == "modelkeep"
    about = client.get_model_metadata("flights", as_json=True)
    assert about["versions"] == ["3"]
    assert [(one["name"], one["datatype"], one["shape"]) for one in about["inputs"]] == [
        ("carrier", "BYTES", ["-1"]),
        ("distance", "FP64", ["-1"]),
        ("hour", "INT64", ["-1"]),
    ]
    assert [(one["name"], one["datatype"]) for one in about["outputs"]] == [
        ("label", "BYTES"),
        ("probability", "FP64"),
    ]


def test_configuration_statistics_and_repository(
    client: triton.InferenceServerClient, flight_model: Made, tumour_model: Made
) -> None:
    config = client.get_model_config("flights", as_json=True)["config"]
    assert [one["name"] for one in config["input"]] == list(flight_model.frame.columns)
    assert config["input"][0]["data_type"] == "TYPE_STRING" and config["input"][1]["optional"]
    before = client.get_inference_statistics("tumours").model_stats[0]
    client.infer("tumours", matrix(tumour_model, 7))
    after = client.get_inference_statistics("tumours", "1").model_stats[0]
    assert after.inference_count == before.inference_count + 7
    assert after.inference_stats.success.count == before.inference_stats.success.count + 1
    assert after.inference_stats.compute_infer.ns > before.inference_stats.compute_infer.ns
    assert len(client.get_inference_statistics().model_stats) == 3
    index = {one.name: one.state for one in client.get_model_repository_index().models}
    assert index == dict.fromkeys(("tumours", "flights", "prices"), "READY")
    client.load_model("flights")
    client.unload_model("flights")
    assert not client.is_model_ready("flights")
    client.load_model("flights")
    assert client.is_model_ready("flights")
    with pytest.raises(InferenceServerException, match="nobody") as error:
        client.load_model("nobody")
    assert code(error) == "StatusCode.NOT_FOUND"


@pytest.mark.parametrize("rows", [1, 2, 50, 400])
def test_every_form_of_the_rows_gives_the_models_own_answer(
    client: triton.InferenceServerClient, tumour_model: Made, rows: int
) -> None:
    assert tumour_model.probability is not None
    for inputs in (matrix(tumour_model, rows), columns(tumour_model, slice(0, rows))):
        for _ in range(2):  # the second is answered from what is remembered of the first
            found = client.infer("tumours", inputs, request_id="mine")
            assert found.as_numpy("label").tolist() == tumour_model.labels[:rows]
            assert found.as_numpy("probability").shape == (rows, 2)
            assert np.allclose(found.as_numpy("probability"), tumour_model.probability[:rows], atol=1e-5)
            response = found.get_response()
            assert (response.model_name, response.model_version, response.id) == ("tumours", "1", "mine")


@pytest.mark.parametrize("datatype", ["FP32", "FP16"])
def test_numbers_of_other_widths(client: triton.InferenceServerClient, price_model: Made, datatype: str) -> None:
    found = client.infer("prices", matrix(price_model, 20, datatype))
    tolerance = 1e-4 if datatype == "FP32" else 0.02
    assert np.allclose(found.as_numpy("prediction"), price_model.labels[:20], atol=tolerance)


def test_texts_gaps_and_chosen_outputs(client: triton.InferenceServerClient, flight_model: Made) -> None:
    wanted = [triton.InferRequestedOutput("label")]
    inputs = columns(flight_model, slice(0, 60))
    assert flight_model.frame.distance.iloc[:60].isna().any()
    found = client.infer("flights", inputs, outputs=wanted)
    assert texts(found.as_numpy("label")) == flight_model.labels[:60]
    assert found.as_numpy("probability") is None
    found = client.infer("flights", [one for one in inputs if one.name() != "distance"])
    assert found.as_numpy("label").shape == (60,)


def test_classes(client: triton.InferenceServerClient, flight_model: Made) -> None:
    wanted = [triton.InferRequestedOutput("probability", class_count=1), triton.InferRequestedOutput("label")]
    found = client.infer("flights", columns(flight_model, slice(0, 3)), outputs=wanted)
    tops = [text.split(":")[2] for text in texts(found.as_numpy("probability").reshape(-1))]
    assert tops == flight_model.labels[:3] == texts(found.as_numpy("label"))


def test_ids_and_keys(client: triton.InferenceServerClient, tumour_model: Made) -> None:
    ids = {client.infer("tumours", matrix(tumour_model, 1)).get_response().id for _ in range(20)}
    assert len(ids) == 20
    found = client.infer("tumours", matrix(tumour_model, 1), request_id="ünï☃", headers={"x-modelkeep-key": "k"})
    assert found.get_response().id == "ünï☃"


@pytest.mark.parametrize("form", ["typed", "raw"])
def test_typed_and_raw_contents_say_the_same(stub: Any, flight_model: Made, form: str) -> None:
    row = flight_model.frame.iloc[0]
    request = service_pb2.ModelInferRequest(model_name="flights")
    for name, datatype, field, value in (
        ("carrier", "BYTES", "bytes_contents", row.carrier.encode()),
        ("distance", "FP32", "fp32_contents", 500.0),
        ("hour", "INT32", "int_contents", int(row.hour)),
    ):
        one = request.inputs.add(name=name, datatype=datatype, shape=[1])
        if form == "typed":
            getattr(one.contents, field).append(value)
    if form == "raw":
        carrier = row.carrier.encode()
        request.raw_input_contents.append(len(carrier).to_bytes(4, "little") + carrier)
        request.raw_input_contents.append(np.float32(500.0).tobytes())
        request.raw_input_contents.append(np.int32(row.hour).tobytes())
    found = stub.ModelInfer(request)
    assert found.outputs[0].name == "label" and found.outputs[0].datatype == "BYTES"
    assert found.raw_output_contents[0][4:].decode() in ("late", "on time")


def test_a_stream_answers_in_order_and_goes_on_after_an_error(
    client: triton.InferenceServerClient, tumour_model: Made
) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for number in range(30):
        name = "nobody" if number == 7 else "tumours"
        client.async_stream_infer(name, matrix(tumour_model, 1 + number % 3), request_id=str(number))
    found = [answers.get(timeout=10) for _ in range(30)]
    client.stop_stream()
    assert "nobody" in str(found[7][1])
    told = [result.get_response().id for result, error in found if error is None]
    assert told == [str(number) for number in range(30) if number != 7]


def test_many_at_once_and_the_client_of_asyncio(process: GrpcWorker, tumour_model: Made) -> None:
    async def ask() -> None:
        async with triton_aio.InferenceServerClient(process.grpc) as client:
            assert await client.is_server_ready()
            found = await asyncio.gather(
                *[client.infer("tumours", matrix(tumour_model, 1 + n % 5)) for n in range(100)]
            )
            for number, one in enumerate(found):
                assert one.as_numpy("label").tolist() == tumour_model.labels[: 1 + number % 5]

    asyncio.run(ask())


def code(error: pytest.ExceptionInfo[InferenceServerException]) -> str:
    return str(error.value.status())


def test_errors_have_canonical_codes_and_the_fields_path(
    client: triton.InferenceServerClient, tumour_model: Made
) -> None:
    with pytest.raises(InferenceServerException, match="nobody") as error:
        client.infer("nobody", matrix(tumour_model, 1))
    assert code(error) == "StatusCode.NOT_FOUND"
    with pytest.raises(InferenceServerException, match="'9'") as error:
        client.infer("tumours", matrix(tumour_model, 1), model_version="9")
    assert code(error) == "StatusCode.NOT_FOUND"
    block = np.ones((2, 30))
    block[1, 0] = np.nan
    tensor = triton.InferInput("rows", [2, 30], "FP64")
    tensor.set_data_from_numpy(block)
    with pytest.raises(InferenceServerException, match=r"inputs\.mean radius\[1\]") as error:
        client.infer("tumours", [tensor])
    assert code(error) == "StatusCode.INVALID_ARGUMENT"
    with pytest.raises(InferenceServerException, match=r"outputs\[0\]\.name") as error:
        client.infer("tumours", matrix(tumour_model, 1), outputs=[triton.InferRequestedOutput("lable")])
    assert code(error) == "StatusCode.INVALID_ARGUMENT"
    with pytest.raises(InferenceServerException, match="shared memory") as error:
        client.get_system_shared_memory_status()
    assert code(error) == "StatusCode.UNIMPLEMENTED"


def test_the_deadline_is_honoured(client: triton.InferenceServerClient, stub: Any, tumour_model: Made) -> None:
    assert client.infer("tumours", matrix(tumour_model, 1), client_timeout=5).as_numpy("label").tolist() == [
        tumour_model.labels[0]
    ]
    with pytest.raises(InferenceServerException) as error:
        client.infer("tumours", matrix(tumour_model, 1), timeout=1)  # a microsecond, as a parameter
    assert code(error) == "StatusCode.DEADLINE_EXCEEDED"


def wrong(**fields: Any) -> Any:
    tensor = {"name": "a", "datatype": "FP64", "shape": [1], **fields.pop("tensor", {})}
    return service_pb2.ModelInferRequest(model_name="prices", inputs=[tensor], **fields)


@pytest.mark.parametrize(
    ("request_", "path"),
    [
        (wrong(), r"inputs\[0\]\.contents"),
        (wrong(tensor={"datatype": "FP17"}), "FP17"),
        (wrong(tensor={"datatype": ""}), "datatype"),
        (wrong(tensor={"datatype": "FP16"}), "only be raw"),
        (wrong(raw_input_contents=[b"1234"]), r"inputs\[0\]"),
        (wrong(raw_input_contents=[b"12345678"] * 2), "raw_input_contents"),
        (wrong(tensor={"shape": [-1]}, raw_input_contents=[b"12345678"]), "shape"),
        (wrong(tensor={"shape": [2**62, 2**62]}, raw_input_contents=[b"12345678"]), "shape"),
        (wrong(tensor={"shape": []}, raw_input_contents=[b"12345678"]), "shape"),
        (wrong(tensor={"shape": [0]}, raw_input_contents=[b""]), "inputs"),
        (wrong(tensor={"contents": {"fp32_contents": [1.0]}}), "fp32_contents"),
        (wrong(tensor={"datatype": "BYTES", "contents": {"bytes_contents": [b"\xff"]}}), "bytes_contents"),
        (
            wrong(tensor={"contents": {"fp64_contents": [1.0]}}, raw_input_contents=[b"12345678"]),
            r"inputs\[0\].contents",
        ),
        (
            wrong(
                tensor={"name": "rows", "shape": [1, 3]},
                raw_input_contents=[bytes(24)],
                parameters={"priority": {"string_param": "high"}},
            ),
            "priority",
        ),
        (service_pb2.ModelInferRequest(model_name="prices"), "inputs"),
    ],
)
def test_wrong_requests_are_invalid_arguments(stub: Any, request_: Any, path: str) -> None:
    with pytest.raises(grpc.RpcError, match=path) as error:
        stub.ModelInfer(request_)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_bytes_that_are_no_message(process: GrpcWorker) -> None:
    with process.channel() as channel:
        for data in (b"\xff" * 20, b"\x0a\x7fabc", bytes(200)):
            with pytest.raises(grpc.RpcError) as error:
                channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(data, timeout=5)
            assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
