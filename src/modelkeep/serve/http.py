"""The lean HTTP protocol: hot routes are answered before ASGI, everything else falls through to the application.

A subclass of uvicorn's httptools protocol, so TLS, limits, keep-alive and graceful shutdown stay uvicorn's. A hot
request is a POST of JSON to a path that ``HotRoutes.find`` knows, without ``Expect`` or a content coding.

Parsing a head is a pure function of its bytes, and clients repeat theirs: heads that llhttp has accepted are
remembered, and when the same bytes come again followed by exactly as many bytes of body, the parser is not asked
twice. Anything else - another head, a body in pieces, pipelining - goes through llhttp.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

Handler = Callable[["Sink", bytes, "str | None"], None]
"""Takes one request: where to write the answer, the body, the ``x-modelkeep-key`` header or None."""

log = logging.getLogger(__name__)

GRACE = 0.25
_MAX_HEADS = 4096
_COLD = frozenset((b"expect", b"content-encoding", b"inference-header-content-length", b"upgrade"))
_KEY = b"x-modelkeep-key"


class Sink(Protocol):
    """Where one answer goes."""

    def write(self, status: int, body: bytes, headers: bytes = b"") -> None:
        """Send the answer as JSON; ``headers`` are whole lines, each ending in CRLF. Once per request."""
        ...


class HotRoutes(Protocol):
    """What the lean protocol may answer by itself."""

    max_body: int

    def find(self, target: bytes) -> Handler | None:
        """The handler of POST requests to this exact target, or None to let the application answer."""
        ...


class _Exchange:
    """A hot request as uvicorn's own code sees it: a cycle that is complete or not."""

    __slots__ = ("disconnected", "keep_alive", "message_event", "response_complete")

    def __init__(self) -> None:
        self.response_complete = True
        self.disconnected = False
        self.keep_alive = True
        self.message_event = self

    def set(self) -> None:
        """Nobody waits for a hot request's messages."""


