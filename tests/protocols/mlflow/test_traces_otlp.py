"""Spans of any OpenTelemetry exporter: binary and JSON, compressed or not, right and wrong."""

from __future__ import annotations

import base64
import gzip
import json
import threading
import zlib
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import mlflow
import pytest
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from modelkeep.core.errors import Invalid
from modelkeep.protocols.mlflow import otlp, traces_otlp

NOW = 1_750_000_000 * 10**9
PROTOBUF = "application/x-protobuf"
HTTP = httpx.Client(timeout=60)


@pytest.fixture
def experiment(place: str) -> Iterator[str]:
    mlflow.set_tracking_uri(place)
    yield str(mlflow.create_experiment(uuid4().hex))
    mlflow.set_tracking_uri(None)


def pair(key: str, value: Any) -> KeyValue:
    return KeyValue(key=key, value=any_value(value))


def any_value(value: Any) -> AnyValue:
    match value:
        case bool():
            return AnyValue(bool_value=value)
        case str():
            return AnyValue(string_value=value)
        case int():
            return AnyValue(int_value=value)
        case float():
            return AnyValue(double_value=value)
        case bytes():
            return AnyValue(bytes_value=value)
        case list():
            return AnyValue(array_value=ArrayValue(values=[any_value(each) for each in value]))
        case dict():
            return AnyValue(kvlist_value=KeyValueList(values=[pair(k, v) for k, v in value.items()]))
    return AnyValue()


def span(trace: bytes, n: int, parent: int = 0, name: str = "", **attributes: Any) -> Span:
    made = Span(
        trace_id=trace,
        span_id=n.to_bytes(8, "big"),
        name=name or f"span {n}",
        start_time_unix_nano=NOW + n * 10**6,
        end_time_unix_nano=NOW + (n + 5) * 10**6,
        attributes=[pair(key.replace("__", "."), value) for key, value in attributes.items()],
    )
    if parent:
        made.parent_span_id = parent.to_bytes(8, "big")
    return made


def request(*spans: Span, **resource: Any) -> ExportTraceServiceRequest:
    made = ExportTraceServiceRequest()
    group = made.resource_spans.add()
    group.resource.attributes.extend(pair(key.replace("__", "."), value) for key, value in resource.items())
    group.scope_spans.add().spans.extend(spans)
    return made


def as_json(made: ExportTraceServiceRequest) -> bytes:
    """The JSON form: ids are hexadecimal there, where protobuf's own JSON has base64."""
    said = MessageToDict(made)
    for group in said["resourceSpans"]:
        for scope in group["scopeSpans"]:
            for each in scope["spans"]:
                for held in (each, *each.get("links", ())):
                    for name in {"traceId", "spanId", "parentSpanId"} & held.keys():
                        held[name] = base64.b64decode(held[name]).hex()
    return json.dumps(said).encode()


def post(
    place: str, body: bytes, experiment: str | None = None, kind: str = PROTOBUF, **more: str
) -> httpx.Response:
    headers = {"content-type": kind, **{key.replace("_", "-"): value for key, value in more.items()}}
    if experiment is not None:
        headers["x-mlflow-experiment-id"] = experiment
    return HTTP.post(f"{place}/v1/traces", content=body, headers=headers)


def fresh() -> bytes:
    return uuid4().bytes


