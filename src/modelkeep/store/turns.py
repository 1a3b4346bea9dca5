"""Turns between processes that write one file.

A process that writes without pause would take the lock again before another one wakes up. So whoever wants the
lock first holds the *turn* (a lock file) while waiting for it, and nobody else can come in between.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from pathlib import Path

from modelkeep.core.errors import Unavailable


class Turns:
    """Promises: the turn is one process's at a time; a process that dies lets go."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None
        self._lock = threading.Lock()

    def take(self, patience: float) -> None:
        """Wait for the turn; ``give`` ends it. Raises ``Unavailable`` after ``patience`` seconds."""
        self._lock.acquire()
        try:
            _take(self._open(), patience)
        except BaseException:
            self._lock.release()
            raise

    def give(self) -> None:
        """End the turn."""
        try:
            fcntl.flock(self._open(), fcntl.LOCK_UN)
        finally:
            self._lock.release()

    def close(self) -> None:
        """Let go of the lock file; the next turn opens it again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _open(self) -> int:
        if self._file is None:
            try:
                self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except OSError as error:
                raise Unavailable(f"the lock file {self._path} cannot be opened: {error.strerror}") from error
        return self._file


def _take(file: int, patience: float) -> None:
    deadline = time.monotonic() + patience
    pause = 0.0002
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"another process has been waiting to write for {patience:.0f} s", hint="try again"
                ) from None
        else:
            return
        time.sleep(pause)
        pause = min(pause * 1.5, 0.005)
