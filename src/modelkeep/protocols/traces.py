"""OpenTelemetry spans of requests, when the environment asks for them.

They are asked for by an address to send them to, ``OTEL_EXPORTER_OTLP_ENDPOINT`` (or ``..._TRACES_ENDPOINT``), and
need the extra ``traces``. Everything else is OpenTelemetry's own: sampling, batching, headers, the service's name.
Without an address nothing is imported, and no request passes through here. A request that carries ``traceparent``
continues its trace.

https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
https://opentelemetry.io/docs/specs/semconv/http/http-spans/
https://www.w3.org/TR/trace-context/
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modelkeep.serve.hot import Unwritten
from modelkeep.serve.http import JSON, Handler, Head, Sink

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from modelkeep.protocols.grpc.exchange import Exchange

log = logging.getLogger(__name__)

_ADDRESSES: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_NAME: Final = "modelkeep"
_SERVERS_FAULT: Final = {2, 4, 12, 13, 14, 15}
"""The codes of gRPC that are a server's fault, as the conventions for spans have it."""


def from_environment() -> Tracing | None:
    """What makes spans, or None when nobody asked for them or they cannot be made."""
    if not any(os.environ.get(name) for name in _ADDRESSES):
        return None
    if (
        os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
        or os.environ.get("OTEL_TRACES_EXPORTER") == "none"
    ):
        return None
    try:
        return Tracing()
    except ImportError as error:
        # serving matters more than watching it: a variable meant for other programs must not keep it from starting
        log.warning('requests are not traced: %s; pip install "modelkeep[traces]"', error)
        return None


class Tracing:
    """Makes a span for each request and sends them in batches, from a thread of its own."""

    def __init__(self) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create()
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):  # the environment names none
            resource = resource.merge(Resource({SERVICE_NAME: _NAME}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer(_NAME)
        self._context = TraceContextTextMapPropagator().extract
        self._kind = SpanKind.SERVER

    def begin(self, method: str, path: str, headers: Mapping[str, str]) -> Span:
        """A span of a request, begun now.

        Args:
            headers: ``traceparent`` and ``tracestate``, if the request has them.
        """
        attributes = {"http.request.method": method, "url.path": path, "url.scheme": "http"}
        context = self._context(headers) if headers else None
        return self._tracer.start_span(f"{method} {path}", context, kind=self._kind, attributes=attributes)

    def end(self, span: Span, status: int) -> None:
        """The request of a span was answered with an HTTP status."""
        from opentelemetry.trace import StatusCode

        span.set_attribute("http.response.status_code", status)
        if status >= 500:
            span.set_attribute("error.type", str(status))
            span.set_status(StatusCode.ERROR)
        span.end()

    def hot(self, handler: Handler) -> Handler:
        """The handler with a span around each request."""

        def traced(sink: Sink, body: bytes, head: Head) -> None:
            found = _parent(head.headers)
            path = head.target.decode("latin-1").partition("?")[0]
            span = self.begin(head.method.decode("latin-1"), path, found)
            try:
                handler(_Spanned(sink, self, span), body, head)
            except BaseException:
                self.end(span, 500)
                raise

        return traced

    def app(self, app: ASGIApp) -> ASGIApp:
        """The application with a span around each POST: predictions that are not hot."""

        async def traced(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or scope["method"] != "POST":
                await app(scope, receive, send)
                return
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            span = self.begin(scope["method"], scope["path"], headers)
            status = 500

            async def sent(message: Message) -> None:
                nonlocal status
                status = message.get("status", status)
                await send(message)

            try:
                await app(scope, receive, sent)
            finally:
                self.end(span, status)

        return traced

    def call(self, exchange: Exchange) -> None:
        """Make a span of a gRPC call, which ends with it.

        https://opentelemetry.io/docs/specs/semconv/rpc/grpc/
        """
        from opentelemetry.trace import StatusCode

        path = exchange.head.path.decode("latin-1").strip("/")
        service, _, method = path.rpartition("/")
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
        found = _parent(exchange.head.headers)
        context = self._context(found) if found else None
        span = self._tracer.start_span(path, context, kind=self._kind, attributes=attributes)

        def ended(code: int) -> None:
            span.set_attribute("rpc.grpc.status_code", int(code))
            if code in _SERVERS_FAULT:
                span.set_status(StatusCode.ERROR)
            span.end()

        exchange.watch = ended

    def close(self) -> None:
        """Send what is left. Blocks for as long as OpenTelemetry's own limits say."""
        self._provider.shutdown()


def _parent(headers: Mapping[bytes, bytes]) -> dict[str, str]:
    """The headers that say which trace a request continues."""
    names = ((b"traceparent", "traceparent"), (b"tracestate", "tracestate"))
    return {name: headers[raw].decode("latin-1") for raw, name in names if raw in headers}


class _Spanned:
    """A sink whose answer ends a span."""

    __slots__ = ("_sink", "_span", "_tracing")

    def __init__(self, sink: Sink, tracing: Tracing, span: Any) -> None:
        self._sink = sink
        self._tracing = tracing
        self._span = span

    def write(self, status: int, body: bytes, headers: bytes = b"", kind: bytes = JSON) -> None:
        """Answer, and end the span."""
        try:
            self._sink.write(status, body, headers, kind)
        except Unwritten:
            self._tracing.end(self._span, 500)
            raise
        self._tracing.end(self._span, status)
