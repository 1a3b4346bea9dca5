"""How far the event loop is behind: what a request waited in its socket before anybody read it.

A turn of the loop reads every socket that has something, then does what was asked, then looks again. What comes
meanwhile waits in the kernel, where no queue sees it: at most since the turn before began. A single long turn (a
stalled machine, a collection of garbage) means nothing; only what stands over several turns is a queue, as in
CoDel, which judges by the minimum over a window (Nichols and Jacobson, Controlling Queue Delay, 2012).
"""

from __future__ import annotations

import asyncio
from collections import deque
from time import perf_counter

WINDOW = 4
_SLEPT = 0.0005


class Turns:
    """Of one event loop; belongs to its thread. Protocols tell of the first bytes of a turn, lanes of their work.

    Attributes:
        over: Whether the next bytes begin a turn.
        standing: Seconds that bytes may have waited in each of the last ``WINDOW`` turns.
        stamp: What ``HotRoutes.stamp`` said in this turn; None before it was asked.
    """

    __slots__ = ("_ended", "_lags", "_looked", "over", "stamp", "standing")

    def __init__(self) -> None:
        self.over = True
        self._looked = self._ended = 0.0  # when the loop last looked at its sockets, and when it was last at work
        self.standing = 0.0
        self.stamp: object = None
        self._lags: deque[float] = deque([0.0] * WINDOW, WINDOW)

    def begin(self) -> None:
        """The first bytes of a turn have come. Call on the loop while ``over``."""
        now = perf_counter()
        # a loop that slept until now had nothing to read before
        self._lags.append(now - self._looked if now - self._ended < _SLEPT else 0.0)
        self.standing = min(self._lags)
        self.over = False
        self.stamp = None
        self._looked = self._ended = now
        asyncio.get_running_loop().call_soon(self._end)

    def _end(self) -> None:
        self.over = True
        self._ended = perf_counter()

    def worked(self, since: float, now: float) -> None:
        """Something was done on the loop from ``since`` until ``now``."""
        if since - self._ended > _SLEPT:
            self._looked = since  # it was woken for that
        self._ended = now
