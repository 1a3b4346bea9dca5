"""Spans of requests, sent by the real exporter to a collector that reads OTLP as collectors do."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from serving_kit import Home, Made, tensor, worker

from modelkeep.protocols import traces

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


@dataclass
class Collector:
    url: str = ""
    service: str = ""
    spans: list[Any] = field(default_factory=list)

    def take(self, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        for resource in request.resource_spans:
            said = {one.key: one.value.string_value for one in resource.resource.attributes}
            self.service = said["service.name"]
            for scope in resource.scope_spans:
                self.spans += scope.spans

    def of(self, path: str) -> list[dict[str, Any]]:
        """What the spans of a path say, oldest first."""
        found = []
        for span in sorted(self.spans, key=lambda span: span.start_time_unix_nano):
            said = {one.key: one.value for one in span.attributes}
            if said["url.path"].string_value == path:
                assert span.end_time_unix_nano > span.start_time_unix_nano
                found.append(
                    {
                        "status": said["http.response.status_code"].int_value,
                        "trace": span.trace_id.hex(),
                        "parent": span.parent_span_id.hex(),
                        "method": said["http.request.method"].string_value,
                    }
                )
        return found


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            collector.take(gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        collector.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()


def test_every_request_for_a_prediction_is_a_span(
    home: Home, first: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.serve("tumours", (1, home.keep(first), 1.0, "stable"))
    path, request = "/v2/models/tumours/infer", tensor(first, [0])
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        with worker(home) as found:
            post = found.client.post
            assert post(path, json=request).status_code == 200
            assert post(path, json=request, headers={"traceparent": f"00-{TRACE}-{PARENT}-01"}).status_code == 200
            assert post(path, json={"inputs": []}).status_code == 400
            assert post(path, json=request, headers={"traceparent": "nonsense"}).status_code == 200
            unsampled = f"00-{TRACE[::-1]}-{PARENT}-00"
            assert post(path, json=request, headers={"traceparent": unsampled}).status_code == 200
            packed = gzip.compress(json.dumps(request).encode())
            coded = {"content-encoding": "gzip", "traceparent": f"00-{TRACE}-{PARENT}-01"}
            assert post(path, content=packed, headers=coded).status_code == 200
            assert post("/v2/models/nothing/infer", json=request).status_code == 404
            assert found.client.get("/metrics").status_code == 200
            assert found.stop() == 0  # what was not sent yet is sent at the end
    spans = collector.of(path)
    assert [span["status"] for span in spans] == [200, 200, 400, 200, 200]
    assert [span["parent"] for span in spans] == ["", PARENT, "", "", PARENT]
    assert [span["trace"] == TRACE for span in spans] == [False, True, False, False, True]
    assert len({span["trace"] for span in spans}) == 4
    assert [span["status"] for span in collector.of("/v2/models/nothing/infer")] == [404]
    assert len(collector.spans) == 6
    assert collector.service == "modelkeep"


def test_the_service_is_called_as_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_SERVICE_NAME", "clinic")
        tracing = traces.from_environment()
        assert tracing is not None
        tracing.end(tracing.begin("POST", "/v2/models/m/infer", {}), 503)
        tracing.close()
    assert collector.service == "clinic"
    assert [span["status"] for span in collector.of("/v2/models/m/infer")] == [503]
    assert collector.spans[0].status.code == 2  # STATUS_CODE_ERROR


def test_a_collector_that_is_away_disturbs_nobody(
    home: Home, first: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.serve("tumours", (1, home.keep(first), 1.0, "stable"))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with worker(home) as found:
        for row in range(20):
            assert found.infer("tumours", tensor(first, [row])).status_code == 200
        assert found.stop() == 0


def test_without_an_address_opentelemetry_is_not_even_imported() -> None:
    script = (
        "import sys; from modelkeep.protocols import traces; assert traces.from_environment() is None;"
        "assert not any(name.startswith('opentelemetry') for name in sys.modules)"
    )
    for more in ({}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"}):
        subprocess.run([sys.executable, "-c", script], env=dict(more), check=True, timeout=60)


def test_without_the_extra_serving_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    assert traces.from_environment() is None
    assert 'pip install "modelkeep[traces]"' in caplog.text
