"""The Open Inference door over real HTTP: shapes, datatypes, metadata, and every kind of wrong request."""

from __future__ import annotations

import json
import socket
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving_kit import Made, Worker, named, tensor


def output(response: Any, name: str) -> dict[str, Any]:
    return next(one for one in response.json()["outputs"] if one["name"] == name)


@pytest.mark.parametrize("rows", [1, 2, 50])
@pytest.mark.parametrize("form", ["flat", "nested", "columns", "column vectors", "shuffled"])
def test_every_form_of_the_rows_gives_the_models_own_answer(
    server: Worker, tumour_model: Made, rows: int, form: str
) -> None:
    made = tumour_model
    if form in ("flat", "nested"):
        request = tensor(made, range(rows))
        if form == "nested":
            request["inputs"][0]["data"] = made.frame.iloc[:rows].to_numpy().tolist()
    else:
        request = named(made, range(rows))
        if form == "column vectors":
            for one in request["inputs"]:
                one["shape"] = [rows, 1]
                one["data"] = [[value] for value in one["data"]]
        elif form == "shuffled":
            request["inputs"].reverse()
    response = server.infer("tumours", request)
    assert response.status_code == 200, response.text
    assert output(response, "label") == {
        "name": "label",
        "datatype": "INT64",
        "shape": [rows],
        "data": made.labels[:rows],
    }
    probability = output(response, "probability")
    assert (probability["datatype"], probability["shape"]) == ("FP64", [rows, 2])
    assert made.probability is not None
    assert np.allclose(np.reshape(probability["data"], (rows, 2)), made.probability[:rows], atol=1e-5)
    assert response.json()["model_version"] == "1"


def test_ids_outputs_and_parameters(server: Worker, flight_model: Made) -> None:
    request = {
        **named(flight_model, [0, 1]),
        "id": 'a "quoted" ☃ id',
        "parameters": {"anything": 1},
        "outputs": [{"name": "label"}],
    }
    response = server.infer("flights", request)
    assert response.json()["id"] == 'a "quoted" ☃ id'
    assert [one["name"] for one in response.json()["outputs"]] == ["label"]
    assert output(response, "label")["data"] == flight_model.labels[:2]
    assert output(response, "label")["datatype"] == "BYTES"
    ids = {server.infer("flights", named(flight_model, [0])).json()["id"] for _ in range(50)}
    assert len(ids) == 50
    response = server.infer("flights", {**request, "outputs": [{"name": "lable"}]})
    assert response.status_code == 400
    assert response.json()["problems"][0]["path"] == "outputs[0].name"


def test_optional_inputs_may_be_null_or_left_out(server: Worker, flight_model: Made) -> None:
    gap = int(np.flatnonzero(flight_model.frame.distance.isna())[0])
    request = named(flight_model, [gap])
    response = server.infer("flights", request)
    assert output(response, "label")["data"] == [flight_model.labels[gap]]
    request["inputs"] = [one for one in request["inputs"] if one["name"] != "distance"]
    response = server.infer("flights", request)
    assert output(response, "label")["data"] == [flight_model.labels[gap]]


def test_unknown_inputs_are_refused_or_ignored_as_set(
    server: Worker, flight_model: Made, price_model: Made
) -> None:
    extra = {"name": "colour", "shape": [1], "datatype": "BYTES", "data": ["red"]}
    request = named(flight_model, [0])
    request["inputs"].append(extra)
    response = server.infer("flights", request)
    assert response.status_code == 400
    assert response.json()["problems"][0]["path"] == "inputs[3].name"
    request = named(price_model, [0])
    request["inputs"].append(extra)
    response = server.infer("prices", request)
    assert np.allclose(output(response, "prediction")["data"], price_model.labels[:1])


