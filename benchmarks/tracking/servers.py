"""The two servers, as users start them: how long until they answer, and what they hold in memory."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.proc import family, proportional

PATIENCE = 300.0
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}


@dataclass
class Server:
    """A running server.

    Attributes:
        name: ``modelkeep``, ``mlflow`` or ``mlflow --workers 1``.
        started: Seconds from the command until ``/health`` answered.
    """

    name: str
    address: str
    process: subprocess.Popen[bytes]
    started: float

    def memory(self) -> float:
        """Mebibytes of all its processes; a page that several share counts once (PSS)."""
        return proportional(self.process.pid)

    def load(self, work: str, connections: int, seconds: float, said: dict[str, Any]) -> dict[str, Any]:
        """What one load process did; see ``load``."""
        command = [sys.executable, "-m", "benchmarks.tracking.load", self.address, work]
        command += [str(connections), str(seconds), json.dumps(said)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=f"{self.address}/api/2.0/mlflow", timeout=PATIENCE)


@contextlib.contextmanager
def modelkeep(folder: Path, database: str = "", *, serve: bool = False) -> Iterator[Server]:
    """``modelkeep up`` in a home; without serving and the loop, unless ``serve``."""
    env = {**os.environ, "MODELKEEP_HOME": str(folder / ".modelkeep")}
    if database:
        env["MODELKEEP_DATABASE"] = database
    port = _free()
    command = [str(Path(sys.executable).with_name("modelkeep")), "up", "--port", str(port), "--serve-port", "0"]
    command += [] if serve else ["--no-serve", "--no-loop"]
    with _running("modelkeep", command, port, folder, env) as server:
        yield server


@contextlib.contextmanager
def mlflow(folder: Path, workers: int | None = None) -> Iterator[Server]:
    """``mlflow server`` with SQLite; ``workers`` None leaves its default."""
    port = _free()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    command += [] if workers is None else ["--workers", str(workers)]
    name = "mlflow" if workers is None else f"mlflow --workers {workers}"
    with _running(name, command, port, folder, {**os.environ, **QUIET}) as server:
        yield server


@contextlib.contextmanager
def _running(name: str, command: list[str], port: int, folder: Path, env: dict[str, str]) -> Iterator[Server]:
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "server.log"
    began = time.perf_counter()
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=out, stderr=out, start_new_session=True)
    try:
        address = f"http://127.0.0.1:{port}"
        while not _healthy(port):
            if process.poll() is not None or time.perf_counter() - began > PATIENCE:
                sys.exit(f"{' '.join(command)} did not start:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.005)
        yield Server(name, address, process, time.perf_counter() - began)
    finally:
        all_of_it = family(process.pid)
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)
        for pid in all_of_it:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def _healthy(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as conn:
            conn.settimeout(30)
            conn.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            return conn.recv(100).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def _free() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