def test_every_kind_of_value_comes_back(place: str, experiment: str) -> None:
    values = {
        "text": 'ü "q" \\ \n',
        "whole": -(2**62),
        "real": 0.1,
        "yes": True,
        "list": [1, "a", [2.5], {}],
        "deep": {"a": {"b": [None, False]}},
        "empty": "",
    }
    for form in ("binary", "json"):
        trace = fresh()
        root = span(trace, 1, name="röot", **values, raw=b"\xff\x00", inf=float("-inf"))
        root.events.add(name="seen", time_unix_nano=NOW, attributes=[pair("at", 3)])
        root.links.add(trace_id=fresh(), span_id=b"\1" * 8, attributes=[pair("why", "because")])
        root.status.CopyFrom(Status(code=Status.STATUS_CODE_ERROR, message="broke"))
        made = request(root, span(trace, 2, parent=1), service__name="shop", telemetry__sdk__name="x")
        body = made.SerializeToString() if form == "binary" else as_json(made)
        kind = PROTOBUF if form == "binary" else "application/json"
        answer = post(place, body, experiment, f"{kind}; charset=utf-8")
        assert (answer.status_code, answer.headers["content-type"]) == (200, kind)
        assert answer.content == (b"" if form == "binary" else b"{}")
        found = mlflow.get_trace(f"tr-{trace.hex()}")
        assert found is not None and [each.name for each in found.data.spans] == ["röot", "span 2"]
        first = found.data.spans[0]
        assert {key: first.attributes[key] for key in values} == values
        assert first.attributes["inf"] == float("-inf")
        assert first.status.description == "broke" and first.events[0].attributes == {"at": 3}
        assert first.links[0].span_id == "01" * 8 and first.links[0].attributes == {"why": "because"}
        info = found.info
        assert (info.state.value, info.experiment_id, info.execution_duration) == ("ERROR", experiment, 6)
        assert info.request_time == NOW // 10**6 + 1
        assert info.tags["service.name"] == "shop" and "telemetry.sdk.name" not in info.tags
        assert info.tags["mlflow.traceName"] == "röot"


def test_conventions_of_others_are_understood(place: str, experiment: str) -> None:
    trace = fresh()
    chat = {
        "gen_ai__operation__name": "chat",
        "gen_ai__input__messages": json.dumps([{"role": "user", "content": "hi"}]),
        "gen_ai__usage__input_tokens": 3,
        "gen_ai__usage__output_tokens": 4,
        "gen_ai__response__model": "gpt-x",
        "gen_ai__provider__name": "acme",
        "session__id": "s-1",
        "user__id": "ann",
    }
    inference = {
        "openinference__span__kind": "RETRIEVER",
        "input__value": "where?",
        "output__value": "here",
        "llm__token_count__prompt": 5,
        "llm__token_count__completion": 1,
        "llm__token_count__total": 6,
    }
    spans = [
        span(trace, 1, name="agent", traceloop__span__kind="workflow", traceloop__entity__input='{"q": 1}'),
        span(trace, 2, 1, "chat", **chat),
        span(trace, 3, 1, "retrieve", **inference),
    ]
    for each in spans:  # one by one, as a simple span processor sends them; children first
        assert (
            post(place, request(spans[-1 - spans.index(each)]).SerializeToString(), experiment).status_code == 200
        )
    found = mlflow.get_trace(f"tr-{trace.hex()}")
    assert found is not None
    root, chatted, retrieved = found.data.spans
    assert [each.span_type for each in (root, chatted, retrieved)] == ["WORKFLOW", "CHAT_MODEL", "RETRIEVER"]
    assert (
        chatted.inputs == json.dumps([{"role": "user", "content": "hi"}]) or chatted.inputs[0]["content"] == "hi"
    )
    assert chatted.model_name == "gpt-x" and retrieved.outputs == "here"
    assert found.info.token_usage == {"input_tokens": 8, "output_tokens": 5, "total_tokens": 13}
    assert found.info.trace_metadata["mlflow.trace.session"] == "s-1"
    assert found.info.trace_metadata["mlflow.trace.user"] == "ann"
    assert found.info.request_preview == '{"q": 1}'
    post(place, request(spans[1]).SerializeToString(), experiment)  # a repetition changes nothing
    again = mlflow.get_trace(f"tr-{trace.hex()}")
    assert again is not None and again.info.to_dict() == found.info.to_dict() and len(again.data.spans) == 3


def test_a_parent_that_sums_up_is_not_counted_twice(place: str, experiment: str) -> None:
    trace = fresh()
    usage = {"input_tokens": 10, "output_tokens": 10, "total_tokens": 20}
    cost = {"input_cost": 0.5, "output_cost": 0.25, "total_cost": 0.75}
    spans = [
        span(trace, 1, mlflow__chat__tokenUsage=usage),
        span(trace, 2, 1, mlflow__chat__tokenUsage=usage, mlflow__llm__cost=cost),
        span(trace, 3, 2, mlflow__llm__cost=cost),
    ]
    assert post(place, request(*spans).SerializeToString(), experiment).status_code == 200
    found = mlflow.get_trace(f"tr-{trace.hex()}")
    assert found is not None and found.info.token_usage == usage and found.info.cost == cost


