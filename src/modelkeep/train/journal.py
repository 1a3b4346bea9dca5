"""Where a search keeps its trials: one JSON line per change, for one process at a time.

Optuna's own file backend leaves its lock behind when killed (half a minute of waiting) and cannot go on after a
line cut short; this one is locked by the system, which lets go with the process, and cuts such a line off.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from modelkeep.core.errors import Conflict


class Journal(BaseJournalBackend):
    """An append-only file. Lines reach the system at once; only a crash of the machine may lose the last ones."""

    def __init__(self, path: Path) -> None:
        """Open or make the file.

        Raises:
            Conflict: Another process is searching with it.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        _lock(self._file, path)
        self._file.seek(0)
        self._logs: list[dict[str, Any]] = []
        whole = 0
        for line in self._file:
            try:
                self._logs.append(json.loads(line))
            except ValueError:
                break
            whole += len(line)
        self._file.truncate(whole)

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """The changes from a number on."""
        yield from self._logs[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Keep more changes."""
        lines = [json.dumps(log, separators=(",", ":")) for log in logs]
        self._file.write("".join(f"{line}\n" for line in lines).encode())
        self._file.flush()
        # What is read back is what a later process will read, not the objects handed in.
        self._logs += [json.loads(line) for line in lines]

    def close(self) -> None:
        """Let another process have it."""
        self._file.close()


def _lock(file: Any, path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # not on Windows; there the store's own lease on the job keeps others out
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise Conflict(
            f"another process is tuning with {path}", hint="wait for it to end, or end it first"
        ) from None
