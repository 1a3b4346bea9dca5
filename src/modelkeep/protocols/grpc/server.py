"""The gRPC server: methods by path, connections, draining.

gRPC over HTTP/2 as PROTOCOL-HTTP2.md of the gRPC repository has it, on the event loop of the serving process
itself: a call is queued in the turn in which it arrives, so calls of all connections and protocols meet in one
micro-batch. Why not the grpcio server: docs/decisions/0006.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Mapping
from math import inf
from typing import Final, Protocol

from modelkeep.protocols.grpc.exchange import Exchange, Head, Method
from modelkeep.protocols.grpc.frames import ErrorCode
from modelkeep.protocols.grpc.http2 import Connection
from modelkeep.protocols.grpc.status import Code
from modelkeep.serve.turns import Turns

MAX_MESSAGE: Final = 64 * 1024 * 1024
GRACE: Final = 0.25
STALLED: Final = 30.0
AGE: Final = 60.0
"""Seconds after which a connection ends, so that clients spread anew over the processes that share the port."""
_LOOK: Final = 5.0
_REFUSED: Final = {401: Code.UNAUTHENTICATED, 429: Code.RESOURCE_EXHAUSTED}


class Doorman(Protocol):
    """Who may call."""

    def admit_call(self, head: Head) -> tuple[int, str] | None:
        """HTTP status (401, 403, 429) and message of a refusal; None to let the call in, ``head.who`` set."""
        ...

    def enter(self, head: Head) -> None:
        """Told whose message is handled next."""
        ...


class GrpcServer:
    """Answers gRPC calls on the running event loop.

    Args:
        methods: By path, as ``b"/package.Service/Method"``.
        max_message: Bytes of the largest message taken.
        doorman: Who may call; None for everybody.
        turns: Told of the first bytes of a turn of the loop; one of its own without.

    Attributes:
        connections: Those that are open.
        stopping: Called when the server begins to stop.
        watch: Told of each call as it begins; may set ``Exchange.watch``.
    """

    def __init__(
        self,
        methods: Mapping[bytes, Method],
        *,
        max_message: int = MAX_MESSAGE,
        doorman: Doorman | None = None,
        turns: Turns | None = None,
    ) -> None:
        self.methods = methods
        self.max_message = max_message
        self._doorman = doorman
        self.turns = turns or Turns()
        self.connections: set[Connection] = set()
        self.stopping: list[Callable[[], None]] = []
        self.watch: Callable[[Exchange], None] | None = None
        self.loop = asyncio.get_running_loop()
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.TimerHandle | None = None

    async def start(self, listener: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        """Accept connections on a listening socket.

        Args:
            tls: Must offer ``h2`` by ALPN.
        """
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # accepted sockets inherit it
        self._server = await self.loop.create_server(lambda: Connection(self), sock=listener, ssl=tls)
        self._sweep()

    async def stop(self, limit: float) -> None:
        """Take no further calls; calls under way have ``limit`` seconds to be answered."""
        if self._server is None:
            return
        self._server.close()
        for listener in self.stopping:
            listener()
        for connection in tuple(self.connections):
            connection.announce()
        await asyncio.sleep(GRACE)  # what clients sent before they heard of it is still answered
        end = self.loop.time() + limit
        for connection in tuple(self.connections):
            connection.drain()
        while self.connections and self.loop.time() < end:
            await asyncio.sleep(0.02)
        for connection in tuple(self.connections):
            connection.transport.abort()
        if self._sweeper is not None:
            self._sweeper.cancel()

    def refusal(self, head: Head) -> tuple[Code, str] | None:
        """Why a call is not taken; None to take it."""
        if head.fault:
            return Code.UNKNOWN, "expected POST with content-type application/grpc"
        if head.method is None:
            return Code.UNIMPLEMENTED, f"there is no method {head.path[:200].decode('latin-1')}"
        if self._doorman is not None:
            refusal = self._doorman.admit_call(head)
            if refusal is not None:
                return _REFUSED.get(refusal[0], Code.PERMISSION_DENIED), refusal[1]
        return None

    def enter(self, head: Head) -> None:
        """Handle a message of a call from here on, for whoever it comes from."""
        if self._doorman is not None:
            self._doorman.enter(head)

    def _sweep(self) -> None:
        """Close connections that began to say something and do not go on; retire the old. One timer for all."""
        self._sweeper = self.loop.call_later(_LOOK, self._sweep)
        now = self.loop.time()
        for connection in tuple(self.connections):
            if connection.heard < now - STALLED and connection.halting:
                connection.close(ErrorCode.ENHANCE_YOUR_CALM, "nothing came for too long")
            elif connection.born < now - AGE:
                connection.born = inf
                connection.announce()
                self.loop.call_later(GRACE, connection.drain)
