"""How often somebody may ask: token buckets.

A bucket holds at most ``burst`` turns and gets ``rate`` a second; whoever finds it empty is told when to come
again (Turner, "New directions in communications", IEEE Communications Magazine 24, 1986: the bucket as a meter).
Buckets are of one process: with several, the limit holds in each.
"""

from __future__ import annotations

import time
from collections import OrderedDict


class Bucket:
    """Turns of one client.

    Args:
        rate: Turns a second.
        burst: Turns at most saved up.
    """

    __slots__ = ("_at", "_burst", "_held", "rate")

    def __init__(self, rate: float, burst: float) -> None:
        self.rate = rate
        self._burst = burst
        self._held = burst
        self._at = time.monotonic()

    def take(self) -> float:
        """Take a turn: 0, or the seconds until there is one."""
        now = time.monotonic()
        held = min(self._burst, self._held + (now - self._at) * self.rate)
        self._at = now
        if held < 1:
            self._held = held
            return (1 - held) / self.rate
        self._held = held - 1
        return 0.0

    def left(self) -> float:
        """Seconds until there is a turn, without taking it; 0 when there is one."""
        held = min(self._burst, self._held + (time.monotonic() - self._at) * self.rate)
        return 0.0 if held >= 1 else (1 - held) / self.rate


class Buckets:
    """One bucket for each name; the least recently used are forgotten.

    Args:
        most: How many are remembered.
    """

    def __init__(self, rate: float, burst: float, most: int = 10_000) -> None:
        self._shape = (rate, burst)
        self._most = most
        self._held: OrderedDict[object, Bucket] = OrderedDict()

    def of(self, name: object) -> Bucket:
        """The bucket of a name."""
        found = self._held.get(name)
        if found is None:
            found = self._held[name] = Bucket(*self._shape)
            if len(self._held) > self._most:
                self._held.popitem(last=False)
        else:
            self._held.move_to_end(name)
        return found
