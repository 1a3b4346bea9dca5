"""The MLflow scoring door over real HTTP."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving_kit import Home, Made, Worker, worker

PATH = "/endpoints/flights/invocations"


def records(made: Made, rows: int) -> list[dict[str, Any]]:
    return [
        {name: None if value != value else value for name, value in row.items()}
        for row in made.frame.iloc[:rows].to_dict("records")
    ]


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("form", ["split", "records", "instances", "lists", "inputs", "columns"])
def test_every_format_gives_the_models_own_labels(
    server: Worker, flight_model: Made, form: str, rows: int
) -> None:
    given = records(flight_model, rows)
    names = list(flight_model.frame.columns)
    lists = [[row[name] for name in names] for row in given]
    body = {
        "split": {"dataframe_split": {"columns": names[::-1], "data": [row[::-1] for row in lists]}},
        "records": {"dataframe_records": given},
        "instances": {"instances": given},
        "lists": {"instances": lists},
        "inputs": {"inputs": given},
        "columns": {"inputs": {name: [row[name] for row in given] for name in names}},
    }[form]
    response = server.client.post(PATH, json=body, headers={"x-modelkeep-key": "k"})
    assert response.json() == {"predictions": flight_model.labels[:rows]}
    assert response.headers["x-modelkeep-prediction-id"]


def test_csv_probabilities_and_ids(server: Worker, flight_model: Made, price_model: Made) -> None:
    text = flight_model.frame.iloc[:20].to_csv(index=False)
    response = server.client.post(PATH, content=text, headers={"content-type": "text/csv; charset=utf-8"})
    assert response.json() == {"predictions": flight_model.labels[:20]}
    body = {"dataframe_records": records(flight_model, 3), "params": {"predict_method": "predict_proba"}}
    response = server.client.post(PATH, json=body | {"client_request_id": "mine"})
    assert flight_model.probability is not None
    assert np.allclose(response.json()["predictions"], flight_model.probability[:3], atol=1e-5)
    assert response.headers["x-modelkeep-prediction-id"] == "mine"
    body = {"instances": price_model.frame.iloc[:4].to_numpy().tolist()}
    response = server.client.post("/endpoints/prices/invocations", json=body)
    assert np.allclose(response.json()["predictions"], price_model.labels[:4])


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({}, ""),
        ({"inputs": [], "instances": []}, ""),
        ({"dataframe_records": [{"carrier": 1, "hour": 1, "distance": 2.0}]}, "inputs.carrier[0]"),
        ({"dataframe_records": [{"carrier": "AA", "hour": 1.5, "distance": 2.0}]}, "inputs.hour[0]"),
        ({"dataframe_records": [{"carrier": "AA"}]}, "inputs.hour"),
        ({"dataframe_records": [{"carrier": "AA", "hour": 1}, {"carrier": "AA"}]}, "dataframe_records[1].hour"),
        ({"dataframe_records": [{"carrier": "AA", "hour": 1, "colour": 2}]}, "inputs.colour"),
        ({"dataframe_split": {"columns": ["carrier", "hour"], "data": [["AA"]]}}, "dataframe_split.data[0]"),
        ({"dataframe_split": {"data": 7}}, "dataframe_split.data"),
        ({"instances": [["AA", 1.0, 2], ["AA", 1.0]]}, "instances[1]"),
        ({"instances": []}, "instances"),
        ({"instances": [["AA", 1.0, 2]], "params": {"temperature": 1}}, "params.temperature"),
        ({"instances": [["AA", 1.0, 2]], "params": {"predict_method": []}}, "params.predict_method"),
    ],
)
def test_what_is_wrong_is_named_by_its_path(server: Worker, body: Any, path: str) -> None:
    response = server.client.post(PATH, json=body)
    assert response.status_code == 400, response.text
    assert path in [problem["path"] for problem in response.json()["problems"]]


def test_the_only_endpoint_needs_no_name(server: Worker, home: Home, price_model: Made) -> None:
    body = {"instances": price_model.frame.iloc[:2].to_numpy().tolist()}
    response = server.client.post("/invocations", json=body)
    assert response.status_code == 404
    assert "flights, prices, tumours" in response.json()["error"]
    home.serve("prices", (1, home.keep(price_model), 1.0, "stable"))
    with worker(home) as alone:
        response = alone.client.post("/invocations", json=body)
        assert np.allclose(response.json()["predictions"], price_model.labels[:2])
        assert alone.client.get("/ping").status_code == alone.client.get("/health").status_code == 200
        assert alone.client.get("/version").text


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
forms = st.dictionaries(
    st.sampled_from(["dataframe_split", "dataframe_records", "instances", "inputs", "params"]), values, max_size=2
)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=forms.map(lambda v: json.dumps(v).encode()) | st.binary(max_size=60), csv=st.booleans())
def test_no_body_is_ever_our_fault(server: Worker, body: bytes, csv: bool) -> None:
    kind = "text/csv" if csv else "application/json"
    response = server.client.post(PATH, content=body, headers={"content-type": kind})
    assert response.status_code in (200, 400), (response.status_code, response.text)
