"""Whatever bytes come over whatever connection: a 4xx or a closed connection, never a crash, a leak or a 5xx.

``INPUTS`` inputs of each kind are tried; set ``MODELKEEP_FUZZ`` to try more.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving_kit import Home, Made, Worker, named, tensor, worker

from modelkeep.serve.bodies import Body

INPUTS = int(os.environ.get("MODELKEEP_FUZZ", "150"))
many = settings(
    max_examples=INPUTS,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
PATHS = (
    "/v2/models/tumours/infer", "/v2/models/flights/infer", "/endpoints/tumours/invocations",
    "/v1/models/tumours:predict", "/v2/models/nobody/infer", "/metrics", "/v2/health/live", "/%zz/\u00e9?a=%",
)  # fmt: skip


class Target:
    """A real serving process, and what it should still be able to do."""

    def __init__(self, found: Worker, tumours: Made, flights: Made) -> None:
        self.worker = found
        self.port = int(found.url.rsplit(":", 1)[1])
        self.bodies = [json.dumps(tensor(tumours, range(n))).encode() for n in (1, 3)]
        self.bodies += [json.dumps(named(flights, range(n))).encode() for n in (1, 2)]
        self.bodies += [b'{"dataframe_split":{"columns":["a"],"data":[[1]]}}', b'{"instances":[[1,2]]}', b""]

    def send(self, *pieces: bytes) -> list[int]:
        """Send, say that this was all, and read to the end; the statuses of the answers."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            received = b""
            with contextlib.suppress(OSError):  # the connection may be closed while more is on its way
                for piece in pieces:
                    connection.sendall(piece)
                connection.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                while data := connection.recv(1 << 20):
                    received += data
        return [int(line[9:12]) for line in _heads(received)]

    def check(self, statuses: list[int]) -> None:
        assert all(status < 300 or 400 <= status < 500 for status in statuses), statuses

    @property
    def memory(self) -> float:
        """Resident mebibytes."""
        statm = Path(f"/proc/{self.worker.process.pid}/statm").read_text()
        return int(statm.split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    @property
    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.worker.process.pid}/fd").iterdir()))


def _heads(received: bytes) -> Iterator[bytes]:
    """The first lines of the answers, one behind the other."""
    while received.startswith(b"HTTP/1.1 "):
        head, _, rest = received.partition(b"\r\n\r\n")
        yield head
        lines = [line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:]]
        length = next((int(value) for name, value in lines if name == b"content-length"), 0)
        received = rest[length:]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory, first: Made, mixed: Made) -> Iterator[Target]:
    home = Home(tmp_path_factory.mktemp("fuzz") / "home")
    home.serve("tumours", (1, home.keep(first), 1.0, "stable"))
    home.serve("flights", (1, home.keep(mixed), 1.0, "stable"))
    with worker(home) as found:
        made = Target(found, first, mixed)
        for body in made.bodies * 3:
            made.send(post(PATHS[0], body))
        memory, descriptors = made.memory, made.descriptors
        yield made
        assert not found.process.ended.is_set()
        assert found.infer("tumours", json.loads(made.bodies[0])).status_code == 200
        assert made.memory < memory + 150
        assert made.descriptors <= descriptors + 4
        assert found.stop() == 0


def post(path: str, body: bytes, *lines: str, length: int | None = None) -> bytes:
    head = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", *lines]
    if length is None or length >= 0:
        head.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join([*head, "", ""]).encode("utf-8", "surrogatepass") + body


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
tensors = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["rows", "carrier", "mean radius", "", "\ud800"]) | st.text(max_size=5),
        "shape": st.lists(st.integers(-(2**70), 2**70) | st.sampled_from([0, 1, 30]), max_size=4) | anything,
        "datatype": st.sampled_from(["FP64", "BYTES", "INT8", "BOOL", "FP16", "X"]),
        "data": st.lists(anything, max_size=40) | st.just([1.5] * 30) | anything,
    }
)
requests = st.fixed_dictionaries(
    {"inputs": st.lists(tensors, max_size=3) | anything},
    optional={"id": anything, "parameters": anything, "outputs": anything},
)


