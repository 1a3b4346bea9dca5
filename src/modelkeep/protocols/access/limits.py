"""How often somebody may ask: token buckets.

A bucket holds at most ``burst`` turns and gets ``rate`` a second; whoever finds it empty is told when to come
again (Turner, "New directions in communications", IEEE Communications Magazine 24, 1986: the bucket as a meter).
Buckets are of one process: with several, the limit holds in each.
"""

from __future__ import annotations

import ipaddress
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

    def give_back(self) -> None:
        """Give back a turn that was taken."""
        self._held = min(self._burst, self._held + 1)

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


_SAME = (1 / 60, 1.0)
_OF_ONE = (1 / 60, 10.0)
_IN_ALL = (1 / 10, 100.0)


class Noted:
    """Which refusals are written into the history, so that nobody who is refused can fill it.

    The same one once a minute; of one origin ten, then one a minute; in all a hundred, then six a minute.
    """

    def __init__(self) -> None:
        self._same = Buckets(*_SAME)
        self._of_one = Buckets(*_OF_ONE)
        self._all = Bucket(*_IN_ALL)
        self._untold = 0

    def take(self, kind: str, subject: str, actor: str, origin: str) -> int | None:
        """None when a refusal is not to be written; otherwise how many were not since the last that was."""
        turns = (self._same.of((kind, subject, actor)), self._of_one.of((kind, origin)), self._all)
        if any(turn.left() for turn in turns):
            self._untold += 1
            return None
        for turn in turns:
            turn.take()
        untold, self._untold = self._untold, 0
        return untold


def source(client: str) -> str:
    """What is counted as one client: an IPv4 address, or the /64 network that IPv6 gives to each (RFC 6177)."""
    try:
        address = ipaddress.ip_address(client.partition("%")[0])
    except ValueError:
        return client
    if isinstance(address, ipaddress.IPv6Address):
        mapped = address.ipv4_mapped
        return str(mapped or ipaddress.ip_network((address, 64), strict=False))
    return str(address)
