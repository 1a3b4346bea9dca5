"""The HTTP/2 and gRPC transport: asked by grpc's own client, and by clients that break the protocol."""

from __future__ import annotations

import asyncio
import gzip
import os
import random
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep.core.errors import (
    Conflict,
    Damaged,
    Invalid,
    ModelkeepError,
    Overloaded,
    Refused,
    TooLate,
    Unavailable,
)
from modelkeep.protocols.grpc import frames, http2
from modelkeep.protocols.grpc.exchange import Exchange, Method
from modelkeep.protocols.grpc.frames import ErrorCode, Setting, frame, number
from modelkeep.protocols.grpc.hpack import Decoder, literal
from modelkeep.protocols.grpc.server import GrpcServer

LIMIT = 1 << 20


class Service:
    """Methods that show what the transport does."""

    def __init__(self) -> None:
        self.waiting: list[Exchange] = []
        self.errors: dict[bytes, Exception] = {
            b"invalid": Invalid("is wrong", path="a.b[0]"),
            b"overloaded": Overloaded("too much", retry_after=0.25),
            b"late": TooLate("gone"),
            b"unavailable": Unavailable("ünavailable ☃ 100%\nnext line"),
            b"refused": Refused("no"),
            b"conflict": Conflict("twice"),
            b"damaged": Damaged("broken"),
            b"model": ModelkeepError("the model failed"),
            b"bug": ZeroDivisionError("secret"),
            b"long": Invalid("x" * 100_000),
        }

    def methods(self) -> dict[bytes, Method]:
        return {
            b"/t.T/Echo": Method(lambda exchange, data: exchange.answer(data)),
            b"/t.T/Hold": Method(self.hold),
            b"/t.T/Fail": Method(self.fail),
            b"/t.T/Deadline": Method(self.deadline),
            b"/t.T/Stream": Method(lambda exchange, data: exchange.send(data), lambda exchange: exchange.finish()),
            b"/t.T/Early": Method(
                lambda exchange, data: exchange.fail(status(9), "enough"), lambda exchange: None
            ),
        }

    def hold(self, exchange: Exchange, data: bytes) -> None:
        self.waiting.append(exchange)

    def fail(self, exchange: Exchange, data: bytes) -> None:
        raise self.errors[data]

    def deadline(self, exchange: Exchange, data: bytes) -> None:
        left = None if exchange.deadline is None else exchange.deadline - time.perf_counter()
        exchange.answer(repr(left).encode())


def status(code: int) -> Any:
    from modelkeep.protocols.grpc.status import Code

    return Code(code)


