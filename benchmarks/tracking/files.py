"""Files through the artifact proxy: many small ones by eight clients, and a large one, read back and compared.

While the large one goes up and down, the memory of the server's processes is watched.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from benchmarks.proc import family, held

if TYPE_CHECKING:
    from benchmarks.tracking.rows import Side

CLIENTS = 8
SMALL = 10_000
LARGE = 500_000_000
"""Bytes."""
PIECE = 1 << 20
EVERY = 0.05
"""Seconds between two looks at the memory."""


@dataclass(frozen=True)
class Moved:
    """How a large file went one way: megabytes a second, and mebibytes that the server grew by at most (PSS)."""

    speed: float
    grown: float


class _Watched:
    """How much more memory the processes of a server hold, at most, than when this began."""

    def __init__(self, side: Side) -> None:
        self._processes = family(side.server.process.pid)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.before = self.most = held(self._processes)

    @property
    def grown(self) -> float:
        return self.most - self.before

    def __enter__(self) -> _Watched:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._over.wait(EVERY):
            self._look()

    def _look(self) -> None:
        self.most = max(self.most, held(self._processes))


def _place(side: Side) -> str:
    experiment = side.experiment()
    run = side.ask("POST", "runs/create", experiment_id=experiment, start_time=1)["run"]["info"]["run_id"]
    return f"/api/2.0/mlflow-artifacts/artifacts/{experiment}/{run}/artifacts"


def _open(side: Side) -> http.client.HTTPConnection:
    where = urlsplit(side.server.address)
    return http.client.HTTPConnection(where.hostname or "", where.port, timeout=300)


def _small(side: Side, work: str) -> float:
    done = side.load(work, CLIENTS, path=_place(side), size=SMALL)
    return float(done["operations"] / done["seconds"])


def small_up(side: Side) -> float:
    """Files of 10 KB that arrive in a second."""
    return _small(side, "put_files")


def small_down(side: Side) -> float:
    """Files of 10 KB that are read in a second."""
    return _small(side, "get_files")


_DONE: dict[int, tuple[Moved, Moved]] = {}
"""What came of it, by the server's process: several rows tell of the same file."""


def _large(side: Side) -> tuple[Moved, Moved]:
    """Up and down."""
    server = side.server.process.pid
    if server not in _DONE:
        _DONE[server] = _moved(side)
    return _DONE[server]


def _moved(side: Side) -> tuple[Moved, Moved]:
    place, conn, block = f"{_place(side)}/large", _open(side), os.urandom(PIECE - 8)
    count = LARGE // PIECE
    sent, found = hashlib.blake2b(), hashlib.blake2b()
    for at in range(count):
        sent.update(at.to_bytes(8, "big") + block)
    with _Watched(side) as taking:
        began = time.perf_counter()
        conn.putrequest("PUT", place)
        conn.putheader("Content-Length", str(count * PIECE))
        conn.endheaders()
        for at in range(count):
            conn.send(at.to_bytes(8, "big") + block)
        answer = conn.getresponse()
        assert answer.status == 200, answer.read()[:500]
        answer.read()
        up = time.perf_counter() - began
    with _Watched(side) as giving:
        began = time.perf_counter()
        conn.request("GET", place)
        answer, pieces = conn.getresponse(), []
        while piece := answer.read(PIECE):
            pieces.append(piece)
        down = time.perf_counter() - began
    for piece in pieces:
        found.update(piece)
    assert found.digest() == sent.digest(), "the file came back changed"
    size = count * PIECE / 1e6
    return Moved(size / up, taking.grown), Moved(size / down, giving.grown)


def large_up(side: Side) -> float:
    """Megabytes of a file of 500 MB that arrive in a second."""
    return _large(side)[0].speed


def large_down(side: Side) -> float:
    """Megabytes of a file of 500 MB that are read in a second."""
    return _large(side)[1].speed


def large_up_memory(side: Side) -> float:
    """Mebibytes that the server grew by, at most, while it took the file."""
    return _large(side)[0].grown


def large_down_memory(side: Side) -> float:
    """Mebibytes that the server grew by, at most, while it sent the file."""
    return _large(side)[1].grown
