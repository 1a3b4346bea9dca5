"""What the serving processes of one home count together, so that whichever is asked tells of all.

Each process keeps a file of its own counts, written again when they have changed. The counts of processes that
have ended are kept as long as others run, so that sums never shrink; a process that is killed takes at most the
last ``EVERY`` seconds of its counts with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from modelkeep.serve.metrics import Totals, together

log = logging.getLogger(__name__)

EVERY = 1.0
_decoder = msgspec.json.Decoder(list[Totals])


class Tally:
    """One process's part.

    Args:
        folder: Shared by the processes of this machine.
        mine: What this process counted; asked from another thread.
    """

    def __init__(self, folder: Path, mine: Callable[[], Sequence[Totals]]) -> None:
        self._folder = folder
        self._mine = mine
        self._host = socket.gethostname()  # a process's number means nothing on another machine, or in a container
        self._file = folder / f"{self._host}-{os.getpid()}.json"
        self._ended = folder / f"{self._host}-ended.json"
        self._written = b""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tally", daemon=True)

    def start(self) -> None:
        """Take part. Counts of ended processes are put together; without others that run they are forgotten."""
        try:
            with self._locked(fcntl.LOCK_EX):
                others = self._others()
                gone = [path for path in others if not _alive(path)]
                kept = [line for path in (self._ended, *gone) for line in _read(path)]
                kept = together(kept) if len(gone) < len(others) else []
                _write(self._ended, msgspec.json.encode(_still(kept)))
                for path in gone:
                    path.unlink(missing_ok=True)
                _write(self._file, b"[]")
        except OSError as error:
            log.warning("the counts of several processes cannot be kept together: %s", error)
        self._thread.start()

    def stop(self) -> None:
        """Write the last counts, which stay."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self.tell()

    def _run(self) -> None:
        while not self._stop.wait(EVERY):
            self.tell()

    def tell(self) -> None:
        """Write what this process counted, if it is not what was written. Never raises."""
        try:
            found = msgspec.json.encode(self._mine())
            if found != self._written:
                with self._locked(fcntl.LOCK_SH):
                    _write(self._file, found)
                self._written = found
        except OSError as error:
            log.warning("the counts cannot be written: %s", error)

    def elsewhere(self) -> list[Totals]:
        """The counts of the other processes, running and ended; what can be read of them."""
        try:
            with self._locked(fcntl.LOCK_SH):
                ended = _read(self._ended)
                for path in self._others():
                    lines = _read(path)
                    ended += lines if _alive(path) else _still(lines)
                return together(ended)
        except OSError as error:
            log.warning("the counts of other processes cannot be read: %s", error)
            return []

    def _others(self) -> list[Path]:
        found = self._folder.glob(f"{self._host}-*.json")
        return sorted(path for path in found if path not in (self._file, self._ended))

    @contextlib.contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        """Keep files from being put together while they are read: nothing is counted twice or not at all."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "lock").open("a") as file:
            fcntl.flock(file, how)
            yield


def _still(lines: Sequence[Totals]) -> list[Totals]:
    """The counts of a process that has ended: nothing is under way."""
    return [msgspec.structs.replace(line, pending=0) for line in lines]


def _alive(path: Path) -> bool:
    try:
        os.kill(int(path.stem.rpartition("-")[2]), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True


def _read(path: Path) -> list[Totals]:
    try:
        return _decoder.decode(path.read_bytes())
    except (OSError, msgspec.MsgspecError):
        return []


def _write(path: Path, data: bytes) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_bytes(data)
    fresh.replace(path)
