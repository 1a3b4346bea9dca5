"""Models in processes of their own: a model that crashes, leaks or hangs takes nothing with it but itself.

Each version has its own process (``serve.isolated_fork``), started again when it dies, with growing pauses when it
dies before it has answered anything. A batch that was in a process when it died is given once to the next one, if
predicting may be repeated; lanes do that themselves, request by request (``serve.rerun``). One thread, the keeper,
watches all processes of this one: it hears of deaths at once, starts successors, and ends processes that hold more
memory than they may.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelkeep.core.errors import Lost, ModelkeepError, Unavailable
from modelkeep.formats.batch import Batch, Layout
from modelkeep.formats.signature import Signature
from modelkeep.serve import isolated_wire as wire
from modelkeep.serve.isolated_keeper import Keeper, Process
from modelkeep.serve.isolated_wire import Order

MEMORY = 4 << 30
"""Bytes a model's process may hold unless the endpoint says otherwise."""
LOADING = 300.0
PATIENCE = 20.0
LIMIT = 60.0


@dataclass(frozen=True, slots=True)
class Terms:
    """What an endpoint grants a version's processes.

    Attributes:
        memory: Bytes each may hold.
        repeatable: Whether a batch whose process died may be given to the next one.
        processes: How many there are: batches worked on at a time.
    """

    memory: int = MEMORY
    repeatable: bool = True
    processes: int = 1


DEFAULT = Terms()


def terms_of(settings: Mapping[str, Any]) -> Terms:
    """The terms in an endpoint's settings: those of its declaration, or its own where it has none."""
    deploy = (settings.get("declaration") or settings).get("deploy") or {}
    return Terms(
        memory=int(deploy.get("memory", MEMORY)),
        repeatable=bool(deploy.get("repeatable", True)),
        processes=int(deploy.get("concurrency", 1)),
    )


