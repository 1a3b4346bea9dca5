"""Load for gRPC servers: ready-made HTTP/2 frames over plain sockets, so that it outruns what it measures.

python -m benchmarks.serving_grpc.load PORT PATH CONNECTIONS CALLS SECONDS BODY_FILE

CALLS are kept under way on each connection. Prints JSON: calls a second, how many in all and with another end than
an answer, milliseconds.
"""

from __future__ import annotations

import asyncio
import json
import struct
import sys
import time
from pathlib import Path

import uvloop

from modelkeep.protocols.grpc import frames
from modelkeep.protocols.grpc.frames import MOST, Setting, frame, number
from modelkeep.protocols.grpc.hpack import literal

WARM = 0.5


class Client(asyncio.Protocol):
    """One connection that keeps so many calls under way."""

    def __init__(self, path: str, message: bytes, calls: int) -> None:
        block = literal(b":method", b"POST") + literal(b":scheme", b"http") + literal(b":path", path.encode())
        block += literal(b":authority", b"127.0.0.1") + literal(b"te", b"trailers")
        block += literal(b"content-type", b"application/grpc")
        body = bytes(1) + struct.pack(">I", len(message)) + message
        pieces = [body[at : at + 16_384] for at in range(0, len(body), 16_384)]
        whole = frame(frames.HEADERS, frames.END_HEADERS, 0, block)
        for place, piece in enumerate(pieces):
            whole += frame(frames.DATA, frames.END_STREAM if place == len(pieces) - 1 else 0, 0, piece)
        self.pieces = _around_streams(whole)
        self.calls = calls
        self.stream = 1
        self.began: dict[int, float] = {}
        self.latencies: list[float] = []
        self.answered: set[int] = set()
        self.other = 0
        self.buffer = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        hello = frames.PREFACE + frames.settings({Setting.INITIAL_WINDOW_SIZE: MOST})
        transport.write(hello + number(frames.WINDOW_UPDATE, 0, MOST - 65_535))
        self.ask(self.calls)

    def ask(self, count: int) -> None:
        now, out = time.perf_counter(), []
        for _ in range(count):
            out.append(self.stream.to_bytes(4, "big").join(self.pieces))
            self.began[self.stream] = now
            self.stream += 2
        self.transport.write(b"".join(out))

    def data_received(self, data: bytes) -> None:
        data = self.buffer + data if self.buffer else data
        at, end, ended, now = 0, len(data), 0, time.perf_counter()
        while end - at >= 9:
            size = int.from_bytes(data[at : at + 3], "big")
            if end - at < 9 + size:
                break
            kind, flags, stream = data[at + 3], data[at + 4], int.from_bytes(data[at + 5 : at + 9], "big")
            if kind in (frames.DATA, frames.HEADERS) and flags & frames.END_STREAM:
                ended += 1
                self.latencies.append(now - self.began.pop(stream))
                self.other += stream not in self.answered
                self.answered.discard(stream)
            elif kind == frames.DATA:
                self.answered.add(stream)
            elif kind == frames.SETTINGS and not flags & frames.ACK:
                self.transport.write(frame(frames.SETTINGS, frames.ACK, 0))
            elif kind == frames.PING and not flags & frames.ACK:
                self.transport.write(frame(frames.PING, frames.ACK, 0, data[at + 9 : at + 9 + size]))
            elif kind in (frames.RST_STREAM, frames.GOAWAY):
                self.other += 1
            at += 9 + size
        self.buffer = data[at:]
        self.ask(ended)


def _around_streams(whole: bytes) -> list[bytes]:
    """Frames cut where the number of their stream belongs."""
    pieces, at, start = [], 0, 0
    while at < len(whole):
        pieces.append(whole[start : at + 5])
        start = at + 9
        at = start + int.from_bytes(whole[at : at + 3], "big")
    return [*pieces, whole[start:]]


async def main(port: int, path: str, connections: int, calls: int, seconds: float, body: Path) -> None:
    loop = asyncio.get_running_loop()
    message = body.read_bytes()
    clients = []
    for _ in range(connections):
        _, client = await loop.create_connection(lambda: Client(path, message, calls), "127.0.0.1", port)
        clients.append(client)
    await asyncio.sleep(WARM)
    warmed = sum(len(client.latencies) for client in clients)
    for client in clients:
        client.latencies.clear()
    began = time.perf_counter()
    await asyncio.sleep(seconds)
    took = time.perf_counter() - began
    found = sorted(latency for client in clients for latency in client.latencies)
    if not found:
        sys.exit("nothing was answered")
    told = {
        "rate": len(found) / took,
        "all": len(found) + warmed,
        "other": sum(client.other for client in clients),
        "p50": found[len(found) // 2] * 1e3,
        "p99": found[len(found) * 99 // 100] * 1e3,
    }
    print(json.dumps(told))
    for client in clients:
        client.transport.abort()


if __name__ == "__main__":
    _, port, path, connections, calls, seconds, body = sys.argv
    uvloop.run(main(int(port), path, int(connections), int(calls), float(seconds), Path(body)))
