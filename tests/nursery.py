"""Children of a forked ``up``, forked as well, and nevertheless its own.

``up`` has threads, so it cannot fork. A process that it forked before it had any does it in its place, twice: the
process between ends at once, and the kernel gives the orphan to ``up``, which asked for orphans. From then on all
is as if it had started it: it is told when it ends, and dies when ``up`` does, as its own code demands.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

NAME = "nursery"
"""What the process that forks is called, for those who count the children of a process."""
_SET_NAME, _SET_CHILD_SUBREAPER = 15, 36
_HIGH = 500
"""Descriptors from here on are in nobody's way."""


class Born(subprocess.Popen[bytes]):
    """A child that another process forked."""

    def __init__(self, pid: int, words: Sequence[str]) -> None:
        self.args, self.pid, self.returncode = words, pid, None
        self.stdin = self.stdout = self.stderr = None
        self._child_created = True
        self._waitpid_lock = threading.Lock()


class Nursery:
    """Starts ``python -m module arguments`` as ``modelkeep.app.children`` does, whose ``start`` it becomes.

    Args:
        run: Runs a program, with its words, to its end, which is the end of the process.
    """

    def __init__(self, run: Callable[[list[str]], NoReturn]) -> None:
        self._line, theirs = socket.socketpair()
        self._lock = threading.Lock()
        self.pid = os.fork()
        if not self.pid:
            self._line.close()
            ctypes.CDLL(None).prctl(_SET_NAME, NAME.encode(), 0, 0, 0)
            words = _answer(theirs)
            if words:
                run(["python", *words])
            os._exit(0)
        theirs.close()
        ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        from modelkeep.app import children

        self._parent = children._PARENT
        children.start = self.start

    def start(
        self, module: str, arguments: Sequence[str], log: Path | None = None, pass_fds: Sequence[int] = ()
    ) -> Born:
        words = ["-m", module, *arguments]
        environment = {**os.environ, self._parent: str(os.getpid())}
        with ExitStack() as stack:
            nothing = stack.enter_context(Path(os.devnull).open("rb")).fileno()
            out = 2
            if log is not None:
                log.parent.mkdir(parents=True, exist_ok=True)
                out = stack.enter_context(log.open("ab")).fileno()
            given = {0: nothing, 1: out, 2: out, **{number: number for number in pass_fds}}
            said = json.dumps({"words": words, "environment": environment, "as": list(given)}).encode()
            with self._lock:
                socket.send_fds(self._line, [len(said).to_bytes(4, "big")], list(given.values()))
                self._line.sendall(said)
                pid = int.from_bytes(self._line.recv(4, socket.MSG_WAITALL), "big")
        assert pid, "the process that forks is gone"
        return Born(pid, words)

    def close(self) -> None:
        self._line.close()
        os.waitpid(self.pid, 0)


def _answer(line: socket.socket) -> list[str]:
    """In the process that forks: serve until there is nobody to serve. In a child: what it is to run."""
    while True:
        head, files, _, _ = socket.recv_fds(line, 4, 32)
        if len(head) < 4:
            return []
        asked = json.loads(line.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL))
        ours, theirs = os.pipe()
        between = os.fork()
        if not between:
            middle = os.getpid()
            child = os.fork()
            if child:
                os.write(theirs, child.to_bytes(4, "big"))
                os._exit(0)
            os.close(ours)
            os.close(theirs)
            line.close()
            while os.getppid() == middle:
                time.sleep(0.0005)
            return _be(asked, files)
        os.waitpid(between, 0)
        line.sendall(os.read(ours, 4))
        for file in (ours, theirs, *files):
            os.close(file)


def _be(asked: dict[str, Any], files: list[int]) -> list[str]:
    """Have the environment and the descriptors that were asked for."""
    ctypes.CDLL(None).prctl(_SET_NAME, b"python", 0, 0, 0)
    high = [fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, _HIGH) for file in files]
    for file in files:
        os.close(file)
    for file, wanted in zip(high, asked["as"], strict=True):
        os.dup2(file, wanted)
        os.close(file)
    os.environ.clear()
    os.environ.update(asked["environment"])
    words: list[str] = asked["words"]
    return words
