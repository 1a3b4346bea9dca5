"""Binary tensors over real HTTP, with the reference client as it is and with requests it would never send."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tritonclient.http as triton
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving_kit import Made, Worker, named, tensor
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from modelkeep.core.errors import Invalid
from modelkeep.protocols.oip import binary

LENGTH = "Inference-Header-Content-Length"


@pytest.fixture(scope="module")
def client(server: Worker) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.url.removeprefix("http://")) as found:
        yield found


def tensor_of(name: str, values: np.ndarray, datatype: str, binary: bool = True) -> triton.InferInput:
    given = triton.InferInput(name, values.shape, datatype)
    given.set_data_from_numpy(values, binary_data=binary)
    return given


def columns(made: Made, rows: int, *, numbers: str = "", column: bool = False) -> list[triton.InferInput]:
    """One tensor per input; all numbers of one datatype if it is named."""
    found = []
    for name, values in made.frame.iloc[:rows].items():
        kind = values.dtype.kind
        datatype = "BYTES" if kind == "O" else numbers or {"f": "FP64", "i": "INT64"}[kind]
        array = values.to_numpy(object if kind == "O" else triton_to_np_dtype(datatype))
        found.append(tensor_of(str(name), array.reshape(-1, 1) if column else array, datatype))
    return found


def matrix(made: Made, rows: int, datatype: str, name: str = "input") -> triton.InferInput:
    return tensor_of(name, made.frame.iloc[:rows].to_numpy(triton_to_np_dtype(datatype)), datatype)


@pytest.mark.parametrize("rows", [1, 2, 500])
@pytest.mark.parametrize(
    "form", ["tensors", "column vectors", "shuffled", "float32", "matrix", "matrix of float32"]
)
def test_the_reference_client_gets_the_models_own_answer(
    client: triton.InferenceServerClient, tumour_model: Made, rows: int, form: str
) -> None:
    made = tumour_model
    match form:
        case "matrix" | "matrix of float32":
            given = [matrix(made, rows, "FP64" if form == "matrix" else "FP32")]
        case "float32":
            given = columns(made, rows, numbers="FP32")
        case _:
            given = columns(made, rows, column=form == "column vectors")
            if form == "shuffled":
                given.reverse()
    result = client.infer("tumours", given)
    assert result.get_response()["model_version"] == "1"
    assert result.as_numpy("label").tolist() == made.labels[:rows]
    assert result.as_numpy("probability").shape == (rows, 2)
    assert made.probability is not None
    assert np.allclose(result.as_numpy("probability"), made.probability[:rows], atol=1e-4)


@pytest.mark.parametrize("rows", [1, 400])
def test_texts_gaps_and_whole_numbers_in_and_texts_out(
    client: triton.InferenceServerClient, flight_model: Made, rows: int
) -> None:
    result = client.infer("flights", columns(flight_model, rows))
    assert result.as_numpy("label").tolist() == [label.encode() for label in flight_model.labels[:rows]]
    assert flight_model.probability is not None
    assert np.allclose(result.as_numpy("probability"), flight_model.probability[:rows], atol=1e-5)


@pytest.mark.parametrize(
    "datatype", ["INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "FP16", "FP32", "FP64"]
)
def test_a_whole_number_of_every_datatype(
    client: triton.InferenceServerClient, flight_model: Made, datatype: str
) -> None:
    given = columns(flight_model, 50)
    hours = flight_model.frame.hour.to_numpy(triton_to_np_dtype(datatype))[:50]
    given[2] = tensor_of("hour", hours, datatype)
    result = client.infer("flights", given)
    assert result.as_numpy("label").tolist() == [label.encode() for label in flight_model.labels[:50]]


@pytest.mark.parametrize("rows", [1, 3])
def test_bf16_and_bool_count_as_the_numbers_they_are(
    client: triton.InferenceServerClient, price_model: Made, rows: int
) -> None:
    a = np.array([0.5, -2.0, 3.0])[:rows]
    b = np.array([True, False, True])[:rows]
    c = np.array([1.0, 0.0, -1.0])[:rows]
    plain = [tensor_of(name, x.astype(float), "FP64") for name, x in zip("abc", (a, b, c), strict=True)]
    odd = [
        tensor_of("a", a.astype(ml_dtypes.bfloat16), "BF16"),
        tensor_of("b", b, "BOOL"),
        tensor_of("c", c.astype(np.int8), "INT8"),
    ]
    wanted = client.infer("prices", plain).as_numpy("prediction")
    assert client.infer("prices", odd).as_numpy("prediction").tolist() == wanted.tolist()


def test_json_and_binary_tensors_in_one_request(client: triton.InferenceServerClient, flight_model: Made) -> None:
    given = columns(flight_model, 5)
    given[0] = tensor_of("carrier", flight_model.frame.carrier.to_numpy(object)[:5], "BYTES", binary=False)
    result = client.infer("flights", given)
    assert result.as_numpy("label").tolist() == [label.encode() for label in flight_model.labels[:5]]


@pytest.mark.parametrize("binary", [True, False])
def test_each_output_comes_as_it_was_asked_for(
    client: triton.InferenceServerClient, flight_model: Made, binary: bool
) -> None:
    wanted = [
        triton.InferRequestedOutput("probability", binary_data=binary),
        triton.InferRequestedOutput("label", binary_data=not binary),
    ]
    result = client.infer("flights", columns(flight_model, 3), outputs=wanted, request_id="mine")
    response = result.get_response()
    assert response["id"] == "mine"
    assert [one["name"] for one in response["outputs"]] == ["probability", "label"]
    assert ["data" in one for one in response["outputs"]] == [not binary, binary]
    assert result.as_numpy("probability").shape == (3, 2)
    labels = [label if isinstance(label, str) else label.decode() for label in result.as_numpy("label").tolist()]
    assert labels == flight_model.labels[:3]


def test_json_in_and_binary_out(server: Worker, tumour_model: Made) -> None:
    request = {**tensor(tumour_model, range(4)), "parameters": {"binary_data_output": True}}
    response = server.infer("tumours", request)
    assert response.headers["content-type"] == "application/octet-stream"
    head = json.loads(response.content[: int(response.headers[LENGTH])])
    assert head["outputs"][0]["parameters"]["binary_data_size"] == 32
    raw = response.content[int(response.headers[LENGTH]) :]
    assert np.frombuffer(raw, "<i8", 4).tolist() == tumour_model.labels[:4]
    request["outputs"] = [{"name": "label", "parameters": {"binary_data": False}}]
    assert server.infer("tumours", request).json()["outputs"][0]["data"] == tumour_model.labels[:4]


@pytest.mark.parametrize("binary", [True, False])
def test_the_classes_with_the_highest_values(
    client: triton.InferenceServerClient, flight_model: Made, binary: bool
) -> None:
    wanted = [triton.InferRequestedOutput("probability", binary_data=binary, class_count=5)]
    found = client.infer("flights", columns(flight_model, 4), outputs=wanted).as_numpy("probability")
    assert found.shape == (4, 2)
    for label, texts in zip(flight_model.labels, found.tolist(), strict=False):
        value, index, name = (texts[0].decode() if binary else texts[0]).split(":")
        assert float(value) >= 0.5
        assert (name, int(index)) == (label, ["late", "on time"].index(label))


def test_parallel_requests_of_many_forms_get_their_own_rows(server: Worker, tumour_model: Made) -> None:
    made = tumour_model
    with triton.InferenceServerClient(server.url.removeprefix("http://"), concurrency=8) as client:
        waiting = []
        for start in range(120):
            part = Made(made.files, made.frame.iloc[start:], [], None)
            rows = 1 + start % 3
            given = [matrix(part, rows, "FP32")] if start % 2 else columns(part, rows)
            waiting.append((start, rows, client.async_infer("tumours", given)))
        for start, rows, one in waiting:
            assert one.get_result().as_numpy("label").tolist() == made.labels[start : start + rows]


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compressed_requests(client: triton.InferenceServerClient, tumour_model: Made, coding: str) -> None:
    result = client.infer(
        "tumours",
        [matrix(tumour_model, 3, "FP64")],
        request_compression_algorithm=coding,
        response_compression_algorithm=coding,
    )
    assert result.as_numpy("label").tolist() == tumour_model.labels[:3]


def test_what_is_not_the_coding_it_says(server: Worker, tumour_model: Made) -> None:
    body = json.dumps(tensor(tumour_model, [0])).encode()

    def status(content: bytes, coding: str) -> int:
        headers = {"content-encoding": coding, "content-type": "application/json"}
        return server.client.post("/v2/models/tumours/infer", content=content, headers=headers).status_code

    assert status(gzip.compress(body), "gzip") == 200
    assert status(zlib.compress(body)[2:-4], "deflate") == 200
    assert status(gzip.compress(gzip.compress(body)), "gzip, gzip") == 200
    assert status(body, "identity") == 200
    assert status(body, "gzip") == status(gzip.compress(body)[:-9], "gzip") == 400
    assert status(body, "br") == 415
    assert status(gzip.compress(bytes(80 << 20)), "gzip") == 413


@pytest.fixture(scope="module")
def whole(flight_model: Made) -> tuple[dict[str, Any], bytes]:
    """A right request: its head and its tensors."""
    body, length = triton.InferenceServerClient.generate_request_body(columns(flight_model, 3))
    return json.loads(body[:length]), body[length:]


def posted(server: Worker, head: Any, raw: bytes, name: str = "flights", length: Any = None) -> Any:
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    headers = {LENGTH: str(len(text) if length is None else length)}
    return server.client.post(f"/v2/models/{name}/infer", content=text + raw, headers=headers)


def changed(head: dict[str, Any], place: int, **fields: Any) -> dict[str, Any]:
    made = json.loads(json.dumps(head))
    made["inputs"][place].update(fields)
    found: dict[str, Any] = made
    return found


WRONG: dict[str, tuple[int, dict[str, Any], str]] = {
    "too many bytes": (1, {"parameters": {"binary_data_size": 32}}, "inputs[1]"),
    "too few bytes": (1, {"parameters": {"binary_data_size": 23}}, "inputs[1]"),
    "negative bytes": (1, {"parameters": {"binary_data_size": -8}}, "inputs[1].parameters.binary_data_size"),
    "no number of bytes": (1, {"parameters": {"binary_data_size": "24"}}, "inputs[1].parameters.binary_data_size"),
    "truth for bytes": (1, {"parameters": {"binary_data_size": True}}, "inputs[1].parameters.binary_data_size"),
    "neither data nor bytes": (1, {"parameters": {}}, "inputs[1]"),
    "both data and bytes": (1, {"data": [1.0, 2.0, 3.0]}, "inputs[1]"),
    "a negative shape": (1, {"shape": [-3]}, "inputs[1].shape"),
    "a huge shape": (1, {"shape": [2**40, 2**40]}, "inputs[1].shape"),
    "a shape of more": (1, {"shape": [4]}, "inputs[1]"),
    "an empty shape": (1, {"shape": []}, "inputs[1]"),
    "no rows": (1, {"shape": [0], "parameters": {"binary_data_size": 0}}, "inputs"),
    "a square of texts": (0, {"shape": [3, 3]}, "inputs[0]"),
    "an unknown datatype": (1, {"datatype": "FP128"}, "inputs[1].datatype"),
    "an unfit datatype": (1, {"datatype": "BYTES"}, "inputs[1]"),
    "another unfit datatype": (0, {"datatype": "UINT8"}, "inputs[0]"),
    "a stranger": (2, {"name": "colour"}, "inputs[2].name"),
    "the same twice": (2, {"name": "distance", "datatype": "FP64"}, "inputs[2].name"),
    "shared memory": (
        1,
        {"parameters": {"shared_memory_region": "x"}},
        "inputs[1].parameters.shared_memory_region",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_named(server: Worker, whole: tuple[dict[str, Any], bytes], wrong: str) -> None:
    place, fields, path = WRONG[wrong]
    head, raw = whole
    response = posted(server, changed(head, place, **fields), raw)
    assert response.status_code == 400, response.text
    assert any(problem["path"].startswith(path) for problem in response.json()["problems"]), response.text


def test_bytes_that_do_not_add_up(server: Worker, whole: tuple[dict[str, Any], bytes]) -> None:
    head, raw = whole
    short, long = posted(server, head, raw[:-1]), posted(server, head, raw + b"\0")
    assert (short.status_code, long.status_code) == (400, 400)
    assert short.json()["problems"][0] == {"path": "inputs[2]", "message": "ends 1 bytes after the body does"}
    assert "1 more" in long.json()["error"]
    for length in (10**9, -1, "x", "1.5", "", "9" * 40):
        response = posted(server, head, raw, length=length)
        assert response.status_code == 400
        assert response.json()["problems"][0]["path"] == LENGTH
    assert posted(server, b"{", raw).status_code == 400
    assert posted(server, b"\xff", raw).status_code == 400


@pytest.mark.parametrize(
    ("name", "value"), [("timeout", -1), ("timeout", "soon"), ("priority", 1.5), ("binary_data_output", 1)]
)
def test_parameters_of_wrong_types(server: Worker, tumour_model: Made, name: str, value: Any) -> None:
    response = server.infer("tumours", {**tensor(tumour_model, [0]), "parameters": {name: value}})
    assert response.status_code == 400
    assert response.json()["problems"][0]["path"] == f"parameters.{name}"


@pytest.mark.parametrize("value", [-1, 1.5, "2", True])
def test_numbers_of_classes_that_are_none(server: Worker, tumour_model: Made, value: Any) -> None:
    outputs = [{"name": "probability", "parameters": {"classification": value}}]
    response = server.infer("tumours", {**tensor(tumour_model, [0]), "outputs": outputs})
    assert response.status_code == 400
    assert response.json()["problems"][0]["path"] == "outputs[0].parameters.classification"


def test_values_that_are_no_numbers_are_named_by_row(
    client: triton.InferenceServerClient, tumour_model: Made
) -> None:
    values = tumour_model.frame.iloc[:3].to_numpy(float).copy()
    values[1, 4] = np.nan
    values[2, 0] = np.inf
    with pytest.raises(InferenceServerException) as found:
        client.infer("tumours", [tensor_of("x", values, "FP64")])
    assert found.value.status() == "400"
    first, fifth = tumour_model.frame.columns[[0, 4]]
    assert f"inputs.{first}[2]" in str(found.value)
    assert f"inputs.{fifth}[1]" in str(found.value)


def test_optional_gaps_and_whole_numbers_are_checked(
    client: triton.InferenceServerClient, flight_model: Made
) -> None:
    given = columns(flight_model, 2)
    given[1] = tensor_of("distance", np.array([np.nan, 5.0]), "FP64")
    assert len(client.infer("flights", given).as_numpy("label")) == 2
    assert len(client.infer("flights", [given[2], given[0]]).as_numpy("label")) == 2
    given[2] = tensor_of("hour", np.array([1.0, 1.5]), "FP64")
    with pytest.raises(InferenceServerException, match=r"hour\[1\]"):
        client.infer("flights", given)


def test_unknown_tensors_are_refused_or_ignored_as_set(
    server: Worker, price_model: Made, flight_model: Made
) -> None:
    extra = tensor_of("colour", np.array(["red"], dtype=object), "BYTES")
    with triton.InferenceServerClient(server.url.removeprefix("http://")) as client:
        found = client.infer("prices", [extra, *columns(price_model, 1)]).as_numpy("prediction")
        assert np.allclose(found, price_model.labels[:1])
        with pytest.raises(InferenceServerException, match="colour"):
            client.infer("flights", [extra, *columns(flight_model, 1)])


HEADS = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["carrier", "distance", "hour", "all"]),
        "shape": st.lists(st.integers(-1, 4) | st.integers(), max_size=3),
        "datatype": st.sampled_from(["FP64", "FP32", "INT64", "BOOL", "BYTES", "BF16", "x"]),
    },
    optional={
        "data": st.lists(st.none() | st.integers() | st.text(max_size=3), max_size=3),
        "parameters": st.dictionaries(
            st.sampled_from(["binary_data_size", "other"]), st.integers(-1, 40) | st.text(max_size=2), max_size=2
        ),
    },
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tensors=st.lists(HEADS, max_size=4),
    raw=st.binary(max_size=80),
    off=st.sampled_from([0, 0, 0, 1, -1, 1000]),
    name=st.sampled_from(["flights", "tumours", "prices"]),
)
def test_no_bytes_are_ever_our_fault(
    server: Worker, tensors: list[dict[str, Any]], raw: bytes, off: int, name: str
) -> None:
    head = json.dumps({"inputs": tensors}).encode()
    response = posted(server, head, raw, name, max(0, len(head) + off))
    assert response.status_code in (200, 400), (response.status_code, response.text)


def test_named_and_matrix_json_still_agree(server: Worker, tumour_model: Made) -> None:
    """A matrix under an input's own name is one as long as it is as wide as all inputs."""
    first = str(tumour_model.frame.columns[0])
    under = server.infer("tumours", tensor(tumour_model, range(3), name=first)).json()["outputs"]
    assert under == server.infer("tumours", named(tumour_model, range(3))).json()["outputs"]


