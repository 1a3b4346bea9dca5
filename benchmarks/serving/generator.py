"""The load generator of ``load.c``, compiled when it is first needed, on a core of its own."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.proc import spent

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "bench-serving"
SERVER_CORE, LOAD_CORE = 0, 1


@dataclass(frozen=True)
class Load:
    """What one run of the generator saw.

    Attributes:
        seconds: How long was counted.
        ok, refused, other, broken: Answers 200; 429 or 503; any other status; connections that ended.
        unsent: Requests that were due and could not be sent, because no connection was free.
        answered: Answers of any status, those while it warmed up too.
        p50, p99, longest: Milliseconds of the answers 200.
        refused_p50, refused_p99: Milliseconds of the refusals.
        texts: Different texts after ``mark`` in the answers 200; 0 without one.
        cpu: Processor microseconds of the server for each answer; None when it was not told which that is.
    """

    seconds: float
    ok: int
    refused: int
    other: int
    broken: int
    unsent: int
    answered: int
    p50: float
    p99: float
    longest: float
    refused_p50: float
    refused_p99: float
    texts: int = 0
    cpu: float | None = None

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.ok / self.seconds


def compiled() -> Path:
    """The generator's program."""
    source = ROOT / "benchmarks" / "serving" / "load.c"
    program = BUILD / f"load-{hashlib.sha256(source.read_bytes()).hexdigest()[:12]}"
    if not program.exists():
        if shutil.which("gcc") is None:
            sys.exit("the load generator is written in C: install gcc")
        BUILD.mkdir(parents=True, exist_ok=True)
        subprocess.run(["gcc", "-O2", "-Wall", "-o", f"{program}.next", str(source)], check=True)
        Path(f"{program}.next").replace(program)
    return program


def pinned(core: int, command: Sequence[str]) -> list[str]:
    """The command, kept on one core where the machine has several."""
    if shutil.which("taskset") is None or (os.cpu_count() or 1) < 2:
        return list(command)
    return ["taskset", "-c", str(core), *command]


def post(path: str, body: bytes, headers: str = "Content-Type: application/json\r\n") -> bytes:
    """A raw request as ordinary clients send it."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\nUser-Agent: load\r\n{headers}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def run(
    port: int,
    requests: Sequence[bytes],
    connections: int,
    seconds: float,
    *,
    rate: float = 0,
    warm: float = 1.0,
    core: int = LOAD_CORE,
    server: Sequence[int] = (),
    mark: str = "",
    over: Callable[[], bool] = lambda: False,
) -> Load:
    """Send the requests in turn. ``rate`` 0 keeps every connection busy; else so many are due each second.

    ``server`` names the processes whose processor time is told. The texts between ``mark`` and the next quote are
    told apart and counted. It ends before its time once ``over`` says so.
    """
    with tempfile.NamedTemporaryFile(suffix=".requests") as file:
        for one in requests:
            file.write(struct.pack("<I", len(one)) + one)
        file.flush()
        command = [str(compiled()), str(port), str(connections), str(warm), str(seconds), str(rate), file.name]
        command += [mark] if mark else []
        before = spent(server)
        out, said = _ended(pinned(core, command), over)
        used = spent(server) - before
    found = Load(**json.loads(out))
    if server:
        found = replace(found, cpu=used * 1e6 / max(found.answered, 1))
    if found.other or found.broken:
        print(
            f"  {found.other} other answers, {found.broken} broken connections: {said[:600]}",
            file=sys.stderr,
        )
    return found


def _ended(command: list[str], over: Callable[[], bool]) -> tuple[str, str]:
    """What the generator printed, and what it complained of."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while True:
            try:
                out, said = process.communicate(timeout=0.1)
            except subprocess.TimeoutExpired:
                if over():
                    process.terminate()
            else:
                break
    if process.returncode:
        sys.exit(f"the load generator failed: {said[-2000:]}")
    return out, said


def together(
    port: int, requests: Sequence[bytes], connections: int, seconds: float, cores: Sequence[int]
) -> list[Load]:
    """A generator on each of these cores at the same time."""
    compiled()
    with ThreadPoolExecutor(len(cores)) as pool:
        return list(pool.map(lambda core: run(port, requests, connections, seconds, core=core), cores))
