"""The thread that watches the processes of isolated models, and the programs that fork them."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec

from modelkeep.core.errors import ModelkeepError
from modelkeep.serve import isolated_wire as wire
from modelkeep.serve.isolated_wire import Arena, Note, Order

log = logging.getLogger(__name__)

WATCH = 1.0
"""Seconds between looks at the memory of processes."""
_HUNG_UP = select.POLLHUP | select.POLLERR | select.POLLNVAL


class Process:
    """One process of a model.

    Attributes:
        sock: To it.
        arena: Memory shared with it.
        pid: Once it has said so, else 0.
        ready: Whether it has loaded the model.
        working: Whether it has a batch.
        answered: Batches.
        reason: Why this side ended it, if it did.
        code: Its exit code, minus the signal that ended it, once known.
        over: Set once it has ended and all that can be known of why is.
    """

    def __init__(self, pool: Owner, sock: socket.socket) -> None:
        self.pool = pool
        self.sock = sock
        self.arena = Arena()
        self.pid = 0
        self.ready = False
        self.working = False
        self.answered = 0
        self.reason = ""
        self.code: int | None = None
        self.over = threading.Event()

    def discard(self) -> None:
        """Hang up. The files close with the last who holds this: a thread may be waiting for an answer."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def kill(self) -> None:
        """End it by force, once it has said who it is: a signal to process 0 would be one to all of this group."""
        if self.pid:
            with contextlib.suppress(OSError):
                os.kill(self.pid, signal.SIGKILL)

    def __del__(self) -> None:
        self.sock.close()
        self.arena.close()

    def why(self) -> str:
        """Why it ended, as far as is known."""
        if self.reason:
            return self.reason
        if self.code is None:
            return "it is gone"
        return f"signal {signal.Signals(-self.code).name}" if self.code < 0 else f"exit code {self.code}"

    def own_memory(self) -> int:
        """Bytes resident that are not shared with files; 0 when it is gone."""
        try:
            _, resident, shared, *_ = Path(f"/proc/{self.pid}/statm").read_text().split()
        except (OSError, ValueError):
            return 0
        return (int(resident) - int(shared)) * os.sysconf("SC_PAGESIZE")

    def share_of_memory(self) -> int:
        """Bytes resident, those shared with other processes divided by their number (Linux's PSS); 0 if gone."""
        try:
            text = Path(f"/proc/{self.pid}/smaps_rollup").read_text()
            return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) * 1024
        except (OSError, StopIteration, ValueError):
            return 0


class Owner(Protocol):
    """What the keeper tells of a model's processes; ``serve.isolated.Pool``."""

    kind: str
    order: Order

    @property
    def closed(self) -> bool: ...

    def began(self, process: Process) -> None: ...

    def ready(self, process: Process) -> None: ...

    def ended(self, process: Process, fault: ModelkeepError | None) -> float: ...

    def end(self, process: Process, why: str) -> None: ...

    def over(self) -> list[tuple[Process, int]]: ...

    def close(self) -> None: ...


