"""gRPC in a real serving process: health, capture, overload, swaps and the end of the process."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pytest
from grpc_kit import GrpcWorker, grpc_worker, until
from serving_kit import Home, Made
from test_metrics_traces import PARENT, TRACE, collecting

from modelkeep.protocols.grpc.messages import message

HEALTH = "/grpc.health.v1.Health/"
_Health = message("grpc.health.v1.HealthCheckRequest")
_Status = message("grpc.health.v1.HealthCheckResponse")
_Infer = message("inference.ModelInferRequest")
_Inferred = message("inference.ModelInferResponse")


def health(channel: grpc.Channel, service: str = "") -> int:
    call = channel.unary_unary(f"{HEALTH}Check", _Health.SerializeToString, _Status.FromString)
    found: int = call(_Health(service=service), timeout=10).status
    return found


def infer(channel: grpc.Channel) -> Any:
    path = "/inference.GRPCInferenceService/ModelInfer"
    return channel.unary_unary(path, _Infer.SerializeToString, _Inferred.FromString)


def request(made: Made, rows: list[int], name: str = "tumours", **fields: Any) -> Any:
    block = made.frame.iloc[rows].to_numpy()
    tensor = {"name": "rows", "datatype": "FP64", "shape": list(block.shape)}
    return _Infer(model_name=name, inputs=[tensor], raw_input_contents=[block.tobytes()], **fields)


def labels(answer: Any) -> list[int]:
    return np.frombuffer(answer.raw_output_contents[0], np.int64).tolist()  # type: ignore[no-any-return]


def test_health_follows_what_is_served(home: Home, price_model: Made) -> None:
    package = home.keep(price_model)
    with grpc_worker(home) as process, process.channel() as channel:
        assert health(channel) == 1
        assert process.health()["grpc"] == {"connections": 1}
        for name in ("inference.GRPCInferenceService", "tensorflow.serving.PredictionService"):
            assert health(channel, name) == 1
        with pytest.raises(grpc.RpcError) as error:
            health(channel, "prices")
        assert error.value.code() is grpc.StatusCode.NOT_FOUND
        watch = channel.unary_stream(f"{HEALTH}Watch", _Health.SerializeToString, _Status.FromString)
        told = watch(_Health(service="prices"))
        assert next(told).status == 3  # unknown, until it is served
        home.serve("prices", (1, package, 1.0, "stable"))
        assert next(told).status == 1
        assert health(channel, "prices") == health(channel, "prices-model") == 1
        process.process.send(signal.SIGTERM)
        assert next(told).status == 2  # it will end
        assert list(told) == []
        assert process.process.wait(15) == 0


def test_calls_are_captured_with_their_ids_and_keys(home: Home, tumour_model: Made) -> None:
    home.serve("tumours", (1, home.keep(tumour_model), 1.0, "stable"))
    with grpc_worker(home) as process, process.channel() as channel:
        call = infer(channel)
        call(request(tumour_model, [3, 4], id="two"), metadata=[("x-modelkeep-key", "ann")], timeout=10)
        call(request(tumour_model, [5], id="one"), timeout=10)
        assert process.stop() == 0
    rows = home.captured_rows("tumours")
    ids = rows["prediction_id"].to_pylist()
    assert sorted(ids) == ["one", "two/0", "two/1"]
    first = rows.filter(pa.compute.equal(rows["prediction_id"], "two/0"))
    assert first["key"].to_pylist() == ["ann"]
    assert first["in.mean radius"].to_pylist() == [tumour_model.frame["mean radius"].iloc[3]]


def test_keys_choose_versions_as_they_do_over_http(home: Home, tumour_model: Made, price_model: Made) -> None:
    package = home.keep(tumour_model)
    home.serve("tumours", (1, package, 0.5, "stable"), (2, package, 0.5, "canary"))
    with grpc_worker(home) as process, process.channel() as channel:
        call = infer(channel)
        body = {"inputs": [{"name": "rows", "shape": [1, 30], "datatype": "FP64"}]}
        body["inputs"][0]["data"] = tumour_model.frame.iloc[0].tolist()
        seen = set()
        for number in range(20):
            key = f"key-{number}"
            over_grpc = call(request(tumour_model, [0]), metadata=[("x-modelkeep-key", key)], timeout=10)
            over_http = process.infer("tumours", body, **{"x-modelkeep-key": key}).json()
            assert over_grpc.model_version == over_http["model_version"]
            seen.add(over_grpc.model_version)
        assert seen == {"1", "2"}


def test_errors_show_no_values_where_the_deployment_says_so(home: Home, tumour_model: Made) -> None:
    home.serve("tumours", (1, home.keep(tumour_model), 1.0, "stable"), deploy={"errors": "redacted"})
    with grpc_worker(home) as process, process.channel() as channel:
        with pytest.raises(grpc.RpcError) as error:
            infer(channel)(request(tumour_model, [0], id="x", outputs=[{"name": "secret"}]), timeout=10)
        said = error.value.details()
        assert (error.value.code(), "secret" in said) == (grpc.StatusCode.INVALID_ARGUMENT, False)
        assert said.startswith("outputs[0].name")
        response = process.client.post("/v1/models/tumours:predict", json={"instances": [{"secret": 1}]})
        assert (response.status_code, "instances" in response.text) == (400, False)


def test_overload_is_resource_exhausted_with_a_pushback(home: Home, tumour_model: Made) -> None:
    deploy = {"batch": {"budget": "1ms"}}
    home.serve("tumours", (1, home.keep(tumour_model), 1.0, "stable"), deploy=deploy)
    with grpc_worker(home) as process, process.channel() as channel:
        call = infer(channel)
        body = request(tumour_model, [n % 500 for n in range(5000)])
        ended = [call.future(body, timeout=30) for _ in range(60)]
        codes = [one.code() for one in ended]
        assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
        for one in ended:
            told = {name: value for name, value in one.trailing_metadata() if name == "grpc-retry-pushback-ms"}
            if one.code() is grpc.StatusCode.OK:
                assert not told
            else:
                assert int(told["grpc-retry-pushback-ms"]) > 0
        assert labels(call(request(tumour_model, [0]), timeout=10)) == tumour_model.labels[:1]


def test_every_call_is_a_span_when_the_environment_asks_for_them(
    home: Home, tumour_model: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.serve("tumours", (1, home.keep(tumour_model), 1.0, "stable"))
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        with grpc_worker(home) as process, process.channel() as channel:
            call = infer(channel)
            call(request(tumour_model, [0]), metadata=[("traceparent", f"00-{TRACE}-{PARENT}-01")], timeout=10)
            with pytest.raises(grpc.RpcError):
                call(request(tumour_model, [0], name="nobody"), timeout=10)
            assert process.stop() == 0
    told = []
    for span in sorted(collector.spans, key=lambda span: span.start_time_unix_nano):
        said = {one.key: one.value for one in span.attributes}
        assert span.name == f"{said['rpc.service'].string_value}/{said['rpc.method'].string_value}"
        told.append((said["rpc.method"].string_value, said["rpc.grpc.status_code"].int_value, span.trace_id.hex()))
    assert [one[:2] for one in told] == [("ModelInfer", 0), ("ModelInfer", 5)]
    assert [one[2] == TRACE for one in told] == [True, False]


@pytest.fixture
def busy(home: Home, tumour_model: Made) -> Iterator[tuple[GrpcWorker, list[str], threading.Event]]:
    """A process that four clients ask without a pause; what went wrong, and how to make them stop."""
    home.serve("tumours", (1, home.keep(tumour_model), 1.0, "stable"))
    faults: list[str] = []
    over = threading.Event()
    with grpc_worker(home) as process, ThreadPoolExecutor(4) as pool:

        def ask(seed: int) -> int:
            done = 0
            with process.channel() as channel:
                call = infer(channel)
                while not over.is_set():
                    row = (seed * 131 + done) % 500
                    try:
                        if labels(call(request(tumour_model, [row]), timeout=20)) != [tumour_model.labels[row]]:
                            faults.append("a wrong answer")
                    except grpc.RpcError as error:
                        if not over.is_set():
                            faults.append(str(error))
                        return done
                    done += 1
            return done

        asking = [pool.submit(ask, seed) for seed in range(4)]
        try:
            until(lambda: answered(process) > 50)
            yield process, faults, over
        finally:
            over.set()
        assert all(one.result(30) > 0 for one in asking)


def answered(process: GrpcWorker) -> int:
    found = process.client.get("/v2/models/tumours/stats")
    assert found.status_code == 200, found.text
    count: int = found.json()["model_stats"][0]["inference_count"]
    return count


def test_no_call_is_lost_to_swaps(
    home: Home, busy: tuple[GrpcWorker, list[str], threading.Event], tumour_model: Made
) -> None:
    process, faults, _ = busy
    package = home.keep(tumour_model)
    for version in range(2, 8):
        home.serve("tumours", (version, package, 1.0, "stable"))
        process.until(lambda health: health["endpoints"][0]["routes"][0]["version"] == version)  # noqa: B023
    assert faults == []


def test_no_call_that_was_taken_is_lost_to_the_end(
    busy: tuple[GrpcWorker, list[str], threading.Event],
) -> None:
    process, faults, _ = busy
    process.process.send(signal.SIGTERM)
    assert process.process.wait(20) == 0
    # clients whose connection ended try again, and find nobody
    assert len(faults) <= 4
    assert all("StatusCode.UNAVAILABLE" in fault and "refused" in fault.lower() for fault in faults), faults