@many
@given(data=st.data())
def test_broken_requests(target: Target, data: st.DataObject) -> None:
    """Valid requests with bytes changed, cut, doubled, in pieces; lengths that are not those of the bodies."""
    body = data.draw(st.sampled_from(target.bodies))
    length = data.draw(
        st.none() | st.sampled_from([-1, 0, 1, len(body) - 1, len(body) + 1, 10**6, 10**12, 10**30])
    )
    whole = post(data.draw(st.sampled_from(PATHS)), body, length=length)
    whole *= data.draw(st.sampled_from([1, 1, 2, 5]))
    raw = bytearray(whole)
    for _ in range(data.draw(st.integers(0, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    del raw[data.draw(st.just(len(raw)) | st.integers(0, len(raw))) :]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=3)))
    target.check(
        target.send(*(bytes(raw[a:b]) for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True) if a < b))
    )


@many
@given(request=requests, path=st.sampled_from(PATHS[:4]))
def test_absurd_content(target: Target, request: Any, path: str) -> None:
    body = json.dumps(request).encode()
    target.check(target.send(post(path, body)))


@many
@given(raw=st.binary(max_size=400), tail=st.sampled_from([b"", b"\r\n\r\n", b"\n\n"]))
def test_bytes_that_mean_nothing(target: Target, raw: bytes, tail: bytes) -> None:
    target.check(target.send(raw + tail))


@many
@given(
    lines=st.lists(
        st.sampled_from(
            [
                "Transfer-Encoding: chunked", "Transfer-Encoding: gzip, chunked", "Content-Encoding: gzip",
                "Expect: 100-continue", "Connection: close", "Connection: upgrade", "Upgrade: websocket",
                "Inference-Header-Content-Length: 10", "Inference-Header-Content-Length: -1",
                "Inference-Header-Content-Length: 99999999999999999999", "x-modelkeep-timeout-ms: nan",
                "x-modelkeep-timeout-ms: -5", "x-modelkeep-timeout-ms: 0", "x-modelkeep-key: \u00fc",
                "Content-Type: text/csv",
                "Content-Type: application/octet-stream", "traceparent: 00-zz-1-2", "Content-Length: 5",
                ": x", "a b: c",
            ]
        ),
        max_size=4,
    ),
    chunks=st.binary(max_size=40)
    | st.sampled_from([b"5\r\nhello\r\n0\r\n\r\n", b"ffffffffffffffff\r\n", b"-1\r\n", b"0\r\n\r\n"]),
    path=st.sampled_from(PATHS[:4]),
)  # fmt: skip
def test_heads_that_contradict_themselves(target: Target, lines: list[str], chunks: bytes, path: str) -> None:
    length = -1 if any("chunked" in line for line in lines) else None
    target.check(target.send(post(path, chunks, *lines, length=length)))


def test_what_is_far_too_much(target: Target) -> None:
    deep = b'{"inputs":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    long_head = post(PATHS[0], b"{}", *(f"x-{n}: {'y' * 1000}" for n in range(2000)))
    endless = [b"GET / HTTP/1.1\r\nx: ", *[b"y" * 60_000] * 40]
    numbers = b'{"inputs":[{"name":"rows","shape":[1,30],"datatype":"FP64","data":[' + b"9" * 100_000 + b"]}]}"
    for pieces in ([post(PATHS[0], deep)], [long_head], endless, [post(PATHS[0], numbers)]):
        statuses = target.send(*pieces)
        target.check(statuses)
        assert all(status >= 400 for status in statuses)
    assert target.send(post(PATHS[0], b"", length=1 << 40)) in ([], [413])


def test_half_closed_and_pipelined_clients_get_their_answers(target: Target) -> None:
    one = post(PATHS[0], target.bodies[0])
    assert target.send(one) == [200]
    assert target.send(one[:50], one[50:200], one[200:]) == [200]
    assert target.send(one[:-1]) == []
    assert target.send(one * 7) == [200] * 7
    assert target.send(one + post(PATHS[4], b"{}") + one) == [200, 404, 200]


@given(st.lists(st.sampled_from([0, 1, 100, 8191, 8192, 70_000]), max_size=12))
def test_a_body_is_its_pieces_in_order(sizes: list[int]) -> None:
    sent = [bytes([number]) * size for number, size in enumerate(sizes)]
    body = Body()
    body.add(b"of a message that was given up")
    body.clear()
    for piece in sent:
        body.add(memoryview(piece) if len(piece) % 2 else piece)
    assert body.take() == b"".join(sent)
    assert body.take() == b""