class LeanProtocol(HttpToolsProtocol):
    """One connection. Subclasses made by ``protocol`` carry the routes."""

    routes: HotRoutes
    heads: dict[bytes, tuple[bytes, int, bool]]

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._exchange = _Exchange()
        self.cycle = self._exchange  # type: ignore[assignment]
        self._handler: Handler | None = None
        self._key: str | None = None
        self._body: list[bytes] = []
        self._size = 0
        self._between = True  # the parser stands between two messages
        self._whole: bytes | None = None  # the message being parsed, while it may still be one chunk
        self._served = 0
        self._swept = -1
        self._sweeper: asyncio.TimerHandle | None = None
        self._draining = False

    # bytes in

    def data_received(self, data: bytes) -> None:
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
        if self._between and self._exchange.response_complete:
            at = data.find(b"\r\n\r\n") + 4
            known = self.heads.get(data[:at])
            if known is not None and len(data) - at == known[1] and self.cycle.response_complete:
                handler = self.routes.find(known[0])
                if handler is not None and not self.transport.is_closing():
                    self._open(known[2])
                    self._handle(handler, data[at:], None)
                    return
            self._whole = data
        else:
            self._whole = None
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
        except httptools.HttpParserUpgrade:
            self._unsupported_upgrade_warning()

    def on_message_begin(self) -> None:
        if not self._between:
            self._whole = None
        self._between = False
        self._handler = None
        self.url = b""
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self.parser.get_method() == b"POST" and self.cycle.response_complete:
            handler = self.routes.find(self.url)
            if handler is not None and self._read_headers():
                self._handler = handler
                self._body.clear()
                self._size = 0
                self._open(self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive())
                return
        url, headers = self.url, self.headers
        super().on_message_begin()
        self.url = url
        for name, value in headers:
            super().on_header(name, value)
        super().on_headers_complete()

    def _read_headers(self) -> bool:
        """Whether nothing in the headers asks for more than the hot path does."""
        self._key = None
        for name, value in self.headers:
            lower = name.lower()
            if lower in _COLD or (lower == b"content-type" and not value.lower().startswith(b"application/json")):
                return False
            if lower == _KEY:
                self._key = value.decode("latin-1")
                self._whole = None
            elif lower == b"content-length" and int(value) > self.routes.max_body:
                return False  # the application says 413
        return True

    def _open(self, keep_alive: bool) -> None:
        exchange = self._exchange
        exchange.response_complete = False
        exchange.keep_alive = keep_alive and not self._draining
        self.cycle = exchange  # type: ignore[assignment]

    def on_body(self, body: bytes) -> None:
        if self._handler is None:
            super().on_body(body)
            return
        self._size += len(body)
        if self._size <= self.routes.max_body:
            self._body.append(body)

    def on_message_complete(self) -> None:
        self._between = True
        if self._handler is None:
            self._whole = None
            super().on_message_complete()
            return
        handler, self._handler = self._handler, None
        if self._size > self.routes.max_body:  # chunked, so its length was not known before
            self._exchange.keep_alive = False
            self.write(413, b'{"error":"the body is larger than %d bytes"}' % self.routes.max_body)
            return
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._remember(body)
        self._handle(handler, body, self._key)

    def _handle(self, handler: Handler, body: bytes, key: str | None) -> None:
        """Call a handler; one that raises has a fault of ours, which must not pass for the client's."""
        try:
            handler(self, body, key)
        except Exception:
            log.exception("a hot handler failed")
            if not self._exchange.response_complete:
                self.write(500, b'{"error":"this is our fault; see the log of the serving process"}')

    def _remember(self, body: bytes) -> None:
        """Keep the head of a message that came whole and alone, so that the same bytes need no parser."""
        whole, self._whole = self._whole, None
        if whole is None or not body:
            return
        at = whole.find(b"\r\n\r\n") + 4
        if len(whole) - at == len(body):
            if len(self.heads) >= _MAX_HEADS:
                self.heads.clear()
            self.heads[whole[:at]] = (self.url, len(body), self._exchange.keep_alive)

    # bytes out

    def write(self, status: int, body: bytes, headers: bytes = b"") -> None:
        """Answer the hot request of this connection."""
        exchange = self._exchange
        exchange.response_complete = True
        if exchange.disconnected or self.transport.is_closing():
            return
        close = b"" if exchange.keep_alive else b"connection: close\r\n"
        self.transport.write(
            b"%scontent-type: application/json\r\n%s%s%scontent-length: %d\r\n\r\n%s"
            % (STATUS_LINE[status], _lines(self.server_state.default_headers), headers, close, len(body), body)
        )
        self._served += 1
        if not exchange.keep_alive:
            self.transport.close()
        elif self.pipeline:
            self.on_response_complete()
        else:
            self.server_state.total_requests += 1
            if self._sweeper is None:
                self._arm()

    def _arm(self) -> None:
        self._swept = self._served
        self._sweeper = self.loop.call_later(self.timeout_keep_alive, self._sweep)

    def _sweep(self) -> None:
        """Close the connection when nothing was answered since the last look: one timer, not one per request."""
        self._sweeper = None
        if self.transport.is_closing():
            return
        if self._served == self._swept and self._between and self.cycle.response_complete:
            self.transport.close()
        else:
            self._arm()

    def shutdown(self) -> None:
        """Let what the client may have sent already be answered, with ``connection: close``, before closing."""
        if self.cycle.response_complete and not self._draining:
            self._draining = True
            self.loop.call_later(GRACE, self.shutdown)
        else:
            super().shutdown()

    def pause_writing(self) -> None:
        """A client that does not read is not read from."""
        super().pause_writing()
        self.flow.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.flow.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._exchange.disconnected = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        super().connection_lost(exc)


_rendered: tuple[Any, bytes] = (None, b"")


def _lines(headers: list[tuple[bytes, bytes]]) -> bytes:
    """uvicorn's default headers (date, server) as lines; it makes a new list once a second."""
    global _rendered
    if _rendered[0] is not headers:
        _rendered = (headers, b"".join(b"%s: %s\r\n" % pair for pair in headers))
    return _rendered[1]


def protocol(hot: HotRoutes) -> type[LeanProtocol]:
    """The protocol class that answers these routes, for ``uvicorn.Config(http=...)``."""

    class Protocol(LeanProtocol):
        routes = hot
        heads = {}  # noqa: RUF012 - shared by every connection of the server on purpose

    return Protocol
