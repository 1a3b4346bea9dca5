"""What a supervisor and its serving processes say to each other: JSON, one message a datagram.

To the process go orders, with as many descriptors as there are sockets to take; from it comes, a few times a
second, how it fares.
"""

from __future__ import annotations

import signal

from msgspec import Struct

DRAIN = 10
"""Seconds that a process has, once told to end, for what is under way."""
CLOSING = 4
"""Seconds after that in which it is gone, whatever its threads are at."""
END = signal.SIGUSR1
"""Tells a process to drain and end. No terminal and no orchestrator sends it, so theirs are not counted twice."""
LEAVE = signal.SIGUSR2
"""Tells a process to leave at once."""
GRPC = -1
"""The number of the socket for gRPC."""


class Order(Struct, omit_defaults=True):
    """What the supervisor wants: sockets to accept on from now on, and no more."""

    take: list[int] = []
    drop: list[int] = []


class Standing(Struct):
    """How a serving process fares.

    Attributes:
        ready: Whether it has loaded what is wanted.
        busy: Processors it kept busy since it last told.
        pressed: Whether requests wait for more than half of their endpoint's budget, or were refused for it.
        requests: Answered or refused since it started.
    """

    ready: bool
    busy: float
    pressed: bool
    requests: int
