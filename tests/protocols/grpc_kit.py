"""A real serving process that answers gRPC."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
import httpx
from serving_kit import Home, Worker, ended

from forks import shared


@dataclass
class GrpcWorker(Worker):
    """A serving process.

    Attributes:
        grpc: ``host:port``.
    """

    grpc: str = ""

    def channel(self) -> grpc.Channel:
        return grpc.insecure_channel(self.grpc, options=[("grpc.use_local_subchannel_pool", 1)])


@contextmanager
def grpc_worker(
    home: Home, *, ready: bool = True, program: Sequence[str] = ("-m", "modelkeep.app.serving")
) -> Iterator[GrpcWorker]:
    words = [*program, "--home", str(home.path), "--database", home.url]
    words += ["--blobs", home.blobs_url, "--port", "0", "--grpc-port", "0"]
    process = shared().run(words, home.path, program="python")
    with ended(process):
        url = process.line().removeprefix("serving on ").strip()
        assert url, process.told()
        told = json.loads((home.path / "serve" / f"address-{process.pid}.json").read_text())
        with httpx.Client(base_url=url, timeout=20) as client:
            found = GrpcWorker(process, url, client, told["grpc"])
            if ready:
                found.until(lambda health: health["ready"])
            yield found


def until(said: object, limit: float = 10.0) -> None:
    """Wait until ``said()`` is true."""
    end = time.monotonic() + limit
    while not said():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.01)
