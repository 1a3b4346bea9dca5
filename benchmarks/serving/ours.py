"""A home with one endpoint and the serving processes over it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.proc import resident
from benchmarks.serving.generator import SERVER_CORE, pinned
from benchmarks.serving.models import Case
from modelkeep.app.fleet import Bounds, Fleet
from modelkeep.registry import endpoints
from modelkeep.registry.endpoints import Route, Wanted
from modelkeep.store.blobs import open_blobs, put_tree
from modelkeep.store.database import Database

PATH = "/v2/models/bench/infer"


@dataclass
class Served:
    """A server that answers.

    Attributes:
        ready_seconds: From the start of its process to the first answer.
        rss: Resident mebibytes of all its processes then.
    """

    port: int
    pids: list[int]
    ready_seconds: float
    rss: float


def home(folder: Path, case: Case, copies: int = 1, **deploy: Any) -> Path:
    """A registry that wants the case's model served, with all that is on by default: capture, ids, checks.

    Args:
        copies: Endpoints; each but the first has a package of its own with the same model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    database = Database.open(f"sqlite:///{folder / 'modelkeep.db'}")
    blobs = open_blobs(str(folder / "blobs"))
    for number in range(copies):
        name = f"bench{number or ''}"
        files = {**case.files, "number.txt": b"%d" % number} if number else case.files
        route = Route(version=1, package=put_tree(blobs, files), weight=1.0, mode="stable")
        settings = {"declaration": {"deploy": deploy}}
        wanted = Wanted(endpoint=name, model=name, routes=(route,), settings=settings)
        database.write(lambda conn, wanted=wanted: endpoints.put(conn, wanted))  # type: ignore[misc]
    database.close()
    return folder


def _arguments(folder: Path) -> list[str]:
    database = f"sqlite:///{folder / 'modelkeep.db'}"
    return ["--home", str(folder), "--database", database, "--blobs", str(folder / "blobs")]


@contextmanager
def serving(folder: Path) -> Iterator[Served]:
    """One serving process with both doors, HTTP and gRPC, as ``modelkeep up`` starts it, on the server's core."""
    ports = ["--port", "0", "--grpc-port", "0"]
    command = [sys.executable, "-m", "modelkeep.app.serving", *_arguments(folder), *ports]
    began = time.perf_counter()
    process = subprocess.Popen(pinned(SERVER_CORE, command), stdout=subprocess.DEVNULL, env=dict(os.environ))
    try:
        port = _address(folder, process)
        _until_ready(port, process)
        ready = time.perf_counter() - began
        yield Served(port, [process.pid], ready, resident(process.pid))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)


@contextmanager
def fleet(folder: Path, processes: int, cores: Sequence[int] = ()) -> Iterator[Served]:
    """So many serving processes on one pair of ports, as ``modelkeep up`` runs them, each on one of ``cores``."""
    with socket.socket() as one, socket.socket() as other:
        for probe in (one, other):
            probe.bind(("127.0.0.1", 0))
        port, grpc_port = (int(probe.getsockname()[1]) for probe in (one, other))
    bounds = Bounds(processes, processes, 3600)
    began = time.perf_counter()
    made = Fleet(
        "modelkeep.app.serving",
        [*_arguments(folder), "--port", str(port), "--grpc-port", str(grpc_port)],
        host="127.0.0.1",
        port=port,
        grpc_port=grpc_port,
        bounds=lambda: bounds,
    )
    try:
        while not all(member.slots for member in made.members) or len(made.members) < processes:
            time.sleep(0.02)
        pids = [member.process.pid for member in made.members]
        for pid, core in zip(pids, cores, strict=False):
            for thread in Path(f"/proc/{pid}/task").iterdir():
                os.sched_setaffinity(int(thread.name), {core})
        yield Served(port, pids, time.perf_counter() - began, sum(map(resident, pids)))
    finally:
        made.stop()


def _address(folder: Path, process: subprocess.Popen[bytes]) -> int:
    path = folder / "serve" / f"address-{process.pid}.json"
    while not path.exists():
        if process.poll() is not None:
            sys.exit("our serving process ended at once")
        time.sleep(0.002)
    return int(json.loads(path.read_bytes())["port"])


def _until_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/models/bench/ready", timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            if process.poll() is not None:
                sys.exit("our serving process ended at once")
        time.sleep(0.002)
