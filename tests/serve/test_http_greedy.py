"""Clients that want the server to hold more and more for them, or to read from a request what is none of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import uvicorn
import uvloop
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from modelkeep.serve import connection
from modelkeep.serve.http import Handler, Head, LeanProtocol, Sink, protocol

LARGE = 200_000


class Hot:
    """Answers ``GET /hot`` with much and ``POST /hot`` with its body; ``/later`` a little later."""

    max_body = 1 << 20
    stamp = object()

    def find(self, head: Head) -> Handler | None:
        return {b"/hot": self.answer, b"/later": self.later}.get(head.target)

    def admit(self, head: Head) -> None:
        return None

    def answer(self, sink: Sink, body: bytes, head: Head) -> None:
        sink.write(200, body if head.method == b"POST" else b"x" * LARGE)

    def later(self, sink: Sink, body: bytes, head: Head) -> None:
        asyncio.get_running_loop().call_later(0.05, sink.write, 200, b"later")


async def cold(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the names of the headers it sees once the body is here; ``/large`` with much."""
    while (await receive()).get("more_body"):
        pass
    large = scope["method"] == "GET" and scope["path"] in ("/large", "/hot")
    told = b"x" * LARGE if large else b" ".join(sorted(name for name, _ in scope["headers"]))
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(told))]})
    await send({"type": "http.response.body", "body": told})


Story = Callable[[asyncio.StreamReader, asyncio.StreamWriter, ServerState], Awaitable[None]]


def told(story: Story) -> None:
    """Play a client's story on one connection."""

    async def run() -> None:
        made = protocol(Hot())
        config = uvicorn.Config(cold, http=made, lifespan="off", timeout_keep_alive=60)
        config.load()
        known, loop = ServerState(), asyncio.get_running_loop()
        faults: list[object] = []
        loop.set_exception_handler(lambda _, context: faults.append(context))
        listening = await loop.create_server(lambda: made(config, known, {}), "127.0.0.1", 0)
        async with listening:
            reader, writer = await asyncio.open_connection("127.0.0.1", listening.sockets[0].getsockname()[1])
            await story(reader, writer, known)
            writer.close()
            for one in tuple(known.connections):
                assert isinstance(one, LeanProtocol)
                one.transport.abort()
        assert not faults

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