def trusted_by(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of types and functions, and digests of packages, that the endpoint's declaration or command trusts."""
    return tuple((settings.get("declaration") or settings).get("trust", ()))


class IsolatedModel:
    """A version that runs in its own process. Safe to call from several threads.

    Predicting waits: for the process to answer, and while it is started again. So it is called from threads that
    may wait, never from the event loop.

    Args:
        keeper: Watches the process.
        kind: The runtime, as the package's manifest names it.
        folder: The package, verified.
        signature: Of the package.
        trusted: Names and digests that may run on loading.
        terms: What its processes may take.
        limit: Seconds one batch may take; a process that takes longer is ended.
        label: What it is, for people.

    Raises:
        ModelkeepError: It cannot be loaded, as ``formats.runtimes.load`` says.
    """

    waits = True

    def __init__(
        self,
        keeper: Keeper,
        kind: str,
        folder: Path,
        signature: Signature,
        *,
        trusted: Sequence[str] = (),
        terms: Terms = DEFAULT,
        limit: float = LIMIT,
        label: str = "",
    ) -> None:
        self.signature = signature
        self.layout = Layout(signature)
        self.repeatable = terms.repeatable
        self.limit = limit
        order = Order(str(folder), tuple(trusted), terms.memory, label or folder.name[:12])
        self.pool = Pool(keeper, kind, order, terms.processes)
        self._close = weakref.finalize(self, self.pool.close)
        try:
            self.pool.start(LOADING)
        except BaseException:
            self.close()
            raise

    def predict(self, columns: Mapping[str, Any]) -> Mapping[str, Any]:
        """Arrays by input name (fastest as a ``Batch``) to arrays by output name.

        A batch whose process died is given to another one, once, if predicting may be repeated.

        Raises:
            Unavailable: Its process is being started again and is not there in time.
            Lost: Its process died of this batch, twice where repeating is safe; or took too long for it.
            ModelkeepError: The model failed.
        """
        batch = self.layout.pack(columns)
        try:
            return self.once(batch)
        except Lost as lost:
            if lost.late or not self.repeatable:
                raise
        try:
            return self.once(batch)
        except Lost as lost:
            raise lost.twice() from None

    def once(self, columns: Mapping[str, Any]) -> Mapping[str, Any]:
        """As ``predict``, but no process gets the batch once another one had it."""
        batch = self.layout.pack(columns)
        until = time.monotonic() + PATIENCE
        while True:
            process = self.pool.take(until - time.monotonic())
            try:
                return self._ask(process, batch)
            except _Gone as gone:
                if gone.begun:
                    process.over.wait(0.5)  # until the keeper has heard why
                    raise Lost(
                        f"the process of {self.pool.order.label} ended while it predicted: {process.why()}",
                        hint="see its log; if it ran out of memory, raise deploy.memory",
                    ) from None

    def _ask(self, process: Process, batch: Batch) -> dict[str, Any]:
        """One exchange. The process goes back to the pool unless it is lost."""
        begun = False
        try:
            ask = wire.put_batch(process.arena, batch)
            process.sock.settimeout(self.limit)
            process.working = True
            wire.send(process.sock, ask)
            begun = True
            said = wire.told(wire.receive(process.sock))
        except TimeoutError:
            self.pool.end(process, f"it took longer than {self.limit:g} s")
            raise Lost(
                f"{self.pool.order.label} took longer than {self.limit:g} s for {batch.rows} rows", late=True
            ) from None
        except (OSError, EOFError):
            self.pool.lost(process)
            raise _Gone(begun) from None
        except ModelkeepError:
            self.pool.give(process)
            raise
        try:
            if said.fault is not None:
                raise wire.error_of(said.fault)
            return wire.take_answer(process.arena, said.columns, said.form)
        finally:
            process.working = False
            process.answered += 1
            process.arena.trim()
            self.pool.give(process)

    def status(self) -> dict[str, Any]:
        """JSON types: ``processes`` (id, state, bytes), ``restarts``, ``memory_limit``, ``last_end``."""
        return self.pool.status()

    def close(self) -> None:
        """End the process."""
        self._close()


class _Gone(Exception):
    """The process is gone; ``begun`` says whether it had the batch."""

    def __init__(self, begun: bool) -> None:
        self.begun = begun


class Pool:
    """The processes of one version: those that are free, those at work, those on their way."""

    def __init__(self, keeper: Keeper, kind: str, order: Order, wanted: int) -> None:
        self.kind = kind
        self.order = order
        self.restarts = 0
        self._keeper = keeper
        self._wanted = wanted
        self._free: deque[Process] = deque()
        self._all: set[Process] = set()
        self._changed = threading.Condition()
        self._closed = False
        self._fault: ModelkeepError | None = None
        self._ready = False
        self._failures = 0
        self._last_end = ""

    # what the model calls

    def start(self, patience: float) -> None:
        """Start all processes and wait for the first. Raises what loading raised."""
        for _ in range(self._wanted):
            self._keeper.start(self)
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._fault is not None, patience)
            if self._ready:
                return
            if self._fault is not None:
                raise self._fault
        raise Unavailable(f"{self.order.label} was not loaded within {patience:g} s")

    def take(self, patience: float) -> Process:
        """A free process, for the caller alone. Raises ``Unavailable`` when there is none in time."""
        with self._changed:
            self._changed.wait_for(lambda: self._free or self._closed, max(patience, 0.0))
            if self._free and not self._closed:
                return self._free.popleft()
        why = f": {self._fault or self._last_end}" if self._fault or self._last_end else ""
        raise Unavailable(f"the process of {self.order.label} is being started{why}", hint="try again in a moment")

    def give(self, process: Process) -> None:
        """Take a process back."""
        with self._changed:
            if process in self._all:
                self._free.append(process)
                self._changed.notify()

    def end(self, process: Process, why: str) -> None:
        """End a process by force; the keeper starts another."""
        process.reason = why
        self.lost(process)
        process.kill()

    def lost(self, process: Process) -> None:
        """Do not hand out this process again; the keeper hears of its end by itself."""
        with self._changed:
            self._all.discard(process)
            with contextlib.suppress(ValueError):
                self._free.remove(process)

    def close(self) -> None:
        """End all processes."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._keeper.stop(self)

    # what the keeper calls

    @property
    def closed(self) -> bool:
        return self._closed

    def began(self, process: Process) -> None:
        """A process is on its way."""
        with self._changed:
            self._all.add(process)

    def ready(self, process: Process) -> None:
        """It is loaded and free."""
        with self._changed:
            self._ready = True
            self._fault = None
            self._free.append(process)
            self._changed.notify()

    def ended(self, process: Process, fault: ModelkeepError | None) -> float:
        """It is gone; seconds until another shall be started."""
        self.lost(process)
        with self._changed:
            self._last_end = process.why()
            at_fault = not process.answered and (process.working or not process.ready)
            self._failures = self._failures + 1 if at_fault else 0
            if fault is not None or not self._ready:
                self._fault = fault or ModelkeepError(f"{self.order.label} ended on loading: {process.why()}")
            self._changed.notify_all()
            self.restarts += 1
            return min(5.0, 0.1 * 2.0 ** (self._failures - 1)) if self._failures else 0.0

    def over(self) -> list[tuple[Process, int]]:
        """Processes that hold more than they may, with what they hold."""
        with self._changed:
            each = [(process, process.own_memory()) for process in self._all]
        return [(process, held) for process, held in each if held > self.order.memory]

    def status(self) -> dict[str, Any]:
        """JSON types."""
        with self._changed:
            free = set(self._free)
            every = sorted(self._all, key=lambda process: process.pid)
        return {
            "processes": [
                {
                    "pid": process.pid,
                    "state": "starting" if not process.pid else "free" if process in free else "busy",
                    "pss_bytes": process.share_of_memory(),
                }
                for process in every
            ],
            "restarts": self.restarts,
            "memory_limit": self.order.memory,
            "last_end": self._last_end,
        }
