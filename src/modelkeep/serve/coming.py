"""What a connection holds for its client: how much of a message has come, and what waits for who does not read.

A client that does not read its answers is not read from, and what it sent ahead waits as bytes, not as requests:
so a connection holds no more than a few pieces of what was sent and the answers to them, however long it lasts.
"""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl

_AROUND = 16
"""Bytes that a body in chunks may have around each of its own; beside those, as many as a head."""


class Coming:
    """How much of the message that is coming has come.

    Attributes:
        since: When it began, seconds of the loop's clock.
        came: Bytes of it, with what came in one piece before it.
        body: Bytes of its body.
        in_head: Whether its head is not whole yet.
    """

    __slots__ = ("_bare", "_began", "_head", "body", "came", "in_head", "since")

    def __init__(self) -> None:
        self.since = 0.0
        self.in_head = False
        self._began = 0
        self.begin(0.0)

    def begin(self, now: float) -> None:
        """Another message begins."""
        self.since = now
        self.came = self.body = self._head = self._bare = 0
        self._began += 1

    def before(self) -> tuple[int, int]:
        """To be asked before a piece is parsed, for ``after``."""
        return self._began, self.body

    def after(self, size: int, most: int, between: bool, before: tuple[int, int]) -> tuple[int, bytes] | None:
        """The status and reason for turning the message away after a piece of ``size`` bytes; None to go on.

        Args:
            size: Bytes of the piece.
            most: Bytes of the largest head, and of what may come after a body.
            between: Whether the piece began with a message.
            before: What ``before`` said.
        """
        began = self._began - before[0]
        self.came += size
        if self.in_head:
            if began == between:  # else other messages end in the piece, and this one's part of it is not known
                self._head += size
            if self._head > most:
                return 431, b"the head of the request is larger than %d bytes" % most
            return None
        self._bare = 0 if began or self.body > before[1] else self._bare + size
        if self._bare > most or self.came - self.body > 2 * most + _AROUND * self.body:
            return 431, b"there are more than %d bytes around the body of the request" % most
        return None


class Flow(FlowControl):
    """Reading goes on only when the client reads too, and nothing it sent is left to be looked at.

    Attributes:
        behind: Whether something is.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self.behind = False

    def pause_reading(self) -> None:
        """Read no more for now."""
        if not self._transport.is_closing():  # it would raise
            super().pause_reading()

    def resume_reading(self) -> None:
        """Read on, if nothing stands against it."""
        if not (self.write_paused or self.behind or self._transport.is_closing()):
            super().resume_reading()


class Unread:
    """Whether a client has read anything lately of what waits for it."""

    __slots__ = ("_left", "_since")

    def __init__(self, now: float) -> None:
        self._left = 0
        self._since = now

    def moved(self, now: float) -> None:
        """It has read."""
        self._since = now

    def seconds(self, transport: Any, now: float) -> float:
        """For how long it has read nothing although something waits; 0.0 when nothing does."""
        left = transport.get_write_buffer_size()
        if left:
            left += _sending(transport)
        if not left or left < self._left:
            self._since = now
        self._left = left
        return now - self._since


def _sending(transport: Any) -> int:
    """Bytes in the kernel that the client's has not got yet; 0 where the kernel does not tell."""
    try:
        number = transport.get_extra_info("socket").fileno()
        return int(struct.unpack("i", fcntl.ioctl(number, termios.TIOCOUTQ, b"\0" * 4))[0])
    except (OSError, AttributeError):
        return 0
