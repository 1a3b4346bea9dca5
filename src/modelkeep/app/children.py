"""Child processes that live and die with this one."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PARENT = "MODELKEEP_PARENT"


def die_with_parent(how: signal.Signals = signal.SIGTERM) -> None:
    """Ask the kernel to send this process a signal when its parent dies, even by kill -9 (Linux; else nothing)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(how), 0, 0, 0)
        # The parent may have been gone before the kernel was asked. It may be process 1: so it is in a container.
        if os.environ.get(_PARENT, str(os.getppid())) != str(os.getppid()):
            os.kill(os.getpid(), how)


Child = subprocess.Popen[bytes]


def start(module: str, arguments: Sequence[str], log: Path | None = None) -> Child:
    """Start ``python -m module arguments``, its output appended to ``log`` or going where this process's does."""
    command = [sys.executable, "-m", module, *arguments]
    env = {**os.environ, _PARENT: str(os.getpid())}
    if log is None:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, env=env)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=env)


class Kept:
    """A child that is started again when it dies, with growing pauses up to ten seconds.

    Args:
        module: What ``python -m`` runs.
        arguments: Its command line.
        log: Where its output goes.
    """

    def __init__(self, module: str, arguments: Sequence[str], log: Path | None = None) -> None:
        self._what = (module, tuple(arguments), log)
        self._stopping = threading.Event()
        self.restarts = 0
        self.process = start(*self._what)
        self._watcher = threading.Thread(target=self._watch, name=f"watch-{module}", daemon=True)
        self._watcher.start()

    def _watch(self) -> None:
        pause = 0.2
        while not self._stopping.is_set():
            began = time.monotonic()
            self.process.wait()
            if time.monotonic() - began > 30:
                pause = 0.2
            if self._stopping.wait(pause):
                return
            pause = min(pause * 2, 10.0)
            self.restarts += 1
            self.process = start(*self._what)

    def stop(self, limit: float = 10.0) -> None:
        """Ask the child to drain and end; end it by force after ``limit`` seconds."""
        self._stopping.set()
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        try:
            self.process.wait(limit)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
