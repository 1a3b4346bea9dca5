"""How a serving process ends: drained when it is told to for the first time, at once when it is told again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import TYPE_CHECKING

import uvicorn

from modelkeep.serve.dataplane import DataPlane
from modelkeep.serve.orders import CLOSING, END, LEAVE
from modelkeep.serve.supervised import Supervised

if TYPE_CHECKING:
    from modelkeep.serve.worker import Doors

log = logging.getLogger(__name__)

ANSWER = 1
"""Seconds beyond the drain in which what is refused then is told so."""
TELLING = 0.1
"""Seconds in which who is refused is told, by a process that leaves at once."""
WRITING = 1.0
"""Seconds after which such a process is gone though what it captured is not written."""
LEFT = 128 + signal.SIGTERM
"""Its exit code."""


def leaves(number: int, before: Collection[int]) -> bool:
    """Whether a signal means to leave at once, after others that came before.

    A terminal's Ctrl-C comes to every process of its group, and once more, by another signal, from the supervisor
    that it came to as well: so only the same signal again means more than the first.
    """
    return number == LEAVE or (number != END and number in before)


class Server(uvicorn.Server):
    """uvicorn raises the signal that ended it once more; this one returns, so that captured rows are written.

    Args:
        last: What a process that leaves at once still does: writes what it captured.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        plane: DataPlane,
        doors: Doors,
        drain: int,
        supervised: Supervised | None,
        last: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._plane = plane
        self._doors = doors
        self._drain = drain
        self._supervised = supervised
        self._last = last
        self._until = 0.0
        self._told: list[int] = []

    @property
    def left(self) -> float:
        """Seconds that what was begun may still take."""
        return max(self._until - time.monotonic(), 0.1)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept, or let a supervisor say on what."""
        await super().startup(sockets=sockets)
        if self._supervised is not None:
            self._supervised.begin(self)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain all doors at the same time."""
        if self._supervised is not None:
            self._supervised.end()
        self._until = time.monotonic() + self._drain + ANSWER
        _leave_within(self._drain + CLOSING, 0)
        refusing = asyncio.get_running_loop().call_later(self._drain, self._plane.end)
        await asyncio.gather(super().shutdown(sockets=sockets), self._doors.stop(self._drain + ANSWER))
        refusing.cancel()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Drain when told to end, leave when told again."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, END, LEAVE):
            loop.add_signal_handler(number, partial(self._tell, number))
        yield

    def _tell(self, number: int) -> None:
        if leaves(number, self._told):
            self._leave()
        self._told.append(number)
        self.should_exit = True

    def _leave(self) -> None:
        """Refuse what is under way, write what was captured, and be gone, whatever else is at work."""
        log.warning("told to leave at once: what is under way is refused")
        self._plane.end()
        _leave_within(WRITING, LEFT)
        threading.Thread(target=self._write, name="leave", daemon=True).start()

    def _write(self) -> None:
        time.sleep(TELLING)
        try:
            self._last()
        finally:
            os._exit(LEFT)


def _leave_within(seconds: float, code: int) -> None:
    """End this process by then: a thread that predicts cannot be ended, and Python would wait for it."""
    timer = threading.Timer(seconds, os._exit, (code,))
    timer.daemon = True
    timer.start()
