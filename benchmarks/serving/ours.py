"""A home with one endpoint and the serving processes over it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.serving.generator import SERVER_CORE, pinned
from benchmarks.serving.models import Case
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


def home(folder: Path, case: Case, **deploy: Any) -> Path:
    """A registry that wants the case's model served, with all that is on by default: capture, ids, checks."""
    folder.mkdir(parents=True, exist_ok=True)
    database = Database.open(f"sqlite:///{folder / 'modelkeep.db'}")
    digest = put_tree(open_blobs(str(folder / "blobs")), case.files)
    wanted = Wanted(
        endpoint="bench",
        model="bench",
        routes=(Route(version=1, package=digest, weight=1.0, mode="stable"),),
        settings={"declaration": {"deploy": deploy}},
    )
    database.write(lambda conn: endpoints.put(conn, wanted))
    database.close()
    return folder


@contextmanager
def serving(folder: Path, *, processes: int = 1, cores: str = str(SERVER_CORE)) -> Iterator[Served]:
    """Serving processes on one port, each as ``modelkeep up`` starts it."""
    command = [sys.executable, "-m", "modelkeep.app.serving", "--home", str(folder)]
    command += ["--database", f"sqlite:///{folder / 'modelkeep.db'}", "--blobs", str(folder / "blobs")]
    began = time.perf_counter()
    started: list[subprocess.Popen[bytes]] = []
    try:
        port = 0
        for _ in range(processes):
            one = subprocess.Popen(
                pinned(cores, [*command, "--port", str(port)]), stdout=subprocess.DEVNULL, env=dict(os.environ)
            )
            started.append(one)
            port = _address(folder, one)
            _until_ready(port, one)
        ready = time.perf_counter() - began
        pids = [one.pid for one in started]
        yield Served(port, pids, ready, sum(map(resident, pids)))
    finally:
        for one in started:
            one.send_signal(signal.SIGTERM)
        for one in started:
            one.wait(timeout=30)


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


def resident(pid: int) -> float:
    """Resident mebibytes of a process and what it started."""
    total = 0
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if int(entry.name) == pid:
                total += int((entry / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            elif parent == pid:
                total += int(resident(int(entry.name)) * 2**20)
        except (OSError, ValueError):
            continue
    return total / 2**20
