"""TensorFlow Serving over REST: formats, status, metadata, and its own words for what is wrong.

Requests are those of https://www.tensorflow.org/tfx/serving/api_rest.
"""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving_kit import Home, Made, Worker, worker


def ask(server: Worker, path: str, body: Any, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return server.client.post(f"/v1/models/{path}", content=content, headers=headers)


def records(made: Made, rows: int) -> list[dict[str, Any]]:
    found = made.frame.iloc[:rows].to_dict("records")
    return [{name: None if value != value else value for name, value in row.items()} for row in found]


def columns(made: Made, rows: int) -> dict[str, Any]:
    found = records(made, rows)
    return {name: [row[name] for row in found] for name in made.frame.columns}


@pytest.mark.parametrize("rows", [1, 3, 200])
def test_rows_and_columns_give_the_models_own_answer(server: Worker, tumour_model: Made, rows: int) -> None:
    made = tumour_model
    assert made.probability is not None
    matrix = made.frame.iloc[:rows].to_numpy().tolist()
    for body in ({"instances": records(made, rows)}, {"instances": matrix, "signature_name": "serving_default"}):
        response = ask(server, "tumours:predict", body)
        assert response.status_code == 200, response.text
        found = response.json()["predictions"]
        assert [one["label"] for one in found] == made.labels[:rows]
        assert np.allclose([one["probability"] for one in found], made.probability[:rows], atol=1e-5)
    for body in ({"inputs": columns(made, rows)}, {"inputs": matrix}):
        response = ask(server, "tumours:predict", body)
        assert response.status_code == 200, response.text
        found = response.json()["outputs"]
        assert found["label"] == made.labels[:rows]
        assert np.allclose(found["probability"], made.probability[:rows], atol=1e-5)


def test_one_output_has_no_name(server: Worker, price_model: Made) -> None:
    found = ask(server, "prices:predict", {"instances": records(price_model, 4)}).json()
    assert np.allclose(found["predictions"], price_model.labels[:4])
    found = ask(server, "prices:predict", {"inputs": columns(price_model, 4)}).json()
    assert np.allclose(found["outputs"], price_model.labels[:4])


def test_texts_gaps_base64_and_values_in_lists(server: Worker, flight_model: Made) -> None:
    rows = records(flight_model, 40)
    expected = flight_model.labels[:40]
    coded = [{**row, "carrier": {"b64": base64.b64encode(row["carrier"].encode()).decode()}} for row in rows]
    listed = [{name: [value] for name, value in row.items()} for row in rows]
    for given_rows in (rows, coded, listed):
        found = ask(server, "flights:predict", {"instances": given_rows}).json()["predictions"]
        assert [one["label"] for one in found] == expected
    without = [{"carrier": row["carrier"], "hour": row["hour"]} for row in rows]
    assert ask(server, "flights:predict", {"instances": without}).status_code == 200


def test_classify_and_regress(server: Worker, flight_model: Made, price_model: Made) -> None:
    assert flight_model.probability is not None
    rows = records(flight_model, 5)
    body = {"signature_name": "classification", "examples": rows}
    found = ask(server, "flights:classify", body).json()["result"]
    assert [[label for label, _ in one] for one in found] == [["late", "on time"]] * 5
    assert np.allclose([[score for _, score in one] for one in found], flight_model.probability[:5], atol=1e-5)
    shared = {"context": {"carrier": "AA"}, "examples": [{"distance": 500.0, "hour": 3}, {"hour": 20}]}
    alone = {"examples": [{"carrier": "AA", "distance": 500.0, "hour": 3}, {"carrier": "AA", "hour": 20}]}
    assert ask(server, "flights:classify", shared).json() == ask(server, "flights:classify", alone).json()
    found = ask(server, "prices:regress", {"examples": records(price_model, 5)}).json()["result"]
    assert np.allclose(found, price_model.labels[:5])
    response = ask(server, "prices:classify", {"examples": records(price_model, 1)})
    assert (response.status_code, "classification" in response.json()["error"]) == (400, True)
    response = ask(server, "flights:regress", {"examples": rows})
    assert (response.status_code, "regression" in response.json()["error"]) == (400, True)


def test_status_and_metadata(server: Worker) -> None:
    version = {"version": "3", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    for path in ("flights", "flights/versions/3", "flights/labels/champion"):
        assert server.client.get(f"/v1/models/{path}").json() == {"model_version_status": [version]}
    found = server.client.get("/v1/models/flights/versions/3/metadata").json()
    assert found["model_spec"] == {"name": "flights", "signature_name": "", "version": "3"}
    definitions = found["metadata"]["signature_def"]["signature_def"]
    assert definitions["serving_default"]["inputs"]["hour"]["dtype"] == "DT_INT64"
    assert definitions["serving_default"]["outputs"]["probability"]["tensor_shape"]["dim"] == [
        {"size": "-1", "name": ""},
        {"size": "2", "name": ""},
    ]
    assert definitions["classification"]["method_name"] == "tensorflow/serving/classify"
    assert "regression" not in definitions


def test_versions_and_labels(home: Home, tumour_model: Made, price_model: Made) -> None:
    home.serve(
        "both",
        (1, home.keep(tumour_model), 1.0, "stable"),
        (2, home.keep(price_model), 0.0, "canary"),
        aliases={"old": 1},
    )
    with worker(home) as server:
        row = {"instances": records(tumour_model, 1)}
        for path in ("both", "both/versions/1", "both/labels/old", "both/labels/champion"):
            assert ask(server, f"{path}:predict", row).json()["predictions"][0]["label"] == tumour_model.labels[0]
        body = {"instances": records(price_model, 1)}
        for path in ("both/versions/2", "both/labels/challenger"):
            found = ask(server, f"{path}:predict", body).json()["predictions"]
            assert math.isclose(found[0], price_model.labels[0], rel_tol=1e-6)
        states = server.client.get("/v1/models/both").json()["model_version_status"]
        assert [one["version"] for one in states] == ["2", "1"]
        for path, told in (
            ("both/versions/7", "both, 7"),
            ("both/labels/1", "both, 1"),
            ("both/labels/new", "both, new"),
        ):
            response = ask(server, f"{path}:predict", row)
            assert response.status_code == 404
            assert response.json()["error"].startswith(f"Servable not found for request: Specific({told})")


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("nobody:predict", {"instances": [1]}, 404, "Servable not found for request: Latest(nobody)"),
        ("flights:predict", b"{", 400, "JSON"),
        ("flights:predict", b"", 400, "JSON"),
        ("flights:predict", {}, 400, "Missing 'inputs' or 'instances' key"),
        ("flights:predict", {"instances": [{}], "inputs": {}}, 400, "exactly one"),
        ("flights:predict", {"instances": []}, 400, "instances"),
        ("flights:predict", {"instances": 7}, 400, "instances"),
        ("flights:predict", {"instances": [{"hour": 3}]}, 400, "inputs.carrier: is missing"),
        ("flights:predict", {"instances": [{"carrier": "AA", "hour": 3.5}]}, 400, "inputs.hour[0]"),
        ("flights:predict", {"instances": [{"carrier": {"b64": "%"}, "hour": 3}]}, 400, "b64"),
        ("flights:predict", {"instances": [{"carrier": {"b64": "/w=="}, "hour": 3}]}, 400, "b64"),
        ("flights:predict", {"instances": [{"carrier": "AA", "hour": 3, "x": 1}]}, 400, "inputs.x"),
        (
            "flights:predict",
            {"instances": [{"carrier": "AA", "hour": 3}], "signature_name": "other"},
            400,
            'Serving signature name: "other" not found in signature def',
        ),
        ("flights:classify", {"examples": []}, 400, "examples"),
        ("flights:classify", {"instances": []}, 400, "examples"),
        ("flights:explain", {"instances": [1]}, 400, "Malformed request: POST /v1/models/flights:explain"),
        ("flights/versions/x:predict", {"instances": [1]}, 400, "Malformed request"),
        ("flights", {"instances": [1]}, 400, "Malformed request: POST /v1/models/flights"),
        ("flights:predict", b'{"instances":' + b"[" * 100_000, 400, "nested"),
        ("flights:predict", {"inputs": {"carrier": ["AA", "UA"], "hour": [1]}}, 400, "inputs.hour"),
    ],
)
def test_what_is_wrong_is_said_as_they_say_it(
    server: Worker, path: str, body: Any, status: int, said: str
) -> None:
    response = ask(server, path, body)
    assert response.status_code == status, response.text
    assert response.json().keys() == {"error"}
    assert said in response.json()["error"]


