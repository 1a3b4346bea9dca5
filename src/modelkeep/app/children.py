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
from collections.abc import Callable, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PARENT = "MODELKEEP_PARENT"
TOLD_TO_END = 128 + signal.SIGTERM
"""The exit code of a process that ended because it was told to."""
_AGAIN = 0.5
"""Seconds after which a process that was told to end, and has not heard of it, is told again."""


def die_with_parent(how: signal.Signals = signal.SIGTERM) -> None:
    """Ask the kernel to send this process a signal when its parent dies, even by kill -9 (Linux; else nothing)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(how), 0, 0, 0)
        # The parent may have been gone before the kernel was asked. It may be process 1: so it is in a container.
        if os.environ.get(_PARENT, str(os.getppid())) != str(os.getppid()):
            os.kill(os.getpid(), how)


def end_when_told(grace: float) -> Callable[[], object]:
    """Let SIGTERM end this process as Ctrl-C does, with all that is to be closed; by force after so many seconds.

    Python hears of signals between two of its steps, and one step may be an hour in a library. A socket is told at
    once, and another thread sees to the end. What is raised may be lost in a callback, whose errors are not passed
    on; so it is raised again until it is heard.

    Returns:
        To be called when it was heard, before what is closed then.
    """
    heard = threading.Event()
    told, tells = socket.socketpair()
    tells.setblocking(False)
    signal.set_wakeup_fd(tells.fileno(), warn_on_full_buffer=False)

    due = True

    def end(*_: object) -> None:
        nonlocal due
        if due and not heard.is_set():  # once, for others may tell it again and again while it closes what is open
            due = False
            raise KeyboardInterrupt

    def watch(_: socket.socket) -> None:
        nonlocal due
        while signal.SIGTERM not in told.recv(64):
            pass
        until = time.monotonic() + grace
        while (left := until - time.monotonic()) > 0 and not heard.wait(min(_AGAIN, left)):
            due = True
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        time.sleep(max(0.0, until - time.monotonic()))
        os._exit(TOLD_TO_END)

    signal.signal(signal.SIGTERM, end)
    threading.Thread(target=watch, args=(tells,), name="end-when-told", daemon=True).start()
    return heard.set


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
