"""As many serving processes as the load asks for, on one port.

The fleet owns the listening sockets: a group that shares the port (SO_REUSEPORT; the kernel spreads connections
over it by a hash), each of which one process accepts on. When processes come, go or die, others get their sockets;
the sockets stay open all the while, so no connection that was made is lost. Without any process the fleet itself
watches them, and the first connection starts one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from modelkeep.app import children
from modelkeep.core.errors import Invalid, Unavailable
from modelkeep.serve.orders import CLOSING, DRAIN, END, GRPC, LEAVE, Order, Standing

log = logging.getLogger(__name__)

BACKLOG = 2048
TICK = 0.05
_DRAIN = "MODELKEEP_DRAIN"
LOOK = 1.0
SPREAD = 12
"""Sockets of a small fleet: as many for each of its processes, whether they are 2, 3 or 4."""
BUSY = 0.75
EASED = 0.5
PRESSED_FOR = 1.0
SETTLE = 2.0
MARGIN = 2.0
"""Seconds beyond their own limit after which processes that were told to end are ended by force."""
LEAVING = 3.0
"""Seconds after which those are that were told to leave at once."""
PATIENCE = 30.0
"""Seconds that connections wait for the first process to load; then it accepts without, and says so itself."""


def drain() -> int:
    """Seconds that serving processes have, once told to end, for what is under way: ``MODELKEEP_DRAIN``, else 10.

    Raises:
        Invalid: The setting is no whole number of seconds.
    """
    text = os.environ.get(_DRAIN, str(DRAIN))
    if not text.isascii() or not text.isdigit() or not 0 < int(text) <= 3600:
        raise Invalid(f"is {text!r}; expected whole seconds from 1 to 3600", path=_DRAIN)
    return int(text)


class Bounds(NamedTuple):
    """How many processes there may be, and seconds of little to do before one of them ends."""

    min: int = 1
    max: int = 1
    quiet: float = 60.0


class _Member:
    """One process."""

    def __init__(self, module: str, arguments: Sequence[str]) -> None:
        self.leash, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.leash.setblocking(False)
        with theirs:
            self.process = children.start(
                module, [*arguments, "--leash", str(theirs.fileno())], pass_fds=(theirs.fileno(),)
            )
        self.began = time.monotonic()
        self.slots: set[int] = set()
        self.standing = Standing(ready=False, busy=0.0, pressed=False, requests=0)
        self.retiring = 0.0

    @property
    def ready(self) -> bool:
        """Whether it has loaded what is wanted, and is to stay."""
        return self.standing.ready and not self.retiring

    @property
    def overdue(self) -> bool:
        """Whether it should have loaded by now, and is to stay."""
        return time.monotonic() - self.began > PATIENCE and not self.retiring

    def hear(self) -> None:
        """Take in what it told."""
        with contextlib.suppress(OSError):
            while message := self.leash.recv(65_536):
                self.standing = msgspec.json.decode(message, type=Standing)

    def order(self, order: Order, sockets: Sequence[socket.socket] = ()) -> None:
        """Tell it what to do; a process that is gone is seen soon."""
        with contextlib.suppress(OSError):
            socket.send_fds(self.leash, [msgspec.json.encode(order)], [one.fileno() for one in sockets])


class Fleet:
    """The processes and the thread that keeps them.

    Args:
        module: What each of them runs; gets ``--leash`` with the descriptor of its socket to here.
        arguments: The rest of its command line.
        host, port: Where they answer over HTTP; the port must be free.
        grpc_port: Where over gRPC; None for nowhere.
        drain: Seconds that each has, once told to end, for what is under way.
        bounds: Asked about once a second. An error leaves them as they were.

    Raises:
        Unavailable: A port is taken.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        *,
        host: str,
        port: int,
        grpc_port: int | None = None,
        drain: int = DRAIN,
        bounds: Callable[[], Bounds] = Bounds,
    ) -> None:
        self._what = (module, [*arguments, "--drain", str(drain)])
        self._ending = drain + CLOSING + MARGIN
        self._address = (host, port)
        self._ask = bounds
        self.bounds = Bounds()
        self._sockets = {0: _listening(host, port)}
        if grpc_port is not None:
            self._sockets[GRPC] = _listening(host, grpc_port)
        self.members: list[_Member] = []
        self.starts = 0
        self._pause, self._not_before = 0.2, 0.0
        self._looked = self._changed = self._calm_since = self._asked_since = 0.0
        self._pressed_since = 0.0
        self._requests = -1
        self._stopping = threading.Event()
        self._look(time.monotonic())
        for _ in range(self.bounds.min):
            self._start()
        self._thread = threading.Thread(target=self._run, name="fleet", daemon=True)
        self._thread.start()

    def stop(self, *, at_once: bool = False) -> None:
        """Ask all to drain and end, which they do in time; what does not is ended by force.

        Args:
            at_once: Let them leave without draining; so does a Ctrl-C meanwhile, which is then raised.
        """
        self._stopping.set()
        try:
            self._thread.join()
            self._end(LEAVE if at_once else END, LEAVING if at_once else self._ending)
        except KeyboardInterrupt:
            self._end(LEAVE, LEAVING)
            raise

    def _end(self, how: signal.Signals, limit: float) -> None:
        for member in self.members:
            _signal(member, how)
        end = time.monotonic() + limit
        for member in self.members:
            try:
                member.process.wait(max(end - time.monotonic(), 0.01))
            except subprocess.TimeoutExpired:
                member.process.kill()
                member.process.wait()
            member.leash.close()
        for one in self._sockets.values():
            one.close()

    def _run(self) -> None:
        while not self._stopping.wait(TICK):
            try:
                self._tick(time.monotonic())
            except Exception:  # of descriptors or memory there may be none for a while
                log.exception("the serving processes could not be looked after; they go on as they are")

    def _tick(self, now: float) -> None:
        self._bury(now)
        for member in self.members:
            member.hear()
        self._look(now)
        self._resize(now)
        self._assign()
        if not self.members and now >= self._not_before and self._called():
            self._start()

    def _called(self) -> bool:
        """Whether somebody waits to be accepted."""
        waiting = select.poll()  # select() knows no descriptors from 1024 up
        for one in self._sockets.values():
            waiting.register(one, select.POLLIN)
        return bool(waiting.poll(0))

    def _bury(self, now: float) -> None:
        """Forget those that ended. One that nobody asked to is started again, with growing pauses."""
        for member in [one for one in self.members if one.process.poll() is not None]:
            self.members.remove(member)
            member.leash.close()
            if not member.retiring:
                self._pause = 0.2 if now - member.began > 30 else min(self._pause * 2, 10.0)
                self._not_before = now + self._pause
        for member in self.members:
            if member.retiring and now > member.retiring:
                member.process.kill()

    def _look(self, now: float) -> None:
        if now - self._looked < LOOK:
            return
        self._looked = now
        with contextlib.suppress(Exception):  # the database is away: as before
            self.bounds = self._ask()
        most = self.bounds.max
        wanted = 1 if most == 1 else SPREAD if most <= 4 else most
        for number in range(len(self._sockets) - (GRPC in self._sockets), wanted):
            self._sockets[number] = _listening(*self._address)

    def _start(self) -> None:
        self.members.append(_Member(*self._what))
        self.starts += 1
        self._changed = time.monotonic()
        self._pressed_since = self._calm_since = 0.0

    def _resize(self, now: float) -> None:
        active = [member for member in self.members if not member.retiring]
        if len(active) < self.bounds.min:
            if now >= self._not_before:
                self._start()
            return
        starting = any(not member.ready and not member.overdue for member in active)
        if not active or starting or now - self._changed < SETTLE:
            return
        if len(active) > self.bounds.max:
            self._retire(active[-1], now)
            return
        busy = sum(member.standing.busy for member in active)
        pressed = busy > BUSY * len(active) or any(member.standing.pressed for member in active)
        requests = sum(member.standing.requests for member in self.members)
        idle, self._requests = requests == self._requests, requests
        calm = not pressed and (idle if len(active) == 1 else busy < EASED * (len(active) - 1))
        self._pressed_since = (self._pressed_since or now) if pressed else 0.0
        self._calm_since = (self._calm_since or now) if calm else 0.0
        if pressed and len(active) < self.bounds.max and now - self._pressed_since >= PRESSED_FOR:
            self._start()
        elif calm and len(active) > self.bounds.min and now - self._calm_since >= self.bounds.quiet:
            self._retire(active[-1], now)

    def _retire(self, member: _Member, now: float) -> None:
        """Let its sockets pass to the others, then let it end."""
        member.retiring = now + self._ending
        self._changed = now
        self._calm_since = 0.0
        self._assign()
        _signal(member, END)

    def _assign(self) -> None:
        """Give each socket to one process that is ready; what it loses is taken away only when another has it."""
        takers = [member for member in self.members if member.ready]
        takers = takers or [member for member in self.members if member.overdue]
        if not takers:
            return
        numbers = [number for number in self._sockets if number != GRPC]
        wanted = {id(member): {n for n in numbers if takers[n % len(takers)] is member} for member in takers}
        for member in takers:
            take = sorted(wanted[id(member)] - member.slots)
            if GRPC in self._sockets and GRPC not in member.slots:
                take.append(GRPC)
            if take:
                member.order(Order(take=take), [self._sockets[number] for number in take])
                member.slots |= set(take)
        for member in self.members:
            if member.retiring:  # gives up all of them when it ends
                continue
            drop = sorted(member.slots - wanted.get(id(member), set()) - {GRPC})
            if drop:
                member.order(Order(drop=drop))
                member.slots -= set(drop)


def _signal(member: _Member, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        member.process.send_signal(number)


def _listening(host: str, port: int) -> socket.socket:
    """One of a group of sockets on the same address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        made.bind((host, port))
        made.listen(BACKLOG)
    except OSError as error:
        made.close()
        raise Unavailable(
            f"cannot listen on {host}:{port}: {error.strerror}", hint="choose another port"
        ) from error
    return made