def test_a_get_of_a_verb_is_malformed(server: Worker) -> None:
    response = server.client.get("/v1/models/flights:predict")
    assert (response.status_code, "Malformed request: GET" in response.json()["error"]) == (400, True)
    assert server.client.get("/v1/models/nobody").status_code == 404
    assert server.client.get("/v1/models/nobody/metadata").status_code == 404


def test_ids_keys_and_late_requests(server: Worker, tumour_model: Made) -> None:
    body = {"instances": records(tumour_model, 2)}
    ids = {ask(server, "tumours:predict", body).headers["x-modelkeep-prediction-id"] for _ in range(10)}
    assert len(ids) == 10
    late = ask(server, "tumours:predict", body, **{"x-modelkeep-timeout-ms": "0.0001"})
    assert late.status_code == 504 and late.json().keys() == {"error"}
    wrong = ask(server, "tumours:predict", body, **{"x-modelkeep-timeout-ms": "soon"})
    assert wrong.status_code == 400 and wrong.json().keys() == {"error"}


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["carrier", "hour", "distance", "b64", "x"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.dictionaries(
        st.sampled_from(["instances", "inputs", "examples", "context", "signature_name"]), _JSON, max_size=3
    ),
    verb=st.sampled_from(["predict", "classify", "regress"]),
)
def test_no_json_is_our_fault(server: Worker, body: Any, verb: str) -> None:
    response = ask(server, f"flights:{verb}", json.dumps(body).encode())
    assert response.status_code in (200, 400), (body, response.text)