class Forker:
    """The program that forks processes of one kind, and its deputy, which takes over when it dies.

    Args:
        sock: To a deputy that takes over; none: the program is started.
    """

    def __init__(self, kind: str, sock: socket.socket | None = None) -> None:
        self.kind = kind
        self.process: subprocess.Popen[bytes] | None = None
        self.sock = sock or self._start(kind)
        self.deputy, theirs = socket.socketpair()
        with theirs:
            self._send(b"", [theirs.fileno()])

    def _start(self, kind: str) -> socket.socket:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "modelkeep.serve.isolated_fork", kind, str(theirs.fileno())]
        # one thread each: rows come in batches, and the other cores belong to other models
        env = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **os.environ}
        # what lies in a package is verified; compiled files beside it would not be
        env["PYTHONDONTWRITEBYTECODE"] = "1"
        with theirs:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, env=env, pass_fds=(theirs.fileno(),)
            )
        return ours

    def order(self, order: Order, sock: socket.socket, arena: Arena) -> None:
        """Ask for a process. Raises ``OSError`` when the program is gone."""
        self._send(msgspec.msgpack.encode(order), [sock.fileno(), arena.fd])

    def _send(self, data: bytes, fds: list[int]) -> None:
        socket.send_fds(self.sock, [len(data).to_bytes(4, "little")], fds)
        self.sock.sendall(data)

    def succeeded(self) -> Forker | None:
        """The deputy in its place; None when that is gone too. Afterwards this one may be closed."""
        try:
            return Forker(self.kind, self.deputy.dup())
        except OSError:
            return None

    def close(self) -> None:
        """Let it end, and all it has forked."""
        self.sock.close()
        self.deputy.close()
        if self.process is None:
            return
        try:
            self.process.wait(2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Keeper:
    """Starts and watches the processes of all isolated models of this process, in one thread of its own."""

    def __init__(self) -> None:
        self._forkers: dict[str, Forker] = {}
        self._processes: dict[int, Process] = {}
        self._fresh: set[int] = set()
        self._talking: dict[int, Forker] = {}
        self._by_pid: dict[int, Process] = {}
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._asked: deque[Callable[[], None]] = deque()
        self._poll = select.poll()
        self._bell, self._ear = socket.socketpair()
        self._bell.setblocking(False)
        self._poll.register(self._ear, select.POLLIN)
        self._stopping = False
        self._guard = threading.Lock()
        self._thread: threading.Thread | None = None

    # from any thread

    def start(self, pool: Owner) -> None:
        """Start one process."""
        with self._guard:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="keep-models", daemon=True)
                self._thread.start()
        self._ask(lambda: self._start(pool))

    def stop(self, pool: Owner) -> None:
        """End the processes of a model that is closed. Never waits: it may be called by the garbage collector."""
        self._ask(lambda: self._stop(pool))

    def close(self) -> None:
        """End everything and wait for it."""
        self._stopping = True
        self._ask(lambda: None)
        if self._thread is not None:
            self._thread.join()

    def _ask(self, what: Callable[[], None]) -> None:
        self._asked.append(what)
        with contextlib.suppress(OSError):  # full: it will wake anyway; closed: nothing is left to do
            self._bell.send(b"!")

    # in the keeper's thread

    def _run(self) -> None:
        watched = time.monotonic()
        while not self._stopping:
            for fd, event in self._poll.poll(self._pause() * 1000):
                self._happened(fd, event)
            while self._asked:
                self._asked.popleft()()
            now = time.monotonic()
            while self._due and self._due[0][0] <= now:
                heapq.heappop(self._due)[2]()
            if now - watched >= WATCH:
                watched = now
                self._look_at_memory()
        for process in list(self._processes.values()):
            process.kill()
            self._drop(process)
            process.pool.close()  # who waits for another process of it need not
        for forker in self._forkers.values():
            forker.close()
        self._bell.close()
        self._ear.close()

    def _pause(self) -> float:
        due = self._due[0][0] - time.monotonic() if self._due else WATCH
        return max(0.0, min(due, WATCH if self._processes else 60.0))

    def _happened(self, fd: int, event: int) -> None:
        if fd == self._ear.fileno():
            self._ear.recv(4096)
        elif (forker := self._talking.get(fd)) is not None:
            self._hear(forker)
        elif (process := self._processes.get(fd)) is not None:
            if fd in self._fresh:
                self._first_word(process)
            elif event & _HUNG_UP:
                self._ended(process)

    def _start(self, pool: Owner) -> None:
        if pool.closed:
            return
        ours, theirs = socket.socketpair()
        process = Process(pool, ours)
        with theirs:
            for _ in range(3):
                forker = self._forkers.get(pool.kind) or self._fork(pool.kind)
                try:
                    forker.order(pool.order, theirs, process.arena)
                    break
                except OSError:  # killed; its deputy is asked, then a new one
                    self._forget(forker)
        self._processes[ours.fileno()] = process
        self._fresh.add(ours.fileno())
        self._poll.register(ours, select.POLLIN)
        pool.began(process)

    def _fork(self, kind: str) -> Forker:
        return self._follow(Forker(kind))

    def _follow(self, forker: Forker) -> Forker:
        self._forkers[forker.kind] = forker
        self._talking[forker.sock.fileno()] = forker
        self._poll.register(forker.sock, select.POLLIN)
        return forker

    def _forget(self, forker: Forker) -> None:
        fd = forker.sock.fileno()
        if self._talking.pop(fd, None) is None:
            return
        self._poll.unregister(fd)
        del self._forkers[forker.kind]
        successor = forker.succeeded()
        if successor is not None:
            self._follow(successor)
        forker.close()

    def _hear(self, forker: Forker) -> None:
        """A process has ended, or the program that forks itself."""
        try:
            note = msgspec.msgpack.decode(wire.receive(forker.sock), type=Note)
        except (OSError, EOFError, msgspec.MsgspecError):
            self._forget(forker)
            return
        process = self._by_pid.pop(note.pid, None)
        if process is not None:
            process.code = note.code

    def _first_word(self, process: Process) -> None:
        """It is ready, cannot be, or died before it could say."""
        try:
            said = wire.told(wire.receive(process.sock))
        except (OSError, EOFError, msgspec.MsgspecError):
            self._ended(process)
            return
        process.pid = said.pid
        self._by_pid[said.pid] = process
        if said.fault is not None:
            process.reason = said.fault.message
            self._ended(process, wire.error_of(said.fault))
            return
        self._fresh.discard(process.sock.fileno())
        process.ready = True
        self._poll.modify(process.sock, 0)  # only its end is of interest; answers go to who asked
        process.pool.ready(process)

    def _ended(self, process: Process, fault: ModelkeepError | None = None) -> None:
        pool = process.pool
        forker = self._forkers.get(pool.kind)
        if forker is not None and process.pid and not process.reason:  # its exit code is on its way
            ready, _, _ = select.select([forker.sock], [], [], 0.02)
            if ready:
                self._hear(forker)
        self._drop(process)
        pause = pool.ended(process, fault)
        process.over.set()
        if pool.closed:
            return
        log.warning(
            "the process of %s ended (%s); the next one starts in %.1f s", pool.order.label, process.why(), pause
        )
        heapq.heappush(self._due, (time.monotonic() + pause, next(self._order), lambda: self._start(pool)))

    def _drop(self, process: Process) -> None:
        fd = process.sock.fileno()
        self._processes.pop(fd, None)
        self._fresh.discard(fd)
        self._by_pid.pop(process.pid, None)
        with contextlib.suppress(KeyError):
            self._poll.unregister(fd)
        process.discard()

    def _stop(self, pool: Owner) -> None:
        for process in [each for each in self._processes.values() if each.pool is pool]:
            self._drop(process)  # its socket closes, so it ends by itself

    def _look_at_memory(self) -> None:
        for pool in {process.pool for process in self._processes.values()}:
            for process, held in pool.over():
                log.warning("%s holds %d MB, more than it may", pool.order.label, held >> 20)
                pool.end(process, f"it held {held >> 20} MB, the limit is {pool.order.memory >> 20} MB")
