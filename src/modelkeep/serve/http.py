"""The lean HTTP protocol: hot routes are answered before ASGI, everything else falls through to the application.

A subclass of uvicorn's httptools protocol, so TLS, limits, keep-alive and graceful shutdown stay uvicorn's. A hot
request is one whose head ``HotRoutes.find`` knows, without ``Expect`` or a content coding.

Parsing a head is a pure function of its bytes, and clients repeat theirs: heads that llhttp has accepted are
remembered, and when the same bytes come again followed by exactly as many bytes of body, the parser is not asked
twice. Anything else - another head, a body in pieces, pipelining - goes through llhttp.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from time import perf_counter
from typing import Any, Protocol

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from modelkeep.core.errors import Invalid

log = logging.getLogger(__name__)

GRACE = 0.25
JSON = b"application/json"
_MAX_HEADS = 4096
_COLD = (b"expect", b"content-encoding", b"upgrade")
_KEY = b"x-modelkeep-key"
_TIMEOUT = b"x-modelkeep-timeout-ms"


class Head:
    """The head of a request. One object stands for all requests of the same bytes and carries what they share.

    Attributes:
        method: As sent: ``b"POST"``.
        target: Path and query, as sent.
        headers: By lower-case name; of equal names the last.
        key: The ``x-modelkeep-key`` header, which routes by its hash; None without one.
        who: Whoever ``HotRoutes.admit`` found it comes from.
    """

    __slots__ = ("handler", "headers", "keep_alive", "key", "length", "method", "stamp", "target", "who")

    def __init__(self, method: bytes, target: bytes, headers: dict[bytes, bytes]) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        key = headers.get(_KEY)
        self.key = None if key is None else key.decode("latin-1")
        self.who: Any = None
        self.length = 0
        self.keep_alive = True
        self.handler: Handler | None = None
        self.stamp: object = None

    @property
    def deadline(self) -> float | None:
        """When the answer is of no use any more, by the header ``x-modelkeep-timeout-ms``; None without one.

        Raises:
            Invalid: It is no number of milliseconds.
        """
        return deadline(self.headers.get(_TIMEOUT))

    @property
    def is_json(self) -> bool:
        """Whether the body says that it is JSON, or says nothing."""
        return self.headers.get(b"content-type", JSON).lower().startswith(JSON)


def deadline(milliseconds: bytes | str | None) -> float | None:
    """``time.perf_counter`` after so many milliseconds, as the header ``x-modelkeep-timeout-ms`` gives them.

    Raises:
        Invalid: It is no number from 0 up.
    """
    if milliseconds is None:
        return None
    try:
        found = float(milliseconds)
    except ValueError:
        found = -1.0
    if not 0 <= found < math.inf:
        text = milliseconds if isinstance(milliseconds, str) else milliseconds.decode("latin-1")
        raise Invalid(f"{text[:60]!r} is no number of milliseconds from 0 up", path="x-modelkeep-timeout-ms")
    return perf_counter() + found / 1e3


Handler = Callable[["Sink", bytes, Head], None]
"""Takes one request: where to write the answer, the body and the head. May answer later."""


class Sink(Protocol):
    """Where one answer goes."""

    def write(self, status: int, body: bytes, headers: bytes = b"", kind: bytes = JSON) -> None:
        """Send the answer; ``headers`` are whole lines, each ending in CRLF. Once per request."""
        ...


class HotRoutes(Protocol):
    """What the lean protocol may answer by itself.

    Attributes:
        max_body: Bytes of the largest body of a hot request.
        stamp: Another object whenever ``find`` would answer otherwise than before.
    """

    max_body: int

    @property
    def stamp(self) -> object: ...

    def find(self, head: Head) -> Handler | None:
        """The handler of requests with this head, or None to let the application answer."""
        ...

    def admit(self, head: Head) -> tuple[int, bytes] | tuple[int, bytes, bytes] | None:
        """Asked before each request: None to let it in, or status, JSON body and header lines of the refusal."""
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
    heads: dict[bytes, Head]

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
        self._head: Head | None = None
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
            head = self.heads.get(data[:at])
            if (
                head is not None
                and len(data) - at == head.length
                and self.cycle.response_complete
                and self._leads(head)
                and not self.transport.is_closing()
            ):
                self._open(head.keep_alive)
                self._handle(head, data[at:])
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
        self._head = None
        self.url = b""
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self.cycle.response_complete:
            head = Head(self.parser.get_method(), self.url, {name.lower(): value for name, value in self.headers})
            if self._is_hot(head):
                self._head = head
                self._body.clear()
                self._size = 0
                head.keep_alive = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()
                self._open(head.keep_alive)
                return
        url, headers = self.url, self.headers
        super().on_message_begin()
        self.url = url
        for name, value in headers:
            super().on_header(name, value)
        super().on_headers_complete()

    def _is_hot(self, head: Head) -> bool:
        """Whether there is a handler and nothing in the head asks for more than the hot path does."""
        headers = head.headers
        if any(name in headers for name in _COLD):
            return False
        length = headers.get(b"content-length", b"0")
        # of a larger body the application says 413
        return (not length.isdigit() or int(length) <= self.routes.max_body) and self._leads(head)

    def _leads(self, head: Head) -> bool:
        """Whether there is a handler for the head; it is looked up when the routes have changed."""
        if head.stamp is not self.routes.stamp:
            head.stamp = self.routes.stamp
            head.handler = self.routes.find(head)
        return head.handler is not None

    def _open(self, keep_alive: bool) -> None:
        exchange = self._exchange
        exchange.response_complete = False
        exchange.keep_alive = keep_alive and not self._draining
        self.cycle = exchange  # type: ignore[assignment]

    def on_body(self, body: bytes) -> None:
        if self._head is None:
            super().on_body(body)
            return
        self._size += len(body)
        if self._size <= self.routes.max_body:
            self._body.append(body)

    def on_message_complete(self) -> None:
        self._between = True
        if self._head is None:
            self._whole = None
            super().on_message_complete()
            return
        head, self._head = self._head, None
        if self._size > self.routes.max_body:  # chunked, so its length was not known before
            self._exchange.keep_alive = False
            self.write(413, b'{"error":"the body is larger than %d bytes"}' % self.routes.max_body)
            return
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._remember(head, body)
        self._handle(head, body)

    def _handle(self, head: Head, body: bytes) -> None:
        """Call a handler; one that raises has a fault of ours, which must not pass for the client's."""
        try:
            refusal = self.routes.admit(head)
            if refusal is not None:
                self.write(*refusal)
                return
            assert head.handler is not None
            head.handler(self, body, head)
        except Exception:
            log.exception("a hot handler failed")
            if not self._exchange.response_complete:
                self.write(500, b'{"error":"this is our fault; see the log of the serving process"}')

    def _remember(self, head: Head, body: bytes) -> None:
        """Keep the head of a message that came whole and alone, so that the same bytes need no parser."""
        whole, self._whole = self._whole, None
        if whole is None or head.key is not None or b"?" in head.target:  # those hardly come twice
            return
        at = whole.find(b"\r\n\r\n") + 4
        if len(whole) - at == len(body):
            if len(self.heads) >= _MAX_HEADS:
                self.heads.clear()
            head.length = len(body)
            self.heads[whole[:at]] = head

    # bytes out

    def write(self, status: int, body: bytes, headers: bytes = b"", kind: bytes = JSON) -> None:
        """Answer the hot request of this connection."""
        exchange = self._exchange
        exchange.response_complete = True
        if exchange.disconnected or self.transport.is_closing():
            return
        close = b"" if exchange.keep_alive else b"connection: close\r\n"
        self.transport.write(
            b"%scontent-type: %s\r\n%s%s%scontent-length: %d\r\n\r\n%s"
            % (
                STATUS_LINE[status],
                kind,
                _lines(self.server_state.default_headers),
                headers,
                close,
                len(body),
                body,
            )
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
