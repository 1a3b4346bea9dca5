"""OTLP/HTTP: spans of any OpenTelemetry exporter, at ``/v1/traces``.

Bodies are binary or JSON, plain or compressed (gzip, deflate); answers are in the form of the request. The header
``x-mlflow-experiment-id`` says where new traces are kept (experiment 0 without it), ``x-mlflow-run-id`` names a
run to attach them to. What cannot be read at all is a 400 with a ``google.rpc.Status``; spans that make no sense
are counted in ``partial_success`` and the others are kept.

Source: opentelemetry.io/docs/specs/otlp (1.5.0), "OTLP/HTTP".
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import msgspec
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from sqlalchemy import Connection

from modelkeep.core.errors import Invalid, ModelkeepError, NotFound, Refused, Unavailable
from modelkeep.lifecycle.keep import Keep
from modelkeep.protocols.access.door import Doorkeeper
from modelkeep.protocols.mlflow import checks, traces_otlp
from modelkeep.registry import traces_spans
from modelkeep.registry.experiments import DEFAULT
from modelkeep.serve.http import JSON, Head, Sink

PATH = b"/v1/traces"
PROTOBUF = b"application/x-protobuf"
MAX_BODY = 64 * 1024 * 1024
"""Bytes of the largest body once it is decompressed."""

LARGE = 256 * 1024
"""Bytes beyond which a body is read in a thread, so that other requests do not wait for it."""

_CODES: tuple[tuple[type[ModelkeepError], int, int], ...] = (  # HTTP status and google.rpc.Code
    (Invalid, 400, 3),
    (NotFound, 404, 5),
    (Refused, 403, 7),
    (Unavailable, 503, 14),
)
log = logging.getLogger(__name__)


class Entrance:
    """The handler of ``/v1/traces`` over one home, if whoever asks may write there."""

    def __init__(self, keep: Keep, keeper: Doorkeeper) -> None:
        self._db = keep.db
        self._keeper = keeper
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="modelkeep-otlp")

    def answer(self, sink: Sink, body: bytes, head: Head) -> None:
        """Keep what the request holds, and answer once it is durable. Call it on the loop."""
        loop = asyncio.get_running_loop()
        kind = head.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        reply = _Reply(sink, JSON if kind == JSON else PROTOBUF)
        who = None if head.who is None else head.who.who

        def ready(read: traces_otlp.Read, experiment: int, run_id: str) -> None:
            def work(conn: Connection) -> None:
                self._keeper.spans(conn, who, experiment, run_id, list(read.traces))
                traces_spans.log(conn, experiment, list(read.traces.values()), run_id)

            def told(done: Future[None]) -> None:
                fault = done.exception()
                if fault is None:
                    loop.call_soon_threadsafe(reply.accept, read)
                else:
                    loop.call_soon_threadsafe(reply.refuse, fault)

            self._db.submit(work).add_done_callback(told)

        try:
            experiment, run_id = _place(head)
            if len(body) <= LARGE and not head.headers.get(b"content-encoding"):
                ready(decoded(body, kind, b""), experiment, run_id)
                return
        except Exception as error:
            reply.refuse(error)
            return
        encoding = head.headers.get(b"content-encoding", b"").strip().lower()
        reading = loop.run_in_executor(self._threads, decoded, body, kind, encoding)
        reading.add_done_callback(_then(lambda read: ready(read, experiment, run_id), reply.refuse))


def _then(go: Callable[[Any], None], refuse: Callable[[BaseException], None]) -> Callable[[Any], None]:
    def told(done: Any) -> None:
        try:
            go(done.result())
        except Exception as error:
            refuse(error)

    return told


class _Reply:
    """Answers in the form of the request."""

    def __init__(self, sink: Sink, kind: bytes) -> None:
        self._sink = sink
        self._kind = kind

    def accept(self, read: traces_otlp.Read) -> None:
        if self._kind == JSON:
            partial = {"partialSuccess": {"rejectedSpans": str(read.refused), "errorMessage": read.why}}
            body = msgspec.json.encode(partial if read.refused else {})
        else:
            said = ExportTraceServiceResponse()
            if read.refused:
                said.partial_success.rejected_spans = read.refused
                said.partial_success.error_message = read.why
            body = said.SerializeToString()
        self._sink.write(200, body, b"", self._kind)

    def refuse(self, fault: BaseException) -> None:
        status, code = next((found for kind, *found in _CODES if isinstance(fault, kind)), (500, 13))
        message = (
            str(fault) if isinstance(fault, ModelkeepError) else "this is our fault; see the log of the server"
        )
        if not isinstance(fault, ModelkeepError):
            log.error("POST /v1/traces failed", exc_info=fault)
        text = message.encode("utf-8", "replace")
        if self._kind == JSON:
            body = msgspec.json.encode({"code": code, "message": text.decode()})
        else:
            body = status_message(code, text)
        self._sink.write(status, body, b"", self._kind)


def decoded(body: bytes, kind: bytes, encoding: bytes) -> traces_otlp.Read:
    """Read a body. Raises ``Invalid``."""
    if encoding not in (b"", b"identity"):
        body = decompressed(body, encoding)
    if kind == PROTOBUF:
        return traces_otlp.binary(body)
    if kind == JSON:
        return traces_otlp.text(body)
    raise Invalid(f"content-type: expected application/x-protobuf or application/json, found {kind[:60]!r}")


def decompressed(body: bytes, encoding: bytes) -> bytes:
    """A body as it was before ``content-encoding``. Raises ``Invalid``, also when it grows beyond ``MAX_BODY``."""
    windows = {b"gzip": (31,), b"x-gzip": (31,), b"deflate": (15, -15)}.get(encoding)
    if windows is None:
        raise Invalid(f"content-encoding: expected gzip or deflate, found {encoding[:60]!r}")
    for window in windows:
        unpack = zlib.decompressobj(window)
        try:
            found = unpack.decompress(body, MAX_BODY)
        except zlib.error:
            continue
        if unpack.unconsumed_tail:
            raise Invalid(f"the body is larger than {MAX_BODY} bytes once it is decompressed")
        if unpack.eof:
            return found
    raise Invalid(f"the body is no {encoding.decode('latin-1')}")


def _place(head: Head) -> tuple[int, str]:
    experiment = head.headers.get(b"x-mlflow-experiment-id", b"").decode("latin-1").strip()
    run_id = head.headers.get(b"x-mlflow-run-id", b"").decode("latin-1").strip()
    if run_id:
        checks.run_id(run_id)
    return (checks.experiment_id(experiment) if experiment else DEFAULT), run_id


def status_message(code: int, message: bytes) -> bytes:
    """A ``google.rpc.Status``: field 1 the code, field 2 the message. Source: protobuf.dev, "Encoding"."""
    length, size = len(message), b""
    while length > 127:
        size += bytes([length & 127 | 128])
        length >>= 7
    return b"\x08" + bytes([code]) + b"\x12" + size + bytes([length]) + message