class Running:
    """A server on a loop in a thread."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.service = Service()
        self.tls = tls
        self.started: Future[tuple[int, asyncio.AbstractEventLoop]] = Future()
        self.thread = threading.Thread(target=lambda: uvloop.run(self.main()))
        self.thread.start()
        self.port, self.loop = self.started.result(10)
        self.address = f"127.0.0.1:{self.port}"

    async def main(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.server = GrpcServer(self.service.methods(), max_message=LIMIT)
        await self.server.start(listener, self.tls)
        self.over = asyncio.Event()
        self.started.set_result((listener.getsockname()[1], asyncio.get_running_loop()))
        await self.over.wait()

    def call(self, function: Any, *given: Any) -> Any:
        done: Future[Any] = Future()
        self.loop.call_soon_threadsafe(lambda: done.set_result(function(*given)))
        return done.result(10)

    def stop(self, limit: float = 2.0) -> None:
        asyncio.run_coroutine_threadsafe(self.server.stop(limit), self.loop).result(20)

    def close(self) -> None:
        self.stop(0.0)
        self.call(self.over.set)
        self.thread.join(10)
        assert not self.thread.is_alive()

    def until(self, said: Any) -> None:
        end = time.monotonic() + 10
        while not self.call(said):
            assert time.monotonic() < end
            time.sleep(0.005)


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    found = Running()
    yield found
    found.close()


@pytest.fixture
def channel(running: Running) -> Iterator[grpc.Channel]:
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(
        running.address, options=[*options, ("grpc.use_local_subchannel_pool", 1)]
    ) as found:
        yield found


# what clients do


@pytest.mark.parametrize("size", [0, 1, 16_383, 16_384, 65_535, 65_536, LIMIT - 1, LIMIT])
@pytest.mark.parametrize(
    "compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip, grpc.Compression.Deflate]
)
def test_messages_of_every_size_come_back(channel: grpc.Channel, size: int, compression: Any) -> None:
    message = os.urandom(size // 2) + bytes(size - size // 2)
    assert channel.unary_unary("/t.T/Echo")(message, compression=compression, timeout=20) == message


def test_many_calls_at_once_on_one_connection(channel: grpc.Channel) -> None:
    echo = channel.unary_unary("/t.T/Echo")
    messages = [os.urandom(random.randrange(100_000)) for _ in range(200)]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(lambda one: echo(one, timeout=20), messages)) == messages


def test_streams(channel: grpc.Channel) -> None:
    messages = [os.urandom(size) for size in (0, 10, 200_000, 1)]
    assert list(channel.stream_stream("/t.T/Stream")(iter(messages), timeout=20)) == messages
    assert list(channel.stream_stream("/t.T/Stream")(iter([]), timeout=20)) == []


def test_an_answer_before_the_client_has_ended(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as error:
        list(channel.stream_stream("/t.T/Early")(iter([bytes(100_000)] * 50), timeout=20))
    assert (error.value.code(), error.value.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "enough")
    assert channel.unary_unary("/t.T/Echo")(b"on", timeout=5) == b"on"


@pytest.mark.parametrize(
    ("kind", "code", "said"),
    [
        (b"invalid", "INVALID_ARGUMENT", "a.b[0]: is wrong"),
        (b"overloaded", "RESOURCE_EXHAUSTED", "too much\n  try again in a moment"),
        (b"late", "DEADLINE_EXCEEDED", "gone"),
        (b"unavailable", "UNAVAILABLE", "ünavailable ☃ 100%\nnext line"),
        (b"refused", "PERMISSION_DENIED", "no"),
        (b"conflict", "ABORTED", "twice"),
        (b"damaged", "DATA_LOSS", "broken"),
        (b"model", "INTERNAL", "the model failed"),
        (b"bug", "INTERNAL", "this is our fault; see the log of the serving process"),
        (b"long", "INVALID_ARGUMENT", "x" * 2045 + "..."),
    ],
)
def test_errors_have_canonical_codes(channel: grpc.Channel, kind: bytes, code: str, said: str) -> None:
    with pytest.raises(grpc.RpcError) as error:
        channel.unary_unary("/t.T/Fail")(kind, timeout=5)
    assert (error.value.code().name, error.value.details()) == (code, said)
    told = dict(error.value.trailing_metadata())
    assert told.get("grpc-retry-pushback-ms") == ("250" if kind == b"overloaded" else None)


def test_a_retry_policy_heeds_the_pushback(running: Running) -> None:
    """A client that is told to may try again: the reference client waits as long as the server says."""
    policy = '{"methodConfig":[{"name":[{"service":"t.T"}],"retryPolicy":{"maxAttempts":2,"initialBackoff":"9s",'
    policy += '"maxBackoff":"9s","backoffMultiplier":1,"retryableStatusCodes":["RESOURCE_EXHAUSTED"]}}]}'
    options = [("grpc.service_config", policy)]
    with grpc.insecure_channel(running.address, options=options) as channel, pytest.raises(grpc.RpcError) as error:
        channel.unary_unary("/t.T/Fail")(b"overloaded", timeout=6)
    # with its own nine seconds the deadline would have come first
    assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_unknown_methods_and_messages_that_are_too_large(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError, match=r"no method /t\.T/Nothing") as error:
        channel.unary_unary("/t.T/Nothing")(b"", timeout=5)
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
    with pytest.raises(grpc.RpcError, match=f"at most {LIMIT}") as error:
        channel.unary_unary("/t.T/Echo")(bytes(LIMIT + 1), timeout=5)
    assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    with pytest.raises(grpc.RpcError, match="inflates to more") as error:
        channel.unary_unary("/t.T/Echo")(bytes(20 * LIMIT), timeout=5, compression=grpc.Compression.Gzip)
    assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_deadlines_reach_the_service_and_cancelled_calls_are_over(running: Running, channel: grpc.Channel) -> None:
    left = channel.unary_unary("/t.T/Deadline")
    assert 55 < float(left(b"", timeout=60)) < 61
    assert left(b"") == b"None"
    call = channel.unary_unary("/t.T/Hold").future(b"", timeout=0.1)
    assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    running.until(lambda: running.service.waiting[-1].over)
    running.call(running.service.waiting[-1].answer, b"nobody listens")
    before = len(running.service.waiting)
    call = channel.unary_unary("/t.T/Hold").future(b"")
    running.until(lambda: len(running.service.waiting) > before)
    call.cancel()
    running.until(lambda: running.service.waiting[-1].over)
    assert channel.unary_unary("/t.T/Echo")(b"on", timeout=5) == b"on"


def test_draining_answers_what_is_under_way() -> None:
    running = Running()
    with grpc.insecure_channel(running.address) as channel, ThreadPoolExecutor(1) as pool:
        held = channel.unary_unary("/t.T/Hold").future(b"", timeout=20)
        running.until(lambda: running.service.waiting)
        stopping = pool.submit(running.stop, 10)
        time.sleep(0.4)
        assert not stopping.done()
        running.call(running.service.waiting[0].answer, b"in the end")
        assert held.result() == b"in the end"
        stopping.result(10)
        with pytest.raises(grpc.RpcError) as error:
            channel.unary_unary("/t.T/Echo")(b"", timeout=5)
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    running.close()


def test_over_tls(tmp_path: Path) -> None:
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(key), "-out", str(cert), "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    context.set_alpn_protocols(["h2"])
    running = Running(context)
    credentials = grpc.ssl_channel_credentials(cert.read_bytes())
    with grpc.secure_channel(f"localhost:{running.port}", credentials) as channel:
        message = os.urandom(300_000)
        assert channel.unary_unary("/t.T/Echo")(message, timeout=10) == message
    running.close()


# what breaks the protocol

HEADERS = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/t.T/Echo"),
    (b":authority", b"x"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
]
HELLO = frames.PREFACE + frames.settings({})


def block(**changed: bytes) -> bytes:
    named = {name.replace("_", "-").replace("path", ":path").encode(): value for name, value in changed.items()}
    pairs = dict(HEADERS) | named
    return b"".join(literal(name, value) for name, value in pairs.items())


def opened(stream: int = 1, flags: int = frames.END_HEADERS, **changed: bytes) -> bytes:
    return frame(frames.HEADERS, flags, stream, block(**changed))


def message(data: bytes, flag: int = 0) -> bytes:
    return bytes([flag]) + struct.pack(">I", len(data)) + data


def data(content: bytes, stream: int = 1, flags: int = frames.END_STREAM) -> bytes:
    return frame(frames.DATA, flags, stream, content)


class Raw:
    """A connection that says what it is told to."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.buffer = b""
        self.decoder = Decoder(1 << 16)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def frame(self) -> tuple[int, int, int, bytes] | None:
        """Type, flags, stream, payload; None when the connection was closed."""
        while len(self.buffer) < 9 or len(self.buffer) < 9 + int.from_bytes(self.buffer[:3], "big"):
            try:
                more = self.socket.recv(1 << 16)
            except ConnectionResetError:
                more = b""
            if not more:
                return None
            self.buffer += more
        size = int.from_bytes(self.buffer[:3], "big")
        kind, flags, stream = self.buffer[3], self.buffer[4], int.from_bytes(self.buffer[5:9], "big")
        payload, self.buffer = self.buffer[9 : 9 + size], self.buffer[9 + size :]
        return kind, flags, stream, payload

    def next(self, *kinds: int) -> tuple[int, int, int, bytes] | None:
        while (found := self.frame()) is not None and found[0] not in kinds:
            pass
        return found

    def trailers(self) -> dict[bytes, bytes]:
        while (found := self.next(frames.HEADERS)) is not None:
            told = dict(self.decoder.decode(found[3]))
            if found[1] & frames.END_STREAM:
                return told
        raise AssertionError("closed")


