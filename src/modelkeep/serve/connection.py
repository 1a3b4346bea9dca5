"""The room and the time that a connection gets: uvicorn's httptools protocol for clients slow, greedy or hostile.

What comes is parsed piece by piece, and no further than where answers must go out first. A client that does not
read its answers is not read from, and let go at last.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from modelkeep.serve.coming import Coming, Flow, Unread
from modelkeep.serve.heads import unread

MAX_HEAD = 65_536
HEAD_SECONDS = 20.0
BODY_SECONDS = 30.0
SLOWEST = 65_536
"""Bytes a second that a body must come with on average, beyond the first ``BODY_SECONDS``."""
UNREAD_SECONDS = 120.0
"""Seconds after which a client that reads nothing of what waits for it is let go."""
SLICE = 16_384
"""Bytes given to the parser at once: it makes requests of all that are in them."""
SWEEP = 5.0


class Patient(HttpToolsProtocol):
    """One connection, without what is answered on it."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._between = True  # no message has begun that is not whole yet
        self._coming = Coming()
        self._later = b""  # what came while answers to earlier requests were due
        self._fault = ""
        self._unread = Unread(0.0)
        self._served, self._swept, self._idle_since = 0, 0, 0.0
        self._sweeper: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Nobody may hold a connection open without asking for something."""
        super().connection_made(transport)
        self.flow: Flow = Flow(transport)
        self._unread.moved(self.loop.time())
        self._arm()

    def _parse(self, data: bytes) -> None:
        """Let llhttp parse, up to where answers must go out first."""
        coming, flow = self._coming, self.flow
        for at in range(0, len(data), SLICE):
            if at and (self.pipeline or flow.write_paused):
                self._later = data[at:]
                break
            piece = data[at : at + SLICE]
            between, before = self._between, coming.before()
            try:
                self.parser.feed_data(piece)
            except httptools.HttpParserError:
                self._malformed()
                return
            except httptools.HttpParserUpgrade:
                self._unsupported_upgrade_warning()
                return
            fault = None if self._between else coming.after(len(piece), MAX_HEAD, between, before)
            if fault is not None:
                self._turn_away(*fault)
            if self.transport.is_closing():
                return
        flow.behind = bool(self._later or self.pipeline)
        if flow.behind:
            flow.pause_reading()

    def _catch_up(self) -> None:
        """Look at what came earlier, when the answers that were due then are out."""
        data = self._later
        if not data or self.pipeline or self.flow.write_paused or self.transport.is_closing():
            return
        self._later, self.flow.behind = b"", False
        self.data_received(data)
        self.flow.resume_reading()

    def _malformed(self) -> None:
        """Say what is wrong with what came, unless the client would take that for the answer to something else."""
        cycle, own = self.cycle, not (self._between or self._coming.in_head)
        if not self.pipeline and (cycle.response_complete or (own and not getattr(cycle, "response_started", 0))):
            self.send_400_response(self._fault or "Invalid HTTP request received.")
        self.transport.close()

    def _arm(self) -> None:
        self._swept = self._served
        self._idle_since = self.loop.time()
        self._sweeper = self.loop.call_later(SWEEP, self._sweep)

    def _sweep(self) -> None:
        """Close the connection when a message takes too long to come, or none comes.

        One timer now and then, not one for each request.
        """
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._sweeper = self.loop.call_later(SWEEP, self._sweep)
        now = self.loop.time()
        if self._unread.seconds(self.transport, now) > UNREAD_SECONDS:
            self.transport.abort()
        if self.transport.is_closing():
            return
        coming = self._coming
        if not self._between:
            if self.flow.read_paused:  # it is not the client that is slow
                coming.since += SWEEP
            limit = HEAD_SECONDS if coming.in_head else BODY_SECONDS + coming.body / SLOWEST
            if now - coming.since > limit and not unread(self.transport):
                self._turn_away(408, b"the request did not come whole within %d seconds" % limit)
                return
        elif self._served == self._swept and self.cycle.response_complete:
            if now - self._idle_since > self.timeout_keep_alive and not unread(self.transport):
                self.transport.close()
        else:
            self._swept, self._idle_since = self._served, now

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, but not over a request that lies there unread: timers run before sockets."""
        if not unread(self.transport):
            super().timeout_keep_alive_handler()

    def pause_writing(self) -> None:
        """A client that does not read is not read from."""
        super().pause_writing()
        self.flow.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unread.moved(self.loop.time())
        self._go_on()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._go_on()

    def _go_on(self) -> None:
        """Something that kept back what comes may be gone."""
        self.flow.behind = bool(self._later or self.pipeline)
        if self._later:
            self.loop.call_soon(self._catch_up)
        self.flow.resume_reading()

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """A client that has said all it has to say still gets its answer; then the connection is closed."""
        if self.cycle.response_complete or not self._between or self.scheme == "https":
            return None
        self.cycle.keep_alive = False
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        super().connection_lost(exc)

    def _turn_away(self, status: int, why: bytes) -> None:
        """Say why, unless an earlier request must be answered first, and close."""
        raise NotImplementedError