@pytest.mark.parametrize(
    "datatype", ["FP16", "FP32", "FP64", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT64"]
)
def test_numbers_of_every_datatype(server: Worker, flight_model: Made, datatype: str) -> None:
    request = named(flight_model, [0])
    request["inputs"][2]["datatype"] = datatype
    response = server.infer("flights", request)
    assert output(response, "label")["data"] == flight_model.labels[:1]


WRONG: dict[str, tuple[Any, str]] = {
    "a value of another type": (lambda t: t[2].update(data=["noon"]), "inputs[2].data[0]"),
    "a fraction for a whole number": (lambda t: t[2].update(data=[1.5], datatype="FP64"), "inputs.hour[0]"),
    "more than the datatype holds": (lambda t: t[2].update(data=[300], datatype="INT8"), "inputs[2].data[0]"),
    "more than 64 bits": (lambda t: t[2].update(data=[10**30]), "inputs[2].data[0]"),
    "more than a double": (lambda t: t[1].update(data=[10**400]), "inputs.distance[0]"),
    "an unknown datatype": (lambda t: t[1].update(datatype="FP128"), "inputs[1].datatype"),
    "an unfit datatype": (lambda t: t[0].update(datatype="FP32", data=[1.0]), "inputs[0].datatype"),
    "a null where one is required": (lambda t: t[0].update(data=[None]), "inputs.carrier[0]"),
    "too few values": (lambda t: t[1].update(data=[]), "inputs[1].data"),
    "too many values": (lambda t: t[1].update(data=[1.0, 2.0]), "inputs[1].data"),
    "another number of rows": (lambda t: t[1].update(data=[1.0, 2.0], shape=[2]), "inputs[1].shape"),
    "an absurd shape": (lambda t: t[1].update(shape=[10**12]), "inputs[1].shape"),
    "a negative shape": (lambda t: t[1].update(shape=[-1]), "inputs[1].shape"),
    "a shape that is no list": (lambda t: t[1].update(shape="1"), "inputs[1].shape"),
    "a list where a value belongs": (lambda t: t[1].update(data=[[[1.0]]]), "inputs.distance[0]"),
    "the same input twice": (lambda t: t.append(dict(t[1])), "inputs[3].name"),
    "a missing input": (lambda t: t.pop(0), "inputs.carrier"),
    "no inputs": (lambda t: t.clear(), "inputs.carrier"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_named_by_its_path(server: Worker, flight_model: Made, wrong: str) -> None:
    change, path = WRONG[wrong]
    request = named(flight_model, [0])
    change(request["inputs"])
    response = server.infer("flights", request)
    assert response.status_code == 400, response.text
    assert path in [problem["path"] for problem in response.json()["problems"]]
    assert response.json()["error"]


def test_metadata_and_health(server: Worker, flight_model: Made) -> None:
    get = server.client.get
    assert get("/v2").json()["name"] == "modelkeep"
    assert get("/v2/health/live").status_code == get("/v2/health/ready").status_code == 200
    about = get("/v2/models/flights").json()
    assert [(one["name"], one["datatype"]) for one in about["inputs"]] == [
        ("carrier", "BYTES"),
        ("distance", "FP64"),
        ("hour", "INT64"),
    ]
    assert about["versions"] == ["3"]
    assert get("/v2/models/flights/versions/3/ready").status_code == 200
    assert get("/v2/models/flights/versions/champion").json()["parameters"]["version"] == "3"
    for path in ("/v2/models/nothing", "/v2/models/flights/versions/4/ready", "/v2/models/flights/versions/x"):
        assert get(path).status_code == 404, path
    assert server.infer("nothing", named(flight_model, [0])).status_code == 404
    assert get("/v2/models/flights/infer").status_code == 405


texts = st.text(max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts | st.just(10**400),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
tensors = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["carrier", "distance", "hour", "rows"]) | texts,
        "shape": st.lists(st.integers(-2, 4) | st.integers(), max_size=3) | json_values,
        "datatype": st.sampled_from(["FP64", "FP32", "INT64", "INT8", "BYTES", "BOOL"]) | texts,
        "data": st.lists(json_values, max_size=6) | json_values,
    }
)
requests = st.fixed_dictionaries({"inputs": st.lists(tensors, max_size=5)}, optional={"id": json_values})
bodies = st.one_of(
    requests.map(lambda r: json.dumps(r).encode()),
    json_values.map(lambda v: json.dumps(v).encode()),
    st.binary(max_size=200),
    st.sampled_from([b"", b"[" * 100_000, b'{"inputs":' * 5_000, b"{", b'"\xff"', b"NaN", b'{"inputs": [NaN]}']),
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=bodies, name=st.sampled_from(["flights", "tumours", "prices"]))
def test_no_body_is_ever_our_fault(server: Worker, body: bytes, name: str) -> None:
    response = server.client.post(
        f"/v2/models/{name}/infer", content=body, headers={"content-type": "application/json"}
    )
    assert response.status_code in (200, 400), (response.status_code, response.text)
    assert json.loads(response.content)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cut=st.integers(0, 400),
    pieces=st.integers(1, 5),
    junk=st.binary(max_size=30),
    length=st.sampled_from([None, b"-1", b"99999999999999", b"12", b"x", b"0"]),
)
def test_torn_and_lying_requests_end_in_an_answer_or_a_close(
    server: Worker, flight_model: Made, cut: int, pieces: int, junk: bytes, length: bytes | None
) -> None:
    body = json.dumps(named(flight_model, [0])).encode()
    head = b"POST /v2/models/flights/infer HTTP/1.1\r\nhost: x\r\ncontent-length: %s\r\n\r\n"
    data = (head % (length if length is not None else b"%d" % len(body)) + body)[: cut + 60] + junk
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        step = max(1, len(data) // pieces)
        try:
            for start in range(0, len(data), step):
                connection.sendall(data[start : start + step])
            connection.shutdown(socket.SHUT_WR)
            reply = b"".join(iter(lambda: connection.recv(65536), b""))
        except OSError:  # closed while we were still sending
            reply = b""
    assert reply == b"" or reply.startswith((b"HTTP/1.1 200", b"HTTP/1.1 4")), reply[:100]


def test_pipelined_requests_are_answered_in_order(server: Worker, tumour_model: Made) -> None:
    def raw(row: int) -> bytes:
        body = json.dumps({**tensor(tumour_model, [row]), "id": f"n{row}"}).encode()
        return (
            b"POST /v2/models/tumours/infer HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body
        )

    get = b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n"
    last = raw(99).replace(b"host: x\r\n", b"host: x\r\nconnection: close\r\n")
    data = b"".join(raw(row) + (get if row % 3 == 0 else b"") for row in range(20)) + last
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(data)
        reply = b"".join(iter(lambda: connection.recv(65536), b""))
    order = [part.split(b'"')[0] for part in reply.split(b'"id":"')[1:]]
    assert order == [f"n{row}".encode() for row in [*range(20), 99]]
    assert reply.count(b'{"live":true}') == 7


def test_bodies_beyond_the_limit_are_413(server: Worker) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(
            b"POST /v2/models/tumours/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n{"
        )
        assert connection.recv(65536).startswith(b"HTTP/1.1 413")


def test_large_batches(server: Worker, tumour_model: Made) -> None:
    rows = [n % 569 for n in range(20_000)]
    response = server.infer("tumours", tensor(tumour_model, rows))
    assert output(response, "label")["data"] == [tumour_model.labels[row] for row in rows]