@contextmanager
def connected(running: Running) -> Iterator[Raw]:
    found = Raw(running.port)
    try:
        yield found
    finally:
        found.socket.close()


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (frames.PREFACE + frame(frames.PING, 0, 0, bytes(8)), ErrorCode.PROTOCOL_ERROR),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", ErrorCode.PROTOCOL_ERROR),
        (HELLO + frame(frames.PING, 0, 0, bytes(7)), ErrorCode.FRAME_SIZE_ERROR),
        (HELLO + frame(frames.PING, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
        (HELLO + frame(frames.SETTINGS, 0, 0, bytes(5)), ErrorCode.FRAME_SIZE_ERROR),
        (HELLO + frame(frames.SETTINGS, 0, 3, b""), ErrorCode.PROTOCOL_ERROR),
        (HELLO + frame(frames.SETTINGS, frames.ACK, 0, bytes(6)), ErrorCode.FRAME_SIZE_ERROR),
        (HELLO + frames.settings({Setting.INITIAL_WINDOW_SIZE: 2**31}), ErrorCode.FLOW_CONTROL_ERROR),
        (HELLO + frames.settings({Setting.MAX_FRAME_SIZE: 100}), ErrorCode.PROTOCOL_ERROR),
        (HELLO + number(frames.WINDOW_UPDATE, 0, 0), ErrorCode.FLOW_CONTROL_ERROR),
        (HELLO + number(frames.WINDOW_UPDATE, 0, 2**31 - 1), ErrorCode.FLOW_CONTROL_ERROR),
        (HELLO + number(frames.WINDOW_UPDATE, 5, 1), ErrorCode.PROTOCOL_ERROR),
        (HELLO + number(frames.RST_STREAM, 5, 1), ErrorCode.PROTOCOL_ERROR),
        (HELLO + data(b"", stream=5), ErrorCode.PROTOCOL_ERROR),
        (HELLO + data(b"", stream=0), ErrorCode.PROTOCOL_ERROR),
        (HELLO + opened(stream=2), ErrorCode.PROTOCOL_ERROR),
        (HELLO + opened(stream=0), ErrorCode.PROTOCOL_ERROR),
        (HELLO + frame(frames.PUSH_PROMISE, 0, 1, bytes(4)), ErrorCode.PROTOCOL_ERROR),
        (HELLO + frame(frames.CONTINUATION, 0, 1, b"x"), ErrorCode.PROTOCOL_ERROR),
        (HELLO + frame(frames.HEADERS, 0, 1, b"") + frame(frames.PING, 0, 0, bytes(8)), ErrorCode.PROTOCOL_ERROR),
        (HELLO + frame(frames.HEADERS, 4, 1, b"\xff\xff\xff\xff\xff"), ErrorCode.COMPRESSION_ERROR),
        (HELLO + frame(frames.HEADERS, frames.PADDED | 4, 1, b"\x09abc"), ErrorCode.PROTOCOL_ERROR),
        (HELLO + frame(frames.HEADERS, frames.PADDED | 4, 1, b""), ErrorCode.FRAME_SIZE_ERROR),
        (HELLO + frame(frames.PRIORITY, 0, 1, bytes(4)), ErrorCode.FRAME_SIZE_ERROR),
        (HELLO + b"\x7f\xff\xff\x00\x00\x00\x00\x00\x01", ErrorCode.FRAME_SIZE_ERROR),
        (HELLO + opened(x=b"v" * http2.MAX_HEADERS), ErrorCode.COMPRESSION_ERROR),
    ],
)
def test_a_broken_protocol_ends_the_connection_with_the_reason(running: Running, said: bytes, code: int) -> None:
    with connected(running) as raw:
        raw.send(said)
        found = raw.next(frames.GOAWAY)
        assert found is not None
        assert int.from_bytes(found[3][4:8], "big") == code, found[3]
        assert raw.frame() is None
    assert_serves(running)


