"""Time is a port: decisions take ``now`` as a value, processes ask one clock.

``MODELKEEP_CLOCK=file:PATH`` makes every process of a home read the time from PATH, where a driver writes it.
That is how the demo plays a year in minutes and how tests move time.
"""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path
from typing import Protocol

_ENV = "MODELKEEP_CLOCK"
_SECONDS = struct.Struct("<d")


class Clock(Protocol):
    """Promises: ``now`` never blocks and is in seconds since 1970-01-01 UTC."""

    def now(self) -> float: ...


class SystemClock:
    """The machine's own clock."""

    def now(self) -> float:
        return time.time()


class FileClock:
    """A clock that shows what was last written to a file of eight bytes (a little-endian double).

    Any number of processes may read; one drives. Falls back to the machine's clock while the file is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def now(self) -> float:
        try:
            return float(_SECONDS.unpack(self.path.read_bytes())[0])
        except (OSError, struct.error):
            return time.time()

    def set(self, now: float) -> None:
        """Move the clock to ``now``; readers see either the old or the new time, never a mixture."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_suffix(".next")
        fresh.write_bytes(_SECONDS.pack(now))
        fresh.replace(self.path)


def from_environment() -> Clock:
    """The clock this process must use."""
    setting = os.environ.get(_ENV, "")
    if setting.startswith("file:"):
        return FileClock(Path(setting.removeprefix("file:")))
    return SystemClock()
