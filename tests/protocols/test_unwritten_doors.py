"""A door that raises on one answer of a batch: the others are written, and this one has a definite end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_kit import GrpcWorker, grpc_worker
from serving_kit import Home, Made, tensor
from test_grpc_process import infer, labels, request

FAULTY = str(Path(__file__).with_name("faulty_main.py"))
TOGETHER = {"batch": {"wait": "300ms", "budget": "5s"}}
FINE = 5


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory, tumour_model: Made) -> Iterator[GrpcWorker]:
    home = Home(tmp_path_factory.mktemp("faulty"))
    home.serve("tumours", (1, home.keep(tumour_model), 1.0, "stable"), deploy=TOGETHER)
    with grpc_worker(home, program=[FAULTY]) as found:
        yield found


def together(ask: Callable[[str], Any], id: str) -> tuple[Any, list[Any]]:
    """What becomes of a request with this id, and of others that came after it into the same batch."""
    with ThreadPoolExecutor(FINE + 1) as pool:
        first = pool.submit(ask, id)
        time.sleep(0.05)
        others = [pool.submit(ask, f"fine-{number}") for number in range(FINE)]
        return first, [one.result(20) for one in others]


def test_over_http_the_faulty_one_is_told_500_and_the_others_are_answered(
    process: GrpcWorker, tumour_model: Made
) -> None:
    def ask(id: str) -> httpx.Response:
        body = {"id": id, **tensor(tumour_model, [0])}
        return httpx.post(f"{process.url}/v2/models/tumours/infer", json=body, timeout=10)

    bad, others = together(ask, "bad")
    assert [(one.status_code, one.json()["outputs"][0]["shape"]) for one in others] == [(200, [1])] * FINE
    assert bad.result().status_code == 500
    assert "our fault" in bad.result().json()["error"]
    assert "a fault of ours" not in bad.result().text


def test_a_connection_lives_on_after_a_500(process: GrpcWorker, tumour_model: Made) -> None:
    path = "/v2/models/tumours/infer"
    with httpx.Client(base_url=process.url, timeout=10) as client:
        bodies = [{"id": id, **tensor(tumour_model, [0])} for id in ("bad", "x")]
        codes = [client.post(path, json=body).status_code for body in bodies]
    assert codes == [500, 200]


def test_mlflows_door_too(process: GrpcWorker, tumour_model: Made) -> None:
    row = tumour_model.frame.iloc[:1].to_dict("split")

    def ask(id: str) -> httpx.Response:
        body = {"client_request_id": id, "dataframe_split": {"columns": row["columns"], "data": row["data"]}}
        return httpx.post(f"{process.url}/invocations", json=body, timeout=10)

    bad, others = together(ask, "bad")
    assert [one.status_code for one in others] == [200] * FINE
    assert bad.result().status_code == 500


def test_half_an_answer_over_http_is_the_end_of_its_connection(process: GrpcWorker, tumour_model: Made) -> None:
    def ask(id: str) -> httpx.Response:
        body = {"id": id, **tensor(tumour_model, [0])}
        return httpx.post(f"{process.url}/v2/models/tumours/infer", json=body, timeout=10)

    half, others = together(ask, "half")
    assert [one.status_code for one in others] == [200] * FINE
    with pytest.raises(httpx.RemoteProtocolError):
        half.result()


def test_over_grpc_the_faulty_one_is_internal_and_half_an_answer_a_reset(
    process: GrpcWorker, tumour_model: Made
) -> None:
    with process.channel() as channel:
        call = infer(channel)
        for id, said in (("bad", "our fault"), ("half", "RST_STREAM with error code 2")):
            bad, others = together(lambda id: call(request(tumour_model, [0], id=id), timeout=10), id)
            assert [len(labels(one)) for one in others] == [1] * FINE
            error = bad.exception()
            assert isinstance(error, grpc.RpcError)
            assert (error.code(), said in error.details()) == (grpc.StatusCode.INTERNAL, True), error.details()


def test_a_fault_counts_as_one(home: Home, tumour_model: Made) -> None:
    home.serve("tumours", (1, home.keep(tumour_model), 1.0, "stable"), deploy=TOGETHER)
    with grpc_worker(home, program=[FAULTY]) as process:
        bad, _ = together(
            lambda id: process.client.post(
                "/v2/models/tumours/infer", json={"id": id, **tensor(tumour_model, [0])}
            ),
            "bad",
        )
        assert bad.result().status_code == 500
        told = process.client.get("/metrics").text.splitlines()
        numbers = {line.split("{")[0]: float(line.split()[-1]) for line in told if 'endpoint="tumours"' in line}
        assert numbers["modelkeep_requests_total"] == FINE
        assert numbers["modelkeep_errors_total"] == 1