def assert_serves(running: Running) -> None:
    with connected(running) as raw:
        raw.send(HELLO + opened() + data(message(b"on")))
        assert raw.next(frames.DATA) == (frames.DATA, 0, 1, message(b"on"))
        assert raw.trailers() == {b"grpc-status": b"0"}


def test_endless_headers_are_cut_off(running: Running) -> None:
    with connected(running) as raw:
        raw.send(HELLO + frame(frames.HEADERS, 0, 1, block()))
        try:
            for _ in range(40):
                raw.send(frame(frames.CONTINUATION, 0, 1, literal(b"x", b"v" * 4000)))
        except (BrokenPipeError, ConnectionResetError):
            pass
        found = raw.next(frames.GOAWAY)
        assert found is None or int.from_bytes(found[3][4:8], "big") == ErrorCode.ENHANCE_YOUR_CALM


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (opened(connection=b"close"), ErrorCode.PROTOCOL_ERROR),
        (opened(Upper=b"x"), ErrorCode.PROTOCOL_ERROR),
        (opened(path=b"/t.T/Hold") + data(message(b"")) + data(b"more"), ErrorCode.STREAM_CLOSED),
        (opened() + number(frames.WINDOW_UPDATE, 1, 2**31 - 1), ErrorCode.FLOW_CONTROL_ERROR),
        (opened() + opened(), ErrorCode.PROTOCOL_ERROR),
    ],
)
def test_a_broken_call_ends_alone(running: Running, said: bytes, code: int) -> None:
    with connected(running) as raw:
        raw.send(HELLO + said)
        found = raw.next(frames.RST_STREAM)
        assert found is not None and int.from_bytes(found[3], "big") == code
        raw.send(opened(stream=3) + data(message(b"on"), stream=3))
        while (found := raw.next(frames.DATA)) is not None and found[2] != 3:
            pass
        assert found == (frames.DATA, 0, 3, message(b"on"))


