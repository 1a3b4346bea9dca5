"""The loop of a home, loaded when there is something to look after.

What it works with (tables, statistics, training) takes seconds to import and a hundred megabytes to hold: a server
that only tracks runs needs neither.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

from modelkeep.core.errors import ModelkeepError
from modelkeep.lifecycle.keep import Keep
from modelkeep.registry import endpoints
from modelkeep.store import jobs

if TYPE_CHECKING:
    from modelkeep.lifecycle.loop import Loop
    from modelkeep.lifecycle.renewals import Start

log = logging.getLogger(__name__)

EVERY = 0.1
"""Seconds between looks while there is nothing."""


class Watch:
    """Looks after a home.

    Args:
        keep: The home.
        start: Starts the process of a renewal.
    """

    def __init__(self, keep: Keep, start: Start) -> None:
        self._keep = keep
        self._start = start
        self._loop: Loop | None = None
        self._seen = 0.0
        self._looks = 0
        self._fault = ""

    def status(self) -> dict[str, Any]:
        """What the loop says of itself, JSON types."""
        if self._loop is not None:
            return self._loop.status()
        return {"seen": self._seen, "ticks": self._looks, "busy": False, "fault": self._fault, "waiting": {}}

    def run(self, stopping: threading.Event) -> None:
        """Tick until told to stop."""
        while not self._anything():
            if stopping.wait(EVERY):
                return
        from modelkeep.lifecycle.loop import Loop

        self._loop = Loop(self._keep, self._start)
        self._loop.run(stopping)

    def stop_jobs(self, *, at_once: bool = False) -> None:
        """End what runs; it is taken up again at the next start."""
        if self._loop is not None:
            self._loop.stop_jobs(at_once=at_once)

    def _anything(self) -> bool:
        """Whether something is served, was captured, or waits to be done."""
        try:
            with self._keep.db.read() as conn:
                found = bool(endpoints.wanted(conn)) or bool(jobs.listing(conn, limit=1))
            found = found or any((self._keep.home / "capture").glob("*.arrow"))
        except ModelkeepError as error:
            if str(error) != self._fault:
                log.error("the loop: %s", error)
            self._fault = str(error)
            return False
        self._fault = ""
        self._seen, self._looks = self._keep.clock.now(), self._looks + 1
        return found
