"""Files through the artifact proxy: many small ones by eight clients, and a large one, read back and compared."""

from __future__ import annotations

import hashlib
import http.client
import os
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from benchmarks.tracking.rows import Side

CLIENTS = 8
SMALL = 10_000
LARGE = 500_000_000
"""Bytes."""
PIECE = 1 << 20


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


def _large(side: Side) -> tuple[float, float]:
    """Megabytes a second, up and down."""
    place, conn, block = f"{_place(side)}/large", _open(side), os.urandom(PIECE - 8)
    count = LARGE // PIECE
    sent = hashlib.blake2b()
    for at in range(count):
        sent.update(at.to_bytes(8, "big") + block)
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
    began = time.perf_counter()
    conn.request("GET", place)
    answer, pieces = conn.getresponse(), []
    while piece := answer.read(PIECE):
        pieces.append(piece)
    down = time.perf_counter() - began
    found = hashlib.blake2b(b"".join(pieces))
    assert found.digest() == sent.digest(), "the file came back changed"
    size = count * PIECE / 1e6
    return size / up, size / down


def large_up(side: Side) -> float:
    """Megabytes of a file of 500 MB that arrive in a second."""
    return _large(side)[0]


def large_down(side: Side) -> float:
    """Megabytes of a file of 500 MB that are read in a second."""
    return _large(side)[1]
