"""The load generator: keep-alive connections in a process of its own, each driven by a generator of requests.

python -m benchmarks.tracking.load ADDRESS WORK CONNECTIONS SECONDS [JSON]

Prints what it did as JSON: operations, seconds, and quantiles of the latency of one request in milliseconds. A
connection sends its next request when the answer to the one before is there, as MLflow's client does.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Generator
from functools import partial
from typing import Any
from urllib.parse import urlencode, urlsplit

Steps = Generator[bytes | None, bytes, None]
"""Yields requests and is sent the answers' bodies; yields None after each whole operation."""

HOST = ""


def request(method: str, path: str, body: bytes = b"") -> bytes:
    """A whole HTTP request."""
    head = f"{method} {path} HTTP/1.1\r\nHost: {HOST}\r\nAccept: */*\r\n"
    if method != "GET":
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


def post(path: str, content: Any) -> bytes:
    return request("POST", f"/api/2.0/mlflow/{path}", json.dumps(content).encode())


def get(path: str, **query: Any) -> bytes:
    return request("GET", f"/api/2.0/mlflow/{path}?{urlencode(query)}")


def create_and_end(number: int, said: dict[str, Any]) -> Steps:
    """Create a run with the tags the client sends, and end it."""
    now = 1_700_000_000_000
    tags = [
        {"key": "mlflow.user", "value": "ann"},
        {"key": "mlflow.source.name", "value": "train.py"},
        {"key": "mlflow.source.type", "value": "LOCAL"},
    ]
    at = 0
    while True:
        at += 1
        asked = {"experiment_id": said["experiment"], "start_time": now + at, "tags": tags, "run_name": f"r{at}"}
        run = json.loads((yield post("runs/create", asked)))["run"]["info"]["run_id"]
        yield post("runs/update", {"run_id": run, "status": "FINISHED", "end_time": now + at})
        yield None


def log_metric(number: int, said: dict[str, Any]) -> Steps:
    """One point of one metric; each connection has a run of its own."""
    run = said["runs"][number]
    step = 0
    while True:
        step += 1
        point = {"run_id": run, "key": "loss", "value": 1 / step, "timestamp": 1_700_000_000_000 + step}
        yield post("runs/log-metric", {**point, "step": step})
        yield None


def log_batch(number: int, said: dict[str, Any]) -> Steps:
    """A thousand points: a hundred steps of ten metrics."""
    keys = said.get("keys", 10)
    shape = '{"key":"m%d","value":%r,"timestamp":17@@@@@@@%04d,"step":%d}'
    points = [shape % (at % keys, at / 7, at // keys, at // keys) for at in range(1000)]
    body = f'{{"run_id":"{said["runs"][number]}","metrics":[{",".join(points)}]}}'
    whole = request("POST", "/api/2.0/mlflow/runs/log-batch", body.encode())
    batch = 0
    while True:
        batch += 1
        yield whole.replace(b"@@@@@@@", b"%07d" % batch)
        yield None


def create_versions(number: int, said: dict[str, Any]) -> Steps:
    """Versions of a model; each connection has a model of its own."""
    name = said["models"][number]
    while True:
        yield post("model-versions/create", {"name": name, "source": "s3://bucket/model", "run_id": ""})
        yield None


def put_files(number: int, said: dict[str, Any]) -> Steps:
    """Files below a path of the artifact proxy, each with bytes of its own."""
    at, body = 0, os.urandom(said["size"])
    while True:
        at += 1
        yield request("PUT", f"{said['path']}/{number}-{at}", b"%020d" % at + body[20:])
        yield None


def get_files(number: int, said: dict[str, Any]) -> Steps:
    """One file of each connection, compared each time."""
    body = os.urandom(said["size"])
    yield request("PUT", f"{said['path']}/{number}", body)
    again = request("GET", f"{said['path']}/{number}")
    while True:
        found = yield again
        assert found == body, "the file came back changed"
        yield None


def repeat(number: int, said: dict[str, Any]) -> Steps:
    """The same request again and again."""
    again = request(said["method"], said["path"], said.get("body", "").encode())
    while True:
        yield again
        yield None


WORKS: dict[str, Callable[[int, dict[str, Any]], Steps]] = {
    "create_and_end": create_and_end,
    "log_metric": log_metric,
    "log_batch": log_batch,
    "create_versions": create_versions,
    "put_files": put_files,
    "get_files": get_files,
    "repeat": repeat,
}


class Connection(asyncio.Protocol):
    """One keep-alive connection."""

    def __init__(self, steps: Steps, deadline: list[float]) -> None:
        self.steps = steps
        self.deadline = deadline
        self.latencies: list[float] = []
        self.operations = 0
        self.done = asyncio.get_running_loop().create_future()
        self._parts: list[bytes] = []
        self._missing = -1

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def start(self) -> None:
        self._write(next(self.steps))

    def _write(self, what: bytes | None) -> None:
        while what is None:
            self.operations += 1
            if time.perf_counter() >= self.deadline[0]:
                self.finish()
                return
            what = next(self.steps)
        self._sent = time.perf_counter()
        self.transport.write(what)

    def data_received(self, data: bytes) -> None:
        self._parts.append(data)
        if self._missing < 0:
            data = b"".join(self._parts)
            end = data.find(b"\r\n\r\n")
            if end < 0:
                return
            head = data[:end].lower()
            if not head.startswith(b"http/1.1 200"):
                self.finish(RuntimeError(data[:2000].decode(errors="replace")))
                return
            length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
            self._parts = [data[end + 4 :]]
            self._missing = length - len(self._parts[0])
        else:
            self._missing -= len(data)
        if self._missing == 0:
            self.latencies.append(time.perf_counter() - self._sent)
            body, self._parts, self._missing = b"".join(self._parts), [], -1
            self._write(self.steps.send(body))

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(RuntimeError(f"the server closed the connection: {error}"))

    def finish(self, fault: Exception | None = None) -> None:
        if not self.done.done():
            self.done.set_exception(fault) if fault else self.done.set_result(None)
        self.transport.close()


async def drive(address: str, work: str, connections: int, seconds: float, said: dict[str, Any]) -> dict[str, Any]:
    """Run the load and say what it did."""
    global HOST
    HOST = urlsplit(address).netloc
    where = urlsplit(address)
    loop = asyncio.get_running_loop()
    deadline = [0.0]
    opened = []
    for number in range(connections):
        steps = WORKS[work](number, said)
        begun = partial(Connection, steps, deadline)
        _, made = await loop.create_connection(begun, where.hostname or "", where.port or 80)
        opened.append(made)
    began = time.perf_counter()
    deadline[0] = began + seconds
    for connection in opened:
        connection.start()
    await asyncio.gather(*(connection.done for connection in opened))
    took = time.perf_counter() - began
    latencies = sorted(latency for connection in opened for latency in connection.latencies)

    def quantile(share: float) -> float:
        return latencies[min(int(share * len(latencies)), len(latencies) - 1)] * 1000

    return {
        "operations": sum(connection.operations for connection in opened),
        "seconds": took,
        "p50": quantile(0.5),
        "p99": quantile(0.99),
        "worst": latencies[-1] * 1000,
    }


def main() -> None:
    address, work, connections, seconds = sys.argv[1:5]
    said = json.loads(sys.argv[5]) if len(sys.argv) > 5 else {}
    try:
        import uvloop

        run: Any = uvloop.run
    except ImportError:
        run = asyncio.run
    print(json.dumps(run(drive(address, work, int(connections), float(seconds), said))))


if __name__ == "__main__":
    main()