async def answered(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    async with asyncio.timeout(20):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        return int(head[9:12]), await reader.readexactly(length)


async def until_closed(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, more: bytes, pause: float
) -> bytes:
    """Send more until the server hangs up; the status it says, if that comes through."""
    said = b""
    try:
        for _ in range(200):
            writer.write(more)
            await writer.drain()
            await asyncio.sleep(pause)
            if reader.at_eof():
                break
        else:
            raise AssertionError("the server still takes it")
        async with asyncio.timeout(5):
            said = await reader.read()
    except ConnectionError:
        pass
    return said[9:12]


def of(state: ServerState) -> LeanProtocol:
    (one,) = state.connections
    assert isinstance(one, LeanProtocol)
    return one


@pytest.mark.parametrize("path", ["/cold", "/hot"])
def test_trailers_are_no_headers(path: str) -> None:
    async def story(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: ServerState) -> None:
        writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        await asyncio.sleep(0.05)
        writer.write(b"1\r\na\r\n0\r\nAuthorization: Bearer stolen\r\n\r\n")
        assert await answered(reader) == (200, b"a" if path == "/hot" else b"host transfer-encoding")
        writer.write(b"GET /cold HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await answered(reader) == (200, b"host")

    told(story)


@pytest.mark.parametrize("path", ["/cold", "/hot"])
@pytest.mark.parametrize(
    ("begun", "more"),
    [
        (b"1\r\na\r\n0\r\nx: ", b"a" * 4096),
        (b"1\r\na\r\n0\r\n", b"x: " + b"a" * 4000 + b"\r\n"),
        (b"1;", b"a" * 4096),
        (b"", b"1;" + b"a" * 4096 + b"\r\na\r\n"),
    ],
    ids=["a trailer", "trailers", "an extension", "extensions"],
)
def test_what_comes_around_a_body_ends(path: str, begun: bytes, more: bytes) -> None:
    async def story(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: ServerState) -> None:
        writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + begun)
        assert await until_closed(reader, writer, more, 0.0) in ([b""] if path == "/cold" else [b"", b"431"])

    told(story)


def test_an_endless_extension_is_not_the_coming_of_a_body(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "SWEEP", 0.02)
    monkeypatch.setattr(connection, "BODY_SECONDS", 0.2)
    monkeypatch.setattr(connection, "SLOWEST", 100)

    async def story(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: ServerState) -> None:
        writer.write(b"POST /hot HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;")
        assert await until_closed(reader, writer, b"a" * 100, 0.01) in (b"", b"408")

    told(story)


@pytest.mark.parametrize("name", ["Host", "Origin", "Authorization"])
@pytest.mark.parametrize("path", ["/cold", "/hot"])
def test_what_must_be_said_once_is_not_said_twice(name: str, path: str) -> None:
    async def story(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: ServerState) -> None:
        host = "" if name == "Host" else "Host: x\r\n"
        writer.write(f"GET {path} HTTP/1.1\r\n{host}{name}: a\r\n{name.lower()}: b\r\n\r\n".encode())
        status, body = await answered(reader)
        assert status == 400 and name.lower().encode() in body
        assert await reader.read() == b""

    told(story)


@pytest.mark.parametrize("path", [b"/hot", b"/large"])
def test_a_client_that_does_not_read_is_not_answered_without_end(path: bytes) -> None:
    async def story(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, state: ServerState) -> None:
        held = many = 0
        while not of(state).flow.write_paused:  # the last answer is whole, so the next request could be taken
            writer.write(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
            await asyncio.sleep(0.005)
            many += 1
        for _ in range(200):
            writer.write(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path)
            await asyncio.sleep(0.002)
            held = max(held, of(state).transport.get_write_buffer_size())
        assert held < 3 * LARGE
        for _ in range(many + 200):
            assert await answered(reader) == (200, b"x" * LARGE)

    told(story)


def test_a_flood_of_requests_waits_as_bytes_and_is_answered_in_order() -> None:
    many = 20_000

    async def story(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, state: ServerState) -> None:
        flood = b"".join(b"GET /cold HTTP/1.1\r\nH%d:\r\n\r\n" % n for n in range(many))
        writer.write(flood)
        most = 0
        for n in range(many):
            assert await answered(reader) == (200, b"h%d" % n)
            most = max(most, len(of(state).pipeline))
        assert 10 < most < 1000

    told(story)


def test_a_flood_that_hangs_up_leaves_no_fault() -> None:
    async def story(_: asyncio.StreamReader, writer: asyncio.StreamWriter, __: ServerState) -> None:
        writer.write(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n" * 5000)
        await asyncio.sleep(0.05)
        writer.transport.abort()
        await asyncio.sleep(0.05)

    told(story)


def test_a_head_behind_other_requests_is_not_too_large() -> None:
    async def story(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: ServerState) -> None:
        body = b"a" * 200_000
        whole = b"POST /hot HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        writer.write(whole + b"GET /cold HTTP/1.1\r\n")
        assert await answered(reader) == (200, body)
        writer.write(b"Host: x\r\n\r\n")
        assert await answered(reader) == (200, b"host")

    told(story)


def test_a_client_that_reads_nothing_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "SWEEP", 0.02)
    monkeypatch.setattr(connection, "UNREAD_SECONDS", 0.3)

    async def story(_: asyncio.StreamReader, writer: asyncio.StreamWriter, state: ServerState) -> None:
        writer.write(b"GET /hot HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
        async with asyncio.timeout(10):
            while state.connections:
                await asyncio.sleep(0.02)

    told(story)


def test_an_answer_is_never_that_to_another_request() -> None:
    async def story(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: ServerState) -> None:
        writer.write(b"GET /later HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.sleep(0.01)
        writer.write(b"this is no request\r\n\r\n")
        assert await reader.read() == b""

    told(story)
