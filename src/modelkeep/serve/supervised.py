"""A serving process as one of several: told by its supervisor on which sockets to accept, telling how it fares.

The supervisor (``app.fleet``) owns the listening sockets and hands out copies of their descriptors, so that no
connection waits on a socket that somebody closes: when processes come, go or die, another one accepts from the
same queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import msgspec
import uvicorn

from modelkeep.serve.dataplane import DataPlane
from modelkeep.serve.http import LeanProtocol
from modelkeep.serve.orders import GRPC, Order, Standing

TELL = 0.25


class Supervised:
    """The process's end of the socket.

    Args:
        leash: Connected datagram socket to the supervisor.
        plane: What is served.
        start_grpc: Answers gRPC on a listening socket.
    """

    def __init__(
        self,
        leash: socket.socket,
        plane: DataPlane,
        start_grpc: Callable[[socket.socket | None], Awaitable[None]],
    ) -> None:
        self._leash = leash
        self._plane = plane
        self._start_grpc = start_grpc
        self._servers: dict[int, Any] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._shed = 0
        self._orders = asyncio.Lock()

    def begin(self, server: uvicorn.Server) -> None:
        """Follow orders and tell the standing from now on."""
        loop = asyncio.get_running_loop()
        self._leash.setblocking(False)
        loop.add_reader(self._leash, self._hear, server)
        self._keep(self._tell())

    def end(self) -> None:
        """Follow no more orders."""
        asyncio.get_running_loop().remove_reader(self._leash)
        for task in self._tasks:
            task.cancel()

    def _keep(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _hear(self, server: uvicorn.Server) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                message, descriptors, _, _ = socket.recv_fds(self._leash, 65_536, 250)
                if not message:
                    return
                order = msgspec.json.decode(message, type=Order)
                sockets = [socket.socket(fileno=descriptor) for descriptor in descriptors]
                self._keep(self._follow(server, order, sockets))

    async def _follow(self, server: uvicorn.Server, order: Order, sockets: list[socket.socket]) -> None:
        async with self._orders:
            for number, listener in zip(order.take, sockets, strict=True):
                if number == GRPC:
                    await self._start_grpc(listener)
                elif not server.should_exit:
                    await self._accept(server, number, listener)
            before = len(self._servers)
            for number in order.drop:
                gone = self._servers.pop(number)
                server.servers.remove(gone)
                gone.close()
            if order.drop:
                part(server, len(order.drop) / before)

    async def _accept(self, server: uvicorn.Server, number: int, listener: socket.socket) -> None:
        config = server.config
        protocol: Any = config.http_protocol_class
        made = partial(
            protocol,
            config=config,
            server_state=server.server_state,
            app_state=server.lifespan.state,
        )
        loop = asyncio.get_running_loop()
        found = await loop.create_server(made, sock=listener, ssl=config.ssl, backlog=config.backlog)
        self._servers[number] = found
        server.servers.append(found)

    async def _tell(self) -> None:
        spent, at = time.process_time(), time.perf_counter()
        while True:
            await asyncio.sleep(TELL)
            now_spent, now = time.process_time(), time.perf_counter()
            standing = self._standing((now_spent - spent) / (now - at))
            spent, at = now_spent, now
            with contextlib.suppress(OSError):  # the supervisor ends, or is behind with reading
                self._leash.send(msgspec.json.encode(standing))

    def _standing(self, busy: float) -> Standing:
        counters = [series.counters for series in self._plane.series()]
        shed = sum(one.shed for one in counters)
        pressed = shed > self._shed or self._plane.pressure() > 0.5
        self._shed = shed
        requests = sum(one.requests + one.errors + one.late for one in counters) + shed
        return Standing(self._plane.generation >= 0, busy, pressed, requests)


def part(server: uvicorn.Server, share: float) -> None:
    """Ask a share of the clients, with their next answer, to connect anew: others get their part of them."""
    for connection in tuple(server.server_state.connections):
        if isinstance(connection, LeanProtocol) and random.random() < share:
            connection.part()
