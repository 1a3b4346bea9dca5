"""How parts flow through workers: a few ahead, results in order, the lost again, the slow twice.

An engine offers ``Workers``; everything that must be the same on all of them is here.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sized
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, Protocol, TypeVar

from modelkeep.core.errors import Unavailable
from modelkeep.core.ports import Progress, Silent
from modelkeep.engines.tasks import Answer, Packet, opened

T = TypeVar("T")
R = TypeVar("R")

ATTEMPTS = 3
"""How often a part is begun before its worker's death is blamed on it."""
AHEAD = 2
"""Parts handed out per worker before a result is taken, so that a stream of parts is never held whole and no
worker waits for its next."""
SLOW = 3.0
"""A part that takes so many medians is begun a second time elsewhere, once workers are idle."""
PATIENCE = 1.0
"""Seconds that any part may take without being called slow."""


def killed() -> Unavailable:
    """A part is to blame for what its workers died of."""
    return Unavailable(
        f"a worker died {ATTEMPTS} times on the same part",
        hint="it may be out of memory: use more and smaller parts, or fewer workers",
    )


class Lost(Exception):
    """The worker ended without an answer: killed, out of memory, or its machine is gone."""


class Running(NamedTuple):
    """A part at a worker.

    Attributes:
        future: Its answer; raises ``Lost``.
        cancel: Makes the worker stop, or forget it if it has not begun.
    """

    future: Future[Answer]
    cancel: Callable[[], object]


class Workers(Protocol):
    """What an engine does for the flow.

    Attributes:
        ahead: Parts handed out per slot before a result is taken.
    """

    ahead: int

    def slots(self) -> int:
        """How many parts are worked on at once."""
        ...

    def pack(self, fn: Callable[[Any], Any], part: Any) -> Packet:
        """Make a part ready to be sent. Raises ``Invalid``."""
        ...

    def submit(self, packet: Packet) -> Running:
        """Hand a part to any worker."""
        ...


@dataclass(eq=False)
class _Task:
    packet: Packet
    attempts: int = 0
    copies: list[Running] = field(default_factory=list)
    copied: bool = False
    submitted: float = 0.0
    answer: Answer | None = None

    @property
    def finished(self) -> bool:
        return self.answer is not None


def stream(
    workers: Workers,
    fn: Callable[[T], R],
    parts: Iterable[T],
    progress: Progress | None = None,
    name: str = "parts",
    *,
    submit: Callable[[Packet], Running] | None = None,
    opens: Callable[[Answer], Any] = opened,
) -> Generator[R, None, None]:
    """Apply ``fn`` to every part; results in order. Closing the iterator cancels what is under way.

    Args:
        submit: Hands a part out, when not as ``workers`` usually does.
        opens: Makes a result of an answer.

    Raises:
        Invalid: The function or a part cannot be sent.
        Unavailable: A part lost its worker ``ATTEMPTS`` times.
        Exception: Whatever ``fn`` raised, with the worker's traceback as its cause.
    """
    total = len(parts) if isinstance(parts, Sized) else None
    flow = _Flow(workers, submit or workers.submit, progress or Silent(), name, total)
    source = iter(parts)
    try:
        while True:
            for part in itertools.islice(source, flow.room()):
                flow.add(workers.pack(fn, part))
            if not flow.line:
                return
            if (answer := flow.line[0].answer) is None:
                flow.step()
                continue
            flow.line.popleft()
            yield opens(answer)
    finally:
        flow.cancel()


class _Flow:
    """The parts under way, in order. What happens costs the same however many there are."""

    def __init__(
        self,
        workers: Workers,
        submit: Callable[[Packet], Running],
        progress: Progress,
        name: str,
        total: int | None,
    ) -> None:
        self.workers, self.submit, self.progress, self.name, self.total = workers, submit, progress, name, total
        self.line: deque[_Task] = deque()
        self.open: dict[_Task, None] = {}
        self.lost: dict[_Task, None] = {}
        self.ended: SimpleQueue[tuple[_Task, Future[Answer]]] = SimpleQueue()
        self.seconds: deque[float] = deque(maxlen=101)
        self.done = 0
        self.idle_since = time.monotonic()

    def room(self) -> int:
        """How many parts may be added: none while it is found out who kills workers."""
        return 0 if self.lost else max(0, self.workers.slots() * self.workers.ahead - len(self.line))

    def add(self, packet: Packet) -> None:
        """Hand one more part out."""
        task = _Task(packet)
        self.line.append(task)
        self.open[task] = None
        self._submit(task)

    def step(self) -> None:
        """Wait until something has changed, and act on it."""
        self._repeat_lost()
        if len(self.open) > self.workers.slots():
            # As long as no more are open than there are workers, none of them waits for its turn.
            self.idle_since = time.monotonic()
        try:
            self._settle(*self.ended.get(timeout=PATIENCE / 4))
            while True:
                self._settle(*self.ended.get_nowait())
        except Empty:
            self._copy_slow()

    def cancel(self) -> None:
        """Nobody wants the rest."""
        for task in self.open:
            for copy in task.copies:
                copy.cancel()

    def _submit(self, task: _Task) -> None:
        task.submitted = time.monotonic()
        running = self.submit(task.packet)
        task.copies.append(running)
        running.future.add_done_callback(lambda future: self.ended.put((task, future)))

    def _settle(self, task: _Task, future: Future[Answer]) -> None:
        task.copies = [copy for copy in task.copies if copy.future is not future]
        if task.finished:
            return
        try:
            task.answer = future.result()
        except Lost:
            if not task.copies:
                task.attempts += 1
                self.lost[task] = None
            return
        for copy in task.copies:
            copy.cancel()
        del self.open[task]
        self.seconds.append(task.answer.seconds)
        self.done += 1
        self.progress.step(self.name, self.done, self.total)

    def _repeat_lost(self) -> None:
        """After one death all go again together; after that only the first, alone, to find the culprit."""
        first = self.line[0]
        if first.attempts >= ATTEMPTS and first in self.lost:
            raise killed()
        for task in list(self.lost):
            alone = task is first and len(self.lost) == len(self.open)
            if task.attempts == 1 or alone:
                del self.lost[task]
                self._submit(task)

    def _copy_slow(self) -> None:
        """Begin a part again that takes far longer than others, if a worker has nothing to do."""
        idle = self.workers.slots() - sum(len(task.copies) for task in self.open)
        if not self.seconds or idle <= 0 or self.lost:
            return
        limit = max(PATIENCE, SLOW * statistics.median(self.seconds))
        now = time.monotonic()
        for task in itertools.islice(self.open, idle):
            # once only, and not what has killed a worker: its copy would kill another
            if not (task.copied or task.attempts) and now - max(task.submitted, self.idle_since) > limit:
                task.copied = True
                self._submit(task)