def test_compressed_bodies(place: str, experiment: str) -> None:
    raw = zlib.compressobj(wbits=-15)
    for encoding, squeeze in (
        ("gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", lambda body: raw.compress(body) + raw.flush()),
    ):
        trace = fresh()
        body = squeeze(request(span(trace, 1)).SerializeToString())
        assert post(place, body, experiment, content_encoding=encoding).status_code == 200
        assert mlflow.get_trace(f"tr-{trace.hex()}") is not None
        assert post(place, body[:-4], experiment, content_encoding=encoding).status_code == 400
        assert post(place, b"x", experiment, content_encoding=encoding).status_code == 400
    assert post(place, b"x", experiment, content_encoding="br").status_code == 400


def test_a_body_that_grows_too_large_is_refused_before_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp, "MAX_BODY", 1000)
    assert otlp.decompressed(gzip.compress(b"\0" * 1000), b"gzip") == b"\0" * 1000
    with pytest.raises(Invalid, match="larger than 1000 bytes"):
        otlp.decompressed(gzip.compress(b"\0" * 1_000_000), b"gzip")


def test_spans_that_make_no_sense_are_told_and_the_others_kept(place: str, experiment: str) -> None:
    trace = fresh()
    wrong = [span(b"", 1), span(trace, 0), span(b"\0" * 16, 3), span(trace, 4)]
    wrong[-1].start_time_unix_nano = 2**64 - 1
    deep: Any = "x"
    for _ in range(44):
        deep = [deep]
    wrong.append(span(trace, 5, deep=deep))
    answer = post(place, request(*wrong, span(trace, 9)).SerializeToString(), experiment)
    said = ExportTraceServiceResponse.FromString(answer.content).partial_success
    assert (answer.status_code, said.rejected_spans) == (
        200,
        5,
    ) and "values inside each other" in said.error_message
    found = mlflow.get_trace(f"tr-{trace.hex()}")
    assert found is not None and len(found.data.spans) == 1
    answer = post(place, as_json(request(span(b"\1" * 15, 1))), experiment, "application/json")
    assert answer.json()["partialSuccess"]["rejectedSpans"] == "1"


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b'"x"',
        b'{"resourceSpans": 3}',
        b'{"resourceSpans": [{"scopeSpans": {"a": 1}}]}',
        b'{"resourceSpans": [[]]}',
        b'{"resourceSpans": [{"resource": {"attributes": [{"key": 3}]}}]}',
        b'{"a":' * 100_000,
        b"\xff\xfe",
    ],
)
def test_json_that_makes_no_sense_is_refused(place: str, experiment: str, body: bytes) -> None:
    answer = post(place, body, experiment, "application/json")
    assert answer.status_code == 400 and answer.json()["code"] == 3 and answer.json()["message"]


def test_one_wrong_field_refuses_its_span_alone(place: str, experiment: str) -> None:
    good = {"traceId": "ab" * 16, "spanId": "cd" * 8, "startTimeUnixNano": "1"}
    for wrong in (
        {"traceId": "xy"},
        {"traceId": 5},
        {"startTimeUnixNano": "soon"},
        {"startTimeUnixNano": -1},
        {"attributes": {}},
        {"attributes": [{"key": "a", "value": {"intValue": "9" * 30}}]},
        {"attributes": [{"key": "a", "value": {"moonValue": 1}}]},
        {"attributes": [{"key": "a", "value": {"doubleValue": "x"}}]},
        {"attributes": [{"key": "a", "value": {"bytesValue": "*"}}]},
        {"attributes": [{"key": "a", "value": [1]}]},
        {"events": [3]},
        {"links": [{"traceId": "zz"}]},
        {"status": "bad"},
        {"parentSpanId": "ab"},
    ):
        body = {"resourceSpans": [{"scopeSpans": [{"spans": [{**good, **wrong}]}]}]}
        answer = post(place, json.dumps(body).encode(), experiment, "application/json")
        assert (answer.status_code, answer.json()["partialSuccess"]["rejectedSpans"]) == (200, "1"), wrong


