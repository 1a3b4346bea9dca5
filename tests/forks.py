"""Real processes without the seconds of importing: a process that has imported everything forks each command.

What runs in the fork is the command line's own ``main`` in a process of its own, with its own session, environment
and exit code; killing it kills exactly one command. Run as a program this file is that process: it reads one JSON
request a line and answers with process ids and, as they end, exit codes.

Scripts use it too: ``Forks.commands`` is a folder for the front of PATH, whose ``modelkeep``, ``python`` and
``mlflow`` ask that process, over a socket, to be them: with their words, folder, environment, input and output.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import json
import os
import re
import runpy
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import nursery


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

    def line(self, limit: float = 60.0) -> str:
        """The first line it prints; what there is of it when it ends before."""
        end = time.monotonic() + limit
        while not (said := self.out.read_text()).count("\n") and not self.ended.is_set():
            assert time.monotonic() < end, f"process {self.pid} says nothing: {self.told()}"
            time.sleep(0.005)
        return said.partition("\n")[0]

    def send(self, number: signal.Signals) -> None:
        if not self.ended.is_set():
            _signal(self.pid, number)

    def kill(self) -> int:
        self.send(signal.SIGKILL)
        return self.wait()

    def told(self) -> str:
        """Everything it said."""
        return self.out.read_text() + self.err.read_text()


class Forks:
    """Starts commands."""

    def __init__(self) -> None:
        self._count = 0
        self._all: dict[int, Forked] = {}
        self._asked: deque[Forked] = deque()
        self.commands = Path(
            tempfile.mkdtemp(prefix="modelkeep-")
        )  # short: a socket's path has but 108 characters
        self._folder = self.commands / "told"
        self._folder.mkdir()
        for name in ("modelkeep", "python", "mlflow"):
            (self.commands / name).write_text(
                _COMMAND.format(python=sys.executable, folder=self.commands, name=name)
            )
            (self.commands / name).chmod(0o755)
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(self.commands / "socket"))
            listening.listen()
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(listening.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                pass_fds=[listening.fileno()],
            )
        threading.Thread(target=self._listen, daemon=True).start()

    def run(
        self, words: Sequence[str], cwd: Path, env: Mapping[str, str] | None = None, program: str = "modelkeep"
    ) -> Forked:
        """Start ``modelkeep``, or ``python``, with these words; ``env`` is added to this environment."""
        self._count += 1
        out, err = (self._folder / f"{self._count}.{name}" for name in ("out", "err"))
        request = {
            "words": [program, *words],
            "cwd": str(cwd),
            "env": {**os.environ, **(env or {})},
            "out": str(out),
            "err": str(err),
        }
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
        self._process.wait(60)
        shutil.rmtree(self.commands)

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


@functools.cache
def shared() -> Forks:
    """The one of this process, made when somebody first needs it; ended with the tests."""
    return Forks()


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended, and nobody was told yet
        os.kill(pid, number)


def children_of(pid: int) -> list[int]:
    """Process ids of the children of a process (Linux), save the one that forks for it."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(word) for word in task.read_text().split()]
    return [child for child in found if not _forks(child)]