HEAD_TAILS = [
    b',"inputs":[]}',
    b', "inputs": [] }',
    b',"inputs":[],"id":"last"}',
    b',"inputs":[],"\\u0069d":"last"}',
    b',"inputs":[],"parameters":{"note":"\\"id\\""}}',
    b"}",
    b',"inputs":[]',
]


@given(
    asked=st.lists(
        st.tuples(
            st.sampled_from([b'{"id": ', b'{"id":', b'{ "id":']),
            st.text(max_size=4) | st.sampled_from(["a", "last", 'q"', "\\", "é"]),
            st.booleans(),
            st.sampled_from(HEAD_TAILS),
        ),
        max_size=12,
    )
)
def test_remembered_heads_say_what_they_say(asked: list[tuple[bytes, str, bool, bytes]]) -> None:
    """With heads remembered by what follows the id, each is still read as a JSON parser reads it."""
    heads = binary.Heads()
    for opening, id, ascii_only, tail in asked:
        head = opening + json.dumps(id, ensure_ascii=ascii_only).encode("utf-8", "replace") + tail
        try:
            right = json.loads(head)
        except ValueError:
            right = {}
        if "inputs" not in right:
            with pytest.raises(Invalid):
                heads.decode(head)
            continue
        request, found = heads.decode(head)
        assert (found, request.parameters) == (right["id"], right.get("parameters"))


def test_requests_with_ids_of_their_own_get_their_own_answers(
    client: triton.InferenceServerClient, tumour_model: Made
) -> None:
    for row in range(20):
        part = Made(tumour_model.files, tumour_model.frame.iloc[row:], [], None)
        result = client.infer("tumours", [matrix(part, 1, "FP64")], request_id=f"patient {row % 7}")
        assert result.get_response()["id"] == f"patient {row % 7}"
        assert result.as_numpy("label").tolist() == [tumour_model.labels[row]]
