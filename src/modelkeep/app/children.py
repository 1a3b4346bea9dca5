"""Child processes that live and die with this one."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
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


def end_when_told(grace: float) -> None:
    """Let SIGTERM end this process as Ctrl-C does, with all that is to be closed; by force after so many seconds.

    Python hears of signals between two of its steps, and one step may be an hour in a library. A socket is told at
    once, and another thread sees to the end.
    """
    told, tells = socket.socketpair()
    tells.setblocking(False)
    signal.set_wakeup_fd(tells.fileno(), warn_on_full_buffer=False)

    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # told once is enough: what closes is not to be interrupted
        raise KeyboardInterrupt

    def watch(_: socket.socket) -> None:
        while signal.SIGTERM not in told.recv(64):
            pass
        time.sleep(grace)
        os._exit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)
    threading.Thread(target=watch, args=(tells,), name="end-when-told", daemon=True).start()


Child = subprocess.Popen[bytes]


def start(module: str, arguments: Sequence[str], log: Path | None = None, pass_fds: Sequence[int] = ()) -> Child:
    """Start ``python -m module arguments``, its output appended to ``log`` or going to this process's errors.

    Standard output is this process's own: scripts read it.
    """
    command = [sys.executable, "-m", module, *arguments]
    env = {**os.environ, _PARENT: str(os.getpid())}
    if log is None:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=2, env=env, pass_fds=pass_fds)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=env)