def _forks(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/comm").read_text().strip() == nursery.NAME
    return False


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and was not yet collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


_COMMAND = """#!{python} -IS
import os, signal, socket, sys
line = socket.socket(socket.AF_UNIX)
line.connect("{folder}/socket")
words = [b"{name}", *map(os.fsencode, sys.argv[1:])]
pairs = [name + b"=" + value for name, value in os.environb.items()]
said = b"\\0".join([os.getcwdb(), b"%d" % len(words), *words, *pairs])
socket.send_fds(line, [len(said).to_bytes(4, "big")], [0, 1, 2])
line.sendall(said)

def forward(number, _):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass

pid = int.from_bytes(line.recv(4, socket.MSG_WAITALL), "big")
if not pid:
    sys.exit("the process that forks is gone")  # and a signal to process 0 would go to all of this group
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, forward)
code = int.from_bytes(line.recv(4, socket.MSG_WAITALL), "big", signed=True)
if code < 0:
    if code != -signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
"""


@dataclass
class Request:
    """What to become."""

    words: list[str]
    cwd: str
    env: dict[str, str]
    files: list[int]


class _Server:
    """Forks for every request."""

    def __init__(self, listening: socket.socket) -> None:
        self._running: dict[int, tuple[int, socket.socket | None]] = {}  # by handle of the process
        self._watch = selectors.DefaultSelector()
        self._watch.register(sys.stdin, selectors.EVENT_READ, self._line)
        self._listening = listening
        self._watch.register(self._listening, selectors.EVENT_READ, self._asked)
        self._over = False

    def serve(self) -> Request | None:
        """The request in the child, None in the parent when there are no more."""
        while not self._over:
            for key, _ in self._watch.select():
                request: Request | None = key.data(key.fileobj)
                if request is not None:
                    self._let_go()
                    return request
        for pid, _ in self._running.values():
            _signal(pid, signal.SIGKILL)
        return None

    def _let_go(self) -> None:
        """In the child: close what only the parent needs now, not whenever the garbage collector comes by, when
        another file may have its number."""
        self._watch.close()
        self._listening.close()
        for handle, (_, line) in self._running.items():
            os.close(handle)
            if line is not None:
                line.close()

    def _line(self, _: Any) -> Request | None:
        """A request of a test, which waits for files to be written."""
        line = sys.stdin.buffer.raw.readline()  # type: ignore[attr-defined]
        if not line:
            self._over = True
            return None
        pid = self._forked(None)
        if pid:
            print(json.dumps({"pid": pid}), flush=True)
            return None
        said = json.loads(line)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        files = [os.open(os.devnull, os.O_RDONLY), *(os.open(said[name], flags, 0o644) for name in ("out", "err"))]
        return Request(said["words"], said["cwd"], said["env"], files)

    def _asked(self, _: Any) -> Request | None:
        """A request of a script, which waits for the process to end."""
        line = self._listening.accept()[0]
        head, files, _, _ = socket.recv_fds(line, 4, 3)
        size = int.from_bytes(head, "big")
        cwd, count, *rest = line.recv(size, socket.MSG_WAITALL).split(b"\0")
        words = [os.fsdecode(word) for word in rest[: int(count)]]
        env = dict(os.fsdecode(pair).split("=", 1) for pair in rest[int(count) :])
        request = Request(words, os.fsdecode(cwd), env, files)
        _import_for(request)
        pid = self._forked(line)
        if not pid:
            return request
        for file in files:
            os.close(file)
        line.sendall(pid.to_bytes(4, "big"))
        return None

    def _forked(self, line: socket.socket | None) -> int:
        pid = os.fork()
        if pid:
            handle = os.pidfd_open(pid)
            self._running[handle] = (pid, line)
            self._watch.register(handle, selectors.EVENT_READ, self._ended)
            if line is not None:
                self._watch.register(line, selectors.EVENT_READ, lambda _: _signal(pid, signal.SIGKILL))
        return pid

    def _ended(self, handle: Any) -> None:
        pid, line = self._running.pop(handle)
        self._watch.unregister(handle)
        os.close(handle)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if line is None:
            print(json.dumps({"pid": pid, "code": code}), flush=True)
            return
        self._watch.unregister(line)
        with contextlib.suppress(OSError), line:
            line.sendall(code.to_bytes(4, "big", signed=True))


def _become(request: Request) -> None:
    """Be the command."""
    os.setsid()
    for number, file in enumerate(request.files):
        os.dup2(file, number)
    os.chdir(request.cwd)
    os.environ.clear()
    os.environ.update(request.env)
    if "up" in request.words:
        atexit.register(nursery.Nursery(_run).close)
    _run(request.words)


def _run(words: list[str]) -> NoReturn:
    """Run a program to its end, which is the end of this process."""
    program, *rest = sys.argv = words
    code: Any = 0
    try:
        if program == "modelkeep":
            from modelkeep.cli.main import main

            main()
        elif program == "mlflow":
            from mlflow.cli import cli

            cli()
        else:
            _python(rest)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined] - what ends an interpreter, without taking all modules apart
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(ValueError, BrokenPipeError):  # the program closed it, or whoever read it went
            stream.flush()
    os._exit(code or 0)


def _python(words: list[str]) -> None:
    """Run a text, a module or a file, as the interpreter would."""
    first, *rest = words
    if first == "-m":
        sys.argv, sys.path[0] = rest, str(Path.cwd())
        sys.modules.pop(rest[0], None)
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv, sys.path[0] = ["-c", *rest[1:]], ""
        main = sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)
    else:
        sys.argv, sys.path[0] = words, str(Path(first).resolve().parent)
        runpy.run_path(first, run_name="__main__")


def _import_for(request: Request) -> None:
    """Import what a script begins with, so that the next one finds it here."""
    program, *words = request.words
    text = "import mlflow.cli" if program == "mlflow" else ""
    if program == "python":
        file = Path(request.cwd, words[0])
        text = words[1] if words[0] == "-c" else file.read_text() if file.is_file() else ""
    for name in re.findall(r"^(?:import|from) (mlflow\.cli|mlflow|torch)\b", text, re.M):
        importlib.import_module(name)


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
    *("modelkeep.protocols.serving", "modelkeep.serve.worker", "modelkeep.app.protection"),
    *("modelkeep.cli.users", "modelkeep.cli.events", "modelkeep.protocols.mlflow.tracking", "argon2", "obstore"),
)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _import()
    found = _Server(socket.socket(fileno=int(sys.argv[1]))).serve()
    if found is not None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _become(found)
