"""The lean HTTP protocol: hot routes are answered before ASGI, everything else falls through to the application.

A subclass of uvicorn's httptools protocol, so TLS, limits, keep-alive and graceful shutdown stay uvicorn's. A hot
request is one whose head ``HotRoutes.find`` knows, without ``Expect`` or a content coding.

Parsing a head is a pure function of its bytes, and clients repeat theirs: heads that llhttp has accepted are
remembered, and when the same bytes come again the parser is not asked twice: what follows is the body, in one or
several pieces. Anything else - another head, a body in chunks, pipelining - goes through llhttp.

Clients may be slow or hostile (``serve.connection``): heads have a largest size, heads and bodies a time by which
they must be whole; what is late is answered with 408 (RFC 9110, 15.5.9) and the connection closed. So is that of a
client which does not read its answers. Trailers after a body (RFC 9112, 7.1.2) are dropped.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE
from uvicorn.server import ServerState

from modelkeep.serve.bodies import Body
from modelkeep.serve.connection import Patient
from modelkeep.serve.heads import Exchange, Heads, opening, plain
from modelkeep.serve.hot import JSON, Handler, Head, HotRoutes, Sink, Unwritten, deadline
from modelkeep.serve.turns import Turns

__all__ = ["JSON", "Handler", "Head", "HotRoutes", "LeanProtocol", "Sink", "deadline", "protocol"]

log = logging.getLogger(__name__)

GRACE = 0.25
_ONCE = frozenset({b"host", b"origin", b"authorization"})
"""Headers of which who stands in front might take another one than is taken here."""


class LeanProtocol(Patient):
    """One connection. Subclasses made by ``protocol`` carry the routes."""

    routes: HotRoutes
    heads: Heads
    turns: Turns

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._exchange = Exchange()
        self.cycle = self._exchange  # type: ignore[assignment]
        self._head: Head | None = None
        self._body = Body()
        self._named = False  # whether somebody has said who they are
        self._gathering: Head | None = None  # of a message whose body comes without the parser
        self._deaf = False  # the request is answered already, what comes of its body is of no use
        self._first: bytes | None = None  # the piece a message began with, unless something else came before in it
        self._draining = self._parting = self._passing = False

    # bytes in

    def data_received(self, data: bytes) -> None:
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
        if self._later:
            self._later += data
            return
        turns = self.turns
        if turns.over:
            turns.begin()
        if self._gathering is not None:
            self._coming.came += len(data)
            self._gather(self._gathering, data)
            return
        if self._between:
            self._first = None
            exchange = self._exchange
            if exchange.response_complete:
                at = data.find(b"\r\n\r\n") + 4
                head = self.heads.get(data[:at])
                if (
                    head is not None
                    and len(data) - at <= head.length
                    and self.cycle.response_complete
                    and (head.stamp is turns.stamp or self._leads(head))
                    and head.handler is not None
                    and not self.transport.is_closing()
                ):
                    exchange.response_complete = False
                    exchange.keep_alive = head.keep_alive and not (self._draining or self._parting)
                    self.cycle = exchange  # type: ignore[assignment]
                    self._take(head, data, at)
                    return
                self._first = data
        self._parse(data)

    def _take(self, head: Head, data: bytes, at: int) -> None:
        """A message whose head is known: ``data`` holds its body, or the beginning of it, from ``at`` on."""
        if self._exchange.keep_alive and head.free and not self._named:  # the usual request
            lets_in = head.early is None or not head.early(self)
        else:
            lets_in = self._lets_in(head)
        if len(data) - at == head.length:
            if lets_in:
                self._handle(head, data[at:])
            return
        self._begin()
        self._gathering, self._deaf = head, not lets_in
        self._coming.came = len(data) - at
        self._gather(head, memoryview(data)[at:])

    def _begin(self) -> None:
        """A message has begun."""
        self._between = self._deaf = False
        self._coming.begin(self.loop.time())
        self._body.clear()

    def _gather(self, head: Head, piece: bytes | memoryview) -> None:
        """A further piece of a body whose head is known."""
        self._coming.body = self._coming.came
        over = self._coming.came - head.length
        if not self._deaf:
            self._body.add(piece if over <= 0 else piece[:-over])
        if over < 0:
            return
        deaf, whole = self._deaf, self._body.take()
        self._gathering, self._between, self._deaf = None, True, False
        if not deaf:
            self._handle(head, whole)
        if over and not self.transport.is_closing():
            self.data_received(bytes(piece[-over:]))

    def on_message_begin(self) -> None:
        if not self._between:
            self._first = None
        self._begin()
        self._coming.in_head = True
        self._head = None
        self.url = b""
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._coming.in_head:  # not a trailer, which could be anything (RFC 9110, 6.5.1)
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._coming.in_head = False
        if b"#" in self.url:  # no part of a request's target (RFC 9112, 3.2): what follows would be overlooked
            raise httptools.HttpParserError("a fragment in the target")
        named = {name.lower(): value for name, value in self.headers}
        if len(named) < len(self.headers):
            self._once()
        if self.cycle.response_complete:
            head = Head(self.parser.get_method(), self.url, named)
            if self._is_hot(head):
                self._head = head
                head.keep_alive = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()
                self._exchange.response_complete = False
                self._exchange.keep_alive = head.keep_alive and not (self._draining or self._parting)
                self.cycle = self._exchange  # type: ignore[assignment]
                self._deaf = not self._lets_in(head)
                return
        url, headers = self.url, self.headers
        super().on_message_begin()
        self.url = url
        for name, value in headers:
            super().on_header(name, value)
        super().on_headers_complete()

    def _once(self) -> None:
        """Refuse a head that says twice what must be said once."""
        names = [name.lower() for name, _ in self.headers]
        for name in _ONCE:
            if names.count(name) > 1:
                self._fault = f"the header {name.decode()} is there more than once"
                raise httptools.HttpParserError(self._fault)

    def _is_hot(self, head: Head) -> bool:
        return not self._passing and plain(head, self.routes.max_body) and self._leads(head)

    def _leads(self, head: Head) -> bool:
        """Whether there is a handler for the head; it is looked up when the routes have changed."""
        turns = self.turns
        if turns.stamp is None:
            turns.stamp = self.routes.stamp
        if head.stamp is not turns.stamp:
            head.stamp = turns.stamp
            head.early = None
            head.handler = self.routes.find(head)
        return head.handler is not None

    def _lets_in(self, head: Head) -> bool:
        """Whether a request whose head is here is to be handled; otherwise it is answered now.

        Who wants the connection closed is told when all has come: the close would outrun the answer.
        """
        return not self._exchange.keep_alive or self._admits(head)

    def _admits(self, head: Head) -> bool:
        try:
            if not head.free or self._named:
                self._named = not head.free
                refusal = self.routes.admit(head)
                if refusal is not None:
                    self.write(*refusal)
                    return False
            return head.early is None or not head.early(self)
        except Exception:
            self._failed()
            return False

    def on_body(self, body: bytes) -> None:
        self._coming.body += len(body)
        if self._head is None:
            super().on_body(body)
            return
        if self._coming.body <= self.routes.max_body and not self._deaf:
            self._body.add(body)

    def on_message_complete(self) -> None:
        self._between = True
        if self._head is None:
            self._first = None
            super().on_message_complete()
            return
        head, self._head = self._head, None
        if self._deaf:
            self._deaf = False
            self._remember(head, self._coming.body)
            return
        if self._coming.body > self.routes.max_body:  # chunked, so its length was not known before
            self._exchange.keep_alive = False
            self.write(413, b'{"error":"the body is larger than %d bytes"}' % self.routes.max_body)
            return
        body = self._body.take()
        self._remember(head, len(body))
        self._handle(head, body)

    def _handle(self, head: Head, body: bytes) -> None:
        if not self._exchange.keep_alive and not self._admits(head):
            return
        try:
            head.handler(self, body, head)  # type: ignore[misc]
        except Exception:
            self._failed()

    def _failed(self) -> None:
        """A handler that raises has a fault of ours, which must not pass for the client's."""
        log.exception("a hot handler failed")
        if not self._exchange.response_complete:
            self.write(500, b'{"error":"this is our fault; see the log of the serving process"}')

    def _remember(self, head: Head, size: int) -> None:
        """Keep the head of a message that came alone, so that the same bytes need no parser."""
        first, self._first = self._first, None
        if first is not None:
            self.heads.keep(first, head, size)

    # bytes out

    def write(self, status: int, body: bytes, headers: bytes = b"", kind: bytes = JSON) -> None:
        """Answer the hot request of this connection."""
        exchange = self._exchange
        transport = self.transport
        if exchange.disconnected or transport.is_closing():
            exchange.response_complete = True
            return
        usual, lines = opening(self.server_state.default_headers)
        if status != 200 or kind is not JSON:
            usual = b"%scontent-type: %s\r\n%s" % (STATUS_LINE[status], kind, lines)
        if not exchange.keep_alive:
            headers += b"connection: close\r\n"
        answer = b"%s%scontent-length: %d\r\n\r\n%s" % (usual, headers, len(body), body)
        exchange.response_complete = True
        try:
            transport.write(answer)
            self._served += 1
            if not exchange.keep_alive:
                transport.close()
            elif self.pipeline:
                self.on_response_complete()
            else:
                self.server_state.total_requests += 1
        except Exception as error:
            transport.close()
            raise Unwritten from error

    def pass_on(self, head: Head) -> None:
        """Let the application answer the hot request of this connection, which has no body, after all."""
        self._exchange.response_complete = True
        if self.pipeline or not self._between:  # a client that did not wait for its answer may ask again
            self.transport.close()
        elif not self.transport.is_closing():
            parser, self.parser, self._passing = self.parser, httptools.HttpRequestParser(self), True
            self.parser.feed_data(head.raw)
            self.parser, self._passing = parser, False

    def _turn_away(self, status: int, why: bytes) -> None:
        """Say why, unless an earlier request must be answered first, and close."""
        if not self._deaf and (self._gathering or self._head or self.cycle.response_complete):
            self._exchange.keep_alive = False
            self.write(status, b'{"error":"%s"}' % why)
        self.transport.close()

    def part(self) -> None:
        """Let the client connect anew after its next answer."""
        self._parting = True

    def shutdown(self) -> None:
        """Let what the client may have sent already be answered, with ``connection: close``, before closing."""
        if self.cycle.response_complete and not self._draining:
            self._draining = True
            self.loop.call_later(GRACE, self.shutdown)
        else:
            super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        self._exchange.disconnected = True
        super().connection_lost(exc)


def protocol(hot: HotRoutes) -> type[LeanProtocol]:
    """The protocol class that answers these routes, for ``uvicorn.Config(http=...)``."""

    class Protocol(LeanProtocol):
        routes = hot
        turns = getattr(hot, "turns", None) or Turns()
        heads = Heads()  # shared by every connection of the server

    return Protocol