def test_what_cannot_be_read_or_placed_is_refused(place: str, experiment: str) -> None:
    body = request(span(fresh(), 1)).SerializeToString()
    for answer, status in (
        (post(place, b"\xff" * 20, experiment), 400),
        (post(place, body[:-3], experiment), 400),
        (post(place, body, experiment, "text/plain"), 400),
        (post(place, body, "x"), 400),
        (post(place, body, "987654"), 404),
        (post(place, body, experiment, x_mlflow_run_id="../etc"), 400),
        (HTTP.get(f"{place}/v1/traces"), 404),
    ):
        assert answer.status_code == status
    refused = post(place, b"\xff" * 20, experiment)
    assert refused.headers["content-type"] == PROTOBUF and refused.content.startswith(b"\x08\x03\x12")
    mlflow.MlflowClient().delete_experiment(experiment)
    assert post(place, body, experiment).status_code == 400
    trace = fresh()
    assert post(place, request(span(trace, 1)).SerializeToString()).status_code == 200
    found = mlflow.get_trace(f"tr-{trace.hex()}")
    assert found is not None and found.info.experiment_id == "0"
    assert post(place, b"", "0").status_code == 200


def test_nul_and_strange_text_are_kept_as_text(place: str, experiment: str) -> None:
    trace = fresh()
    root = span(
        trace, 1, name="a\0b", **{"mlflow__spanInputs": "x\0y", "k\0": "\\u0000", "mlflow__traceTag__t": "v\0"}
    )
    assert post(place, request(root, svc="\0").SerializeToString(), experiment).status_code == 200
    found = mlflow.get_trace(f"tr-{trace.hex()}")
    assert found is not None
    first = found.data.spans[0]
    assert first.name == "a\ufffdb" and first.inputs == "x\ufffdy" and first.attributes["k\ufffd"] == "\\u0000"
    assert (found.info.request_preview, found.info.tags["t"]) == ('"x\\u0000y"', "v\ufffd")


def test_spans_of_one_trace_from_many_threads_at_once(place: str, experiment: str) -> None:
    trace = fresh()

    def send(part: int) -> None:
        for n in range(part * 10 + 1, part * 10 + 11):
            made = span(
                trace, n, parent=0 if n == 1 else 1, **{"gen_ai__usage__input_tokens": 1} if n != 1 else {}
            )
            assert post(place, request(made).SerializeToString(), experiment).status_code == 200

    threads = [threading.Thread(target=send, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = mlflow.get_trace(f"tr-{trace.hex()}")
    assert found is not None and len(found.data.spans) == 40 and found.data.spans[0].span_id == f"{1:016x}"
    assert found.info.token_usage == {"input_tokens": 39}
    assert (found.info.request_time, found.info.execution_duration) == (NOW // 10**6 + 1, 44)


def test_a_large_batch_is_read_beside_the_loop(place: str, experiment: str) -> None:
    traces = [fresh() for _ in range(20)]
    spans = [span(trace, n, parent=n > 1, text="x" * 100) for trace in traces for n in range(1, 101)]
    body = request(*spans).SerializeToString()
    assert len(body) > 256 * 1024
    assert post(place, body, experiment).status_code == 200
    found = mlflow.search_traces(locations=[experiment], return_type="list", max_results=30)
    assert len(found) == 20 and all(len(each.data.spans) == 100 for each in found)


def test_both_forms_are_read_into_the_same() -> None:
    made = request(
        span(fresh(), 1, a=1, b=2.5, c=[True, {"d": "e"}], f=b"\1\2", g=float("nan"), mlflow__spanType="LLM")
    )
    one, other = traces_otlp.binary(made.SerializeToString()), traces_otlp.text(as_json(made))
    assert [each.spans for each in one.traces.values()] == [each.spans for each in other.traces.values()]
