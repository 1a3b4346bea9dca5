"""A small load generator: raw keep-alive connections, one request in flight on each.

Run as ``python load.py PORT SECONDS CONNECTIONS BODIES`` where BODIES is a file of one request body a line; prints
JSON. The requests rotate, so that heads and bodies differ as those of real clients do.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import uvloop


class Client(asyncio.Protocol):
    """One connection: sends the next request when the answer to the last is whole."""

    def __init__(self, load: Load, place: int) -> None:
        self.load = load
        self.place = place
        self.held = b""
        self.sent = 0.0
        self.parted = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.send()

    def send(self) -> None:
        requests = self.load.requests
        self.place = (self.place + 1) % len(requests)
        self.sent = time.perf_counter()
        self.transport.write(requests[self.place])

    def data_received(self, data: bytes) -> None:
        if self.held:
            data = self.held + data
        at = data.find(b"\r\n\r\n")
        if at < 0:
            self.held = data
            return
        mark = data.find(b"content-length: ", 0, at)
        end = at + 4 + int(data[mark + 16 : data.find(b"\r\n", mark)])
        if len(data) < end:
            self.held = data
            return
        self.held = b""
        load = self.load
        if data[9:12] == b"200":
            load.latencies.append(time.perf_counter() - self.sent)
            if load.keep is not None:
                load.keep.append((self.place, data[at + 4 : end]))
        else:
            load.failed.append(data[:end])
        if not load.going:
            self.transport.close()
        elif b"connection: close" in data[:at]:
            self.parted = True
            self.transport.close()
            load.anew(self.place)
        else:
            self.send()

    def connection_lost(self, error: Exception | None) -> None:
        if self.load.going and not self.parted:
            self.load.failed.append(f"connection lost: {error}".encode())


class Load:
    """Drives ``connections`` until told to stop."""

    def __init__(self, port: int, path: str, bodies: list[bytes], *, keep: bool = False) -> None:
        head = "POST {} HTTP/1.1\r\nHost: localhost:{}\r\nContent-Type: application/json\r\nAccept: */*\r\n"
        start = (head + "User-Agent: load\r\n").format(path, port).encode()
        self.requests = [start + b"Content-Length: %d\r\n\r\n" % len(body) + body for body in bodies]
        self.port = port
        self.going = True
        self.latencies: list[float] = []
        self.failed: list[bytes] = []
        self.connecting: set[asyncio.Task[None]] = set()
        self.keep: list[tuple[int, bytes]] | None = [] if keep else None

    def anew(self, n: int) -> None:
        """The server asked for another connection."""
        task = asyncio.get_running_loop().create_task(self.connect(n))
        self.connecting.add(task)
        task.add_done_callback(self.connecting.discard)

    async def connect(self, n: int) -> None:
        await asyncio.get_running_loop().create_connection(lambda: Client(self, n * 7), "127.0.0.1", self.port)

    async def run(self, seconds: float, connections: int) -> None:
        for n in range(connections):
            await self.connect(n)
        end = time.monotonic() + seconds
        while self.going and time.monotonic() < end:  # others may end it before
            await asyncio.sleep(min(0.02, seconds))
        self.going = False
        await asyncio.sleep(0.2)


def main() -> None:
    port, seconds, connections, file, path = sys.argv[1:]
    bodies = Path(file).read_bytes().split(b"\n")
    load = Load(int(port), path, bodies)
    uvloop.run(load.run(1.0, int(connections)))
    load = Load(int(port), path, bodies)
    uvloop.run(load.run(float(seconds), int(connections)))
    ms = sorted(value * 1e3 for value in load.latencies)
    report = {
        "requests_per_second": round(len(ms) / float(seconds)),
        "p50_ms": round(ms[len(ms) // 2], 3),
        "p99_ms": round(ms[int(len(ms) * 0.99)], 3),
        "failed": len(load.failed),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