@pytest.mark.parametrize(
    ("said", "code", "words"),
    [
        (opened() + data(b""), 3, b"none came"),
        (opened(flags=5), 3, b"none came"),
        (opened(path=b"/t.T/Hold") + data(message(b"a") + message(b"b")), 3, b"another came"),
        (opened() + data(message(b"abc")[:-1]), 3, b"within a message"),
        (opened() + data(b"\x00\x00"), 3, b"within a message"),
        (opened() + data(b"\x00\xff\xff\xff\xff"), 8, b"at most"),
        (opened(grpc_encoding=b"br") + data(message(b"x", 1)), 12, b"grpc-encoding 'br'"),
        (opened() + data(message(b"x", 1)), 12, b"grpc-encoding 'identity'"),
        (opened(grpc_encoding=b"gzip") + data(message(b"junk", 1)), 3, b"decompressed"),
        (opened(grpc_encoding=b"gzip") + data(message(gzip.compress(b"whole")[:-3], 1)), 3, b"not whole"),
        (opened(content_type=b"text/plain") + data(b""), 2, b"content-type"),
    ],
)
def test_wrong_messages_fail_their_call(running: Running, said: bytes, code: int, words: bytes) -> None:
    with connected(running) as raw:
        raw.send(HELLO + said)
        told = raw.trailers()
        assert (told[b"grpc-status"], words in told[b"grpc-message"]) == (b"%d" % code, True), told
        raw.send(opened(stream=3) + data(message(b"on"), stream=3))
        found = raw.next(frames.DATA)
        assert found is not None and found[2] == 3


def test_bytes_that_come_one_by_one_with_padding_and_continuations(running: Running) -> None:
    whole = block()
    padded = frame(frames.HEADERS, frames.PADDED | frames.WEIGHED, 1, b"\x03" + bytes(5) + whole[:10] + bytes(3))
    said = HELLO + padded + frame(frames.CONTINUATION, frames.END_HEADERS, 1, whole[10:])
    body = message(b"slowly")
    said += frame(frames.DATA, frames.PADDED, 1, b"\x02" + body[:4] + bytes(2))
    said += frame(0xEE, 0, 1, b"unknown") + frame(frames.DATA, frames.END_STREAM, 1, body[4:])
    with connected(running) as raw:
        raw.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(len(said)):
            raw.send(said[at : at + 1])
        assert raw.next(frames.DATA) == (frames.DATA, 0, 1, body)


def test_answers_wait_for_the_clients_windows(running: Running) -> None:
    content = os.urandom(5000)
    with connected(running) as raw:
        raw.send(frames.PREFACE + frames.settings({Setting.INITIAL_WINDOW_SIZE: 100}))
        raw.send(opened() + data(message(content)) + opened(stream=3) + data(message(content), stream=3))
        found = [raw.next(frames.DATA), raw.next(frames.DATA)]
        got = {one[2]: one[3] for one in found if one is not None}
        assert {stream: len(part) for stream, part in got.items()} == {1: 100, 3: 100}
        raw.send(frames.settings({Setting.INITIAL_WINDOW_SIZE: 1000}))
        for _ in range(2):
            one = raw.next(frames.DATA)
            assert one is not None
            got[one[2]] += one[3]
        assert {stream: len(part) for stream, part in got.items()} == {1: 1000, 3: 1000}
        raw.send(frames.settings({Setting.INITIAL_WINDOW_SIZE: 10}))  # windows may become negative
        raw.send(number(frames.WINDOW_UPDATE, 3, 4500) + number(frames.RST_STREAM, 1, ErrorCode.CANCEL))
        while len(got[3]) < 4510:
            one = raw.next(frames.DATA)
            assert one is not None and one[2] == 3
            got[3] += one[3]
        raw.send(number(frames.WINDOW_UPDATE, 3, 10_000))
        while len(got[3]) < 5005:
            one = raw.next(frames.DATA)
            assert one is not None
            got[3] += one[3]
        assert got[3] == message(content)
        assert raw.trailers()[b"grpc-status"] == b"0"
        connection = next(iter(running.server.connections))
        running.until(lambda: not connection.streams)


