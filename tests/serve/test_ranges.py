"""Values outside of the range of training: refused where the signature says so, over every kind of door."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from serving_kit import Home, Made, Worker, flights, named, prices, tensor, worker

HIGHEST = 1e6
"""Far beyond whatever was seen."""


@pytest.fixture(scope="module")
def numbers() -> Made:
    return prices(["a", "c"])


@pytest.fixture(scope="module")
def mixed() -> Made:
    return flights(in_range=["distance", "hour"])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, numbers: Made, mixed: Made) -> Iterator[Worker]:
    home = Home(tmp_path_factory.mktemp("ranges"))
    package = home.keep(numbers)
    home.serve("numbers", (1, package, 1.0, "stable"))
    home.serve("hidden", (1, package, 1.0, "stable"), declaration={"deploy": {"errors": "redacted"}})
    home.serve("mixed", (1, home.keep(mixed), 1.0, "stable"))
    home.serve("free", (1, home.keep(prices()), 1.0, "stable"))
    with worker(home) as found:
        yield found


def problem(response: httpx.Response) -> tuple[str, str]:
    assert response.status_code == 400, response.text
    (found,) = response.json()["problems"]
    return found["path"], found["message"]


def shown(made: Made, name: str) -> str:
    return f"from {made.frame[name].min():.15g} to {made.frame[name].max():.15g}"


@pytest.mark.parametrize("rows", [1, 300])
def test_a_value_out_of_range_is_400_with_field_row_value_and_range(
    server: Worker, numbers: Made, rows: int
) -> None:
    asked = [row % 200 for row in range(rows)]  # 300 rows of 3 are packed as soon as they come
    request = tensor(numbers, asked)
    assert server.infer("numbers", request).status_code == 200
    request["inputs"][0]["data"][(rows - 1) * 3 + 1] = HIGHEST  # b may lie anywhere
    assert server.infer("numbers", request).status_code == 200
    request["inputs"][0]["data"][(rows - 1) * 3 + 2] = HIGHEST
    path, message = problem(server.infer("numbers", request))
    assert path == f"inputs.c[{rows - 1}]"
    assert message == f"found 1000000.0, expected a number {shown(numbers, 'c')}"
    assert server.infer("free", request).status_code == 200
    path, message = problem(server.infer("hidden", request))
    assert path == f"inputs.c[{rows - 1}]"
    assert "1000000" not in message and not any(char.isdigit() for char in message)


@pytest.mark.parametrize(("name", "value", "kind"), [("distance", -1.0, "number"), ("hour", 24, "whole number")])
def test_beside_texts_and_gaps(server: Worker, mixed: Made, name: str, value: Any, kind: str) -> None:
    gap = int(mixed.frame.distance.isna().to_numpy().nonzero()[0][0])
    request = named(mixed, [gap, 0 if gap else 1])
    assert server.infer("mixed", request).status_code == 200  # what is missing is not out of range
    column = next(one for one in request["inputs"] if one["name"] == name)
    column["data"][1] = value
    path, message = problem(server.infer("mixed", request))
    assert (path, message) == (f"inputs.{name}[1]", f"found {value}, expected a {kind} {shown(mixed, name)}")


def test_in_raw_tensors_and_over_mlflow(server: Worker, numbers: Made) -> None:
    inside = numbers.frame.iloc[int(numbers.frame["c"].argmax())]  # the end itself, through single precision
    for last, status in ((inside["c"], 200), (HIGHEST, 400)):
        data = struct.pack("<3f", inside["a"], inside["b"], last)
        described = {"name": "x", "shape": [1, 3], "datatype": "FP32", "parameters": {"binary_data_size": 12}}
        head = httpx.Response(200, json={"inputs": [described]}).content
        headers = {"inference-header-content-length": str(len(head))}
        response = server.client.post("/v2/models/numbers/infer", content=head + data, headers=headers)
        assert response.status_code == status, response.text
        record = {**inside.to_dict(), "c": float(last)}
        path = "/endpoints/numbers/invocations"
        response = server.client.post(path, json={"dataframe_records": [record]})
        assert response.status_code == status, response.text
        assert (shown(numbers, "c") in response.text) == (status == 400)


def test_of_requests_that_come_together_only_the_guilty_are_refused(server: Worker, numbers: Made) -> None:
    good, bad = tensor(numbers, [0]), tensor(numbers, [0])
    bad["inputs"][0]["data"][0] = HIGHEST

    def ask(place: int) -> tuple[int, int]:
        return place, server.infer("numbers", bad if place % 3 == 0 else good).status_code

    with ThreadPoolExecutor(16) as pool:
        for place, status in pool.map(ask, range(240)):
            assert status == (400 if place % 3 == 0 else 200)
