"""Real processes without the seconds of importing: a process that has imported everything forks each command.

What runs in the fork is the command line's own ``main`` in a process of its own, with its own session, environment
and exit code; killing it kills exactly one command. Run as a program this file is that process: it reads one JSON
request a line and answers with process ids and, as they end, exit codes.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Forked:
    """One command in its own process."""

    out: Path
    err: Path
    pid: int = 0
    started: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    code: int | None = None

    def wait(self, limit: float = 60.0) -> int:
        """Its exit code; minus the signal that ended it."""
        assert self.ended.wait(limit), f"process {self.pid} is still running: {self.told()}"
        assert self.code is not None
        return self.code

    def send(self, number: signal.Signals) -> None:
        if not self.ended.is_set():
            os.kill(self.pid, number)

    def kill(self) -> int:
        self.send(signal.SIGKILL)
        return self.wait()

    def told(self) -> str:
        """Everything it said."""
        return self.out.read_text() + self.err.read_text()


class Forks:
    """Starts commands."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        self._all: dict[int, Forked] = {}
        self._asked: deque[Forked] = deque()
        env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )
        threading.Thread(target=self._listen, daemon=True).start()

    def run(self, words: Sequence[str], cwd: Path, env: Mapping[str, str] | None = None) -> Forked:
        """Start ``modelkeep`` with these words."""
        self._count += 1
        out, err = (self._folder / f"{self._count}.{name}" for name in ("out", "err"))
        request = {"words": list(words), "cwd": str(cwd), "env": dict(env or {}), "out": str(out), "err": str(err)}
        for path in (out, err):
            path.touch()
        asked = Forked(out, err)
        self._asked.append(asked)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        assert asked.started.wait(60), "the process that forks does not answer"
        return asked

    def done(self, words: Sequence[str], cwd: Path, env: Mapping[str, str] | None = None) -> tuple[int, str]:
        """Run to the end: the exit code and what was printed on standard output."""
        found = self.run(words, cwd, env)
        code = found.wait()
        return code, found.out.read_text()

    def close(self) -> None:
        """End everything that still runs."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(20)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told = json.loads(line)
            if "code" not in told:
                asked = self._asked.popleft()
                asked.pid = told["pid"]
                self._all[asked.pid] = asked
                asked.started.set()
                continue
            found = self._all.pop(told["pid"])
            found.code = told["code"]
            found.ended.set()


def children_of(pid: int) -> list[int]:
    """Process ids of the children of a process (Linux)."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(word) for word in task.read_text().split()]
    return found


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and was not yet collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def _serve() -> dict[str, Any] | None:
    """Fork for every request. Returns the request in the child, None in the parent when there are no more."""
    running: dict[int, int] = {}
    watch = selectors.DefaultSelector()
    watch.register(sys.stdin, selectors.EVENT_READ)
    while True:
        for key, _ in watch.select():
            if key.fileobj is sys.stdin:
                line = sys.stdin.buffer.raw.readline()  # type: ignore[attr-defined]
                if not line:
                    for pid in running.values():
                        os.kill(pid, signal.SIGKILL)
                    return None
                pid = os.fork()
                if pid == 0:
                    return dict(json.loads(line))
                handle = os.pidfd_open(pid)
                running[handle] = pid
                watch.register(handle, selectors.EVENT_READ)
                print(json.dumps({"pid": pid}), flush=True)
                continue
            handle = int(key.fd)
            pid = running.pop(handle)
            watch.unregister(handle)
            os.close(handle)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            print(json.dumps({"pid": pid, "code": code}), flush=True)


def _become(request: dict[str, Any]) -> None:
    """Be the command."""
    os.setsid()
    for number, path, mode in ((0, os.devnull, os.O_RDONLY), (1, request["out"], 0), (2, request["err"], 0)):
        flags = mode if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        os.dup2(os.open(path, flags, 0o644), number)
    os.chdir(request["cwd"])
    os.environ.update(request["env"])
    sys.argv = ["modelkeep", *request["words"]]
    from modelkeep.cli.main import main

    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    threading._shutdown()  # type: ignore[attr-defined] - what ends an interpreter, without taking all modules apart
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _import() -> None:
    """Import what takes long, except ONNX Runtime, whose import starts a thread that a fork would lose."""
    sys.modules["onnxruntime"] = None  # type: ignore[assignment] - whoever imports it here fails, and is imported anew
    for name in _HEAVY:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    del sys.modules["onnxruntime"]


_HEAVY = (
    *("alembic", "duckdb", "obstore", "onnx", "optuna", "pandas", "plotly.graph_objects", "pyarrow.parquet"),
    *("scipy.stats", "skl2onnx", "sklearn.linear_model", "sklearn.pipeline", "starlette.applications"),
    *("uvicorn.protocols.http.httptools_impl", "uvloop", "rich.progress"),
    *(
        "modelkeep.formats.skops_io",
        "modelkeep.data.snapshots",
        "modelkeep.data.prepare",
        "modelkeep.train.fit",
        "modelkeep.registry.verify",
    ),
    *("modelkeep.lifecycle.plan", "modelkeep.lifecycle.apply", "modelkeep.app.up", "modelkeep.cli.make"),
    *("modelkeep.cli.users", "modelkeep.cli.events", "modelkeep.protocols.mlflow.tracking", "argon2", "obstore"),
)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _import()
    found = _serve()
    if found is not None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _become(found)
