"""Clients that take their time: heads and bodies that do not come, connections that nobody uses."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest
import uvicorn
import uvloop
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from modelkeep.serve import connection
from modelkeep.serve.http import Handler, Head, LeanProtocol, Sink, protocol


class Echo:
    """Answers every POST with its body."""

    max_body = 1 << 20
    stamp = object()

    def find(self, head: Head) -> Handler | None:
        return self.answer if head.method == b"POST" else None

    def admit(self, head: Head) -> None:
        return None

    def answer(self, sink: Sink, body: bytes, head: Head) -> None:
        sink.write(200, body)


class Full(Echo):
    """Refuses before it reads."""

    def __init__(self) -> None:
        self.full = True
        self.read = 0

    def find(self, head: Head) -> Handler | None:
        head.free, head.early = True, self.early
        return super().find(head)

    def early(self, sink: Sink) -> bool:
        if self.full:
            sink.write(429, b"full")
        return self.full

    def answer(self, sink: Sink, body: bytes, head: Head) -> None:
        self.read += 1
        super().answer(sink, body, head)


async def cold(_: Scope, receive: Receive, send: Send) -> None:
    """Answers what is not hot likewise."""
    body = (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


def told(
    story: Callable[[int], Awaitable[None]],
    monkeypatch: pytest.MonkeyPatch,
    keep_alive: int = 60,
    state: ServerState | None = None,
    routes: Echo | None = None,
) -> None:
    monkeypatch.setattr(connection, "SWEEP", 0.02)
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.2)
    monkeypatch.setattr(connection, "BODY_SECONDS", 0.2)

    async def run() -> None:
        made = protocol(routes or Echo())
        config = uvicorn.Config(cold, http=made, lifespan="off", timeout_keep_alive=keep_alive)
        config.load()
        known = state or ServerState()
        loop = asyncio.get_running_loop()
        listening = await loop.create_server(lambda: made(config, known, {}), "127.0.0.1", 0)
        async with listening:
            await story(listening.sockets[0].getsockname()[1])
            for connection in tuple(known.connections):
                assert isinstance(connection, LeanProtocol)
                connection.transport.abort()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # what uvicorn takes
        runner.run(run())


HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n"


async def answered(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    return int(head[9:12]), await reader.readexactly(length)


@pytest.mark.parametrize("begun", [HEAD[:20], HEAD, HEAD + b"half"])
@pytest.mark.parametrize("known", [False, True])
def test_a_request_that_does_not_come_whole_in_time_is_turned_away(
    begun: bytes, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        if known:  # then the head comes again, and the parser is not asked
            writer.write(HEAD + b"0123456789")
            assert await answered(reader) == (200, b"0123456789")
        writer.write(begun)
        status, _ = await answered(reader)
        assert status == 408
        assert await reader.read() == b""
        writer.close()

    told(story, monkeypatch)


@pytest.mark.parametrize("used", [False, True])
def test_a_connection_that_nobody_uses_is_closed(used: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        if used:
            writer.write(HEAD + b"0123456789")
            assert await answered(reader) == (200, b"0123456789")
        assert await reader.read() == b""
        writer.close()

    told(story, monkeypatch, keep_alive=0)


def test_bodies_in_pieces_and_pipelines_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(2):  # the second time the head is known
            whole = b"".join(HEAD + b"%010d" % n for n in range(5))
            for size in (7, 100, 1000):
                for at in range(0, len(whole), size):
                    writer.write(whole[at : at + size])
                    await asyncio.sleep(0)
                for n in range(5):
                    assert await answered(reader) == (200, b"%010d" % n)
        for n in range(3):
            writer.write(HEAD)
            await asyncio.sleep(0.01)
            writer.write(b"%05d" % n)
            await asyncio.sleep(0.01)
            writer.write(b"%05d" % n + HEAD[:30])
            assert await answered(reader) == (200, b"%05d%05d" % (n, n))
            writer.write(HEAD[30:] + b"0123456789")
            assert await answered(reader) == (200, b"0123456789")
        writer.close()

    told(story, monkeypatch)


def test_a_head_without_end_is_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nx: ")
        writer.write(b"y" * (connection.MAX_HEAD + 1))
        assert (await answered(reader))[0] == 431
        writer.close()

    told(story, monkeypatch)


@pytest.mark.parametrize("method", [b"POST", b"PUT"], ids=["hot", "cold"])
def test_an_idle_connection_is_not_closed_over_a_request_that_nobody_has_read_yet(
    method: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that comes late finds the end of its patience and the next request together."""
    request = HEAD.replace(b"POST", method) + b"0123456789"

    state = ServerState()

    async def story(port: int) -> None:
        loop = asyncio.get_running_loop()
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.setblocking(False)
            for turn in range(3):
                client.send(request)
                if turn:
                    (connection,) = state.connections
                    assert isinstance(connection, LeanProtocol)
                    connection._idle_since -= 100
                    connection._swept = connection._served
                    (connection._sweep if turn == 1 else connection.timeout_keep_alive_handler)()
                said = b""
                while not said.endswith(b"0123456789"):
                    some = await loop.sock_recv(client, 1000)
                    assert some
                    said += some

    told(story, monkeypatch, state=state)


def test_what_is_refused_before_it_is_whole_does_not_disturb_what_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    routes = Full()

    async def story(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for known in (False, True):  # the second time the parser is not asked
            routes.full = True
            for begun in (HEAD, HEAD + b"01234"):
                writer.write(begun)
                assert await answered(reader) == (429, b"full")
                rest = 10 - (len(begun) - len(HEAD))
                writer.write(b"x" * rest + (HEAD + b"0123456789" if known else b""))  # and the next at once
                if known:
                    assert await answered(reader) == (429, b"full")
            writer.write(HEAD + b"0123456789")
            assert await answered(reader) == (429, b"full")
            assert routes.read == known
            routes.full = False
            writer.write(HEAD + b"0123456789")
            assert await answered(reader) == (200, b"0123456789")
        writer.close()

    told(story, monkeypatch, routes=routes)


def test_who_wants_the_connection_closed_is_told_when_all_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(port: int) -> None:
        for _ in range(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(HEAD.replace(b"Host: x", b"Connection: close"))
            writer.write(b"01234")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(1), 0.05)
            writer.write(b"56789")
            assert await answered(reader) == (429, b"full")
            assert await reader.read() == b""
            writer.close()

    told(story, monkeypatch, routes=Full())


def test_a_client_that_is_refused_and_goes_on_sending_slowly_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEAD + b"01")
        assert await answered(reader) == (429, b"full")
        assert await reader.read() == b"", "and nothing is said twice"
        writer.close()

    told(story, monkeypatch, routes=Full())