def test_more_calls_than_are_taken_at_once_are_refused_safely(running: Running) -> None:
    with connected(running) as raw:
        raw.send(HELLO)
        many = http2.MAX_STREAMS + 5
        raw.send(b"".join(opened(stream=2 * n + 1) for n in range(many)))
        refused = [raw.next(frames.RST_STREAM) for _ in range(5)]
        codes = {int.from_bytes(one[3], "big") for one in refused if one is not None}
        assert codes == {ErrorCode.REFUSED_STREAM}
        raw.send(data(message(b"on"), stream=1))
        assert raw.next(frames.DATA) == (frames.DATA, 0, 1, message(b"on"))


def test_calls_that_are_reset_at_once_leave_nothing(running: Running) -> None:
    with connected(running) as raw:
        raw.send(HELLO)
        for start in range(0, 20_000, 500):
            streams = [2 * n + 1 for n in range(start, start + 500)]
            raw.send(b"".join(opened(stream=n) + number(frames.RST_STREAM, n, 8) for n in streams))
        raw.send(opened(stream=40_001) + data(message(b"on"), stream=40_001))
        assert raw.next(frames.DATA) == (frames.DATA, 0, 40_001, message(b"on"))


def test_connections_that_vanish_leave_nothing(running: Running) -> None:
    before = len(running.server.connections)
    for cut in range(0, 200, 7):
        with connected(running) as raw:
            raw.send((HELLO + opened() + data(message(bytes(100))))[:cut])
    running.until(lambda: len(running.server.connections) <= before)


def test_a_client_that_stalls_is_let_go(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    from modelkeep.protocols.grpc import server

    monkeypatch.setattr(server, "STALLED", 0.0)
    with connected(running) as stalled, connected(running) as idle:
        stalled.send(HELLO + opened() + data(message(b"abc")[:-1], flags=0))
        idle.send(HELLO + opened() + data(message(b"on")))
        assert idle.next(frames.DATA) is not None
        time.sleep(0.05)
        running.call(running.server._sweep)
        found = stalled.next(frames.GOAWAY)
        assert found is not None and int.from_bytes(found[3][4:8], "big") == ErrorCode.ENHANCE_YOUR_CALM
        idle.send(opened(stream=3) + data(message(b"on"), stream=3))
        assert idle.next(frames.DATA) is not None


def test_old_connections_are_replaced_without_losing_a_call(
    running: Running, channel: grpc.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several processes may share the port: clients must spread over those that came later."""
    from modelkeep.protocols.grpc import server

    echo = channel.unary_unary("/t.T/Echo")
    assert echo(b"", timeout=10) == b""
    before = set(running.server.connections)
    held = channel.unary_unary("/t.T/Hold").future(b"", timeout=20)
    running.until(lambda: running.service.waiting and not running.service.waiting[-1].over)
    monkeypatch.setattr(server, "AGE", 0.0)
    running.call(running.server._sweep)
    monkeypatch.undo()
    answered = 0
    while not set(running.server.connections) - before:
        assert echo(b"on", timeout=10) == b"on"
        answered += 1
    assert answered
    running.call(running.service.waiting[-1].answer, b"in the end")
    assert held.result() == b"in the end"
    running.until(lambda: not before & running.server.connections)


_FRAMES = st.lists(
    st.one_of(
        st.builds(frame, st.integers(0, 12), st.integers(0, 255), st.integers(0, 9), st.binary(max_size=40)),
        st.builds(lambda n: opened(stream=n), st.integers(0, 9)),
        st.builds(lambda n, c: data(message(c), stream=n), st.integers(0, 9), st.binary(max_size=20)),
        st.binary(max_size=30),
    ),
    max_size=12,
)


@settings(max_examples=300, deadline=None)
@given(said=_FRAMES)
def test_no_frames_are_our_fault(running: Running, said: list[bytes]) -> None:
    with connected(running) as raw:
        try:
            raw.send(HELLO + b"".join(said))
            raw.socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        while (found := raw.frame()) is not None:
            assert found[0] != frames.GOAWAY or int.from_bytes(found[3][4:8], "big") != ErrorCode.INTERNAL_ERROR


def test_it_serves_after_all_of_this(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    assert_serves(running)
    running.until(lambda: not any(one.streams for one in running.server.connections))
