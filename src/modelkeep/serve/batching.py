"""One micro-batch per turn of the event loop.

Each complete request appends itself to its lane; the first one schedules a flush for the end of the turn; the
flush stacks the rows, checks them once, runs the model once and answers every request. Thin traffic never waits:
a batch of one runs at once. A lane whose model is slow runs in a thread; what arrives meanwhile is the next batch.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Any, Protocol

import numpy as np

from modelkeep.core.clock import Clock
from modelkeep.core.errors import Invalid, ModelkeepError, Overloaded, Problem, TooLate
from modelkeep.formats.batch import Batch as Blocks
from modelkeep.serve.capture import Channel
from modelkeep.serve.columns import Array, Loaded, Rows, by_row
from modelkeep.serve.metrics import Counters

log = logging.getLogger(__name__)

MAX_ROWS = 16_384
MAX_WAITING = 4_096
SLOW = 0.005
NORMAL = 5
"""The priority of calls that name none."""


class Door(Protocol):
    """How a protocol answers a call. Must not raise for a client that is gone."""

    def answer(self, call: Call, batch: Batch) -> None:
        """Write the call's rows of ``batch``, which are ``call.start`` to ``call.start + call.rows.count``."""
        ...

    def refuse(self, call: Call, error: ModelkeepError) -> None:
        """Write the error."""
        ...


class Call:
    """One request on its way through a lane.

    Args:
        deadline: ``time.perf_counter`` after which the answer is of no use; None for never.
        priority: 1 is the most urgent, larger numbers less so; 0 stands for ``NORMAL``, as in Triton's protocol.
    """

    __slots__ = ("began", "deadline", "door", "id", "key", "priority", "rows", "sink", "start")

    def __init__(
        self,
        rows: Rows,
        id: str,
        door: Door,
        sink: Any,
        key: str | None = None,
        deadline: float | None = None,
        priority: int = 0,
    ) -> None:
        self.rows = rows
        self.id = id
        self.key = key
        self.door = door
        self.sink = sink
        self.deadline = deadline
        self.priority = priority or NORMAL
        self.began = perf_counter()
        self.start = 0


class Batch:
    """Rows answered together.

    Attributes:
        lane: Who answered.
        inputs: What was given, checked.
        outputs: Arrays by output name, first axis rows.
        rendered: Room for doors to keep what they make once per batch.
    """

    __slots__ = ("inputs", "lane", "outputs", "rendered")

    def __init__(self, lane: Lane, inputs: Blocks, outputs: dict[str, Array]) -> None:
        self.lane = lane
        self.inputs = inputs
        self.outputs = outputs
        self.rendered: dict[str, Any] = {}


class Lane:
    """The queue in front of one version in one role at one endpoint.

    Belongs to the event loop's thread. A lane that no route leads to any more ends with its last batch: nothing
    else refers to it, so its model is freed.

    Attributes:
        loaded: The model and what is known of it.
        channel: Where batches are captured; names endpoint, model, version and mode.
        ignore_unknown: Whether inputs that the signature does not name are left out rather than refused.
        shadows: Who else sees each batch once it is answered.
        memo: Room for doors to keep what depends only on the version.
        seconds_per_row: What the model took lately.
    """

    def __init__(
        self,
        loaded: Loaded,
        channel: Channel,
        counters: Counters,
        *,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        executor: ThreadPoolExecutor,
        ignore_unknown: bool = False,
    ) -> None:
        self.loaded = loaded
        self.inputs = loaded.inputs
        self.channel = channel
        self.counters = counters
        self.ignore_unknown = ignore_unknown
        self.memo: dict[str, Any] = {}
        self.shadows: tuple[Shadow, ...] = ()
        self.seconds_per_row = 0.0
        self._loop = loop
        self._clock = clock
        self._executor = executor
        self._waiting: list[Call] = []
        self._running = False
        self._scheduled = False

    @property
    def full(self) -> Overloaded | None:
        """Why no further call is taken now; None when there is room."""
        if len(self._waiting) < MAX_WAITING:
            return None
        return Overloaded(f"{len(self._waiting)} requests wait for {self.channel.endpoint!r}")

    def submit(self, call: Call) -> None:
        """Queue a call; it is answered or refused through its door.

        Raises:
            Overloaded: Too many calls wait already.
            TooLate: Its deadline has passed.
        """
        waiting = self._waiting
        full = self.full
        if full is not None:
            raise full
        if call.deadline is not None and call.began >= call.deadline:
            raise TooLate(f"the deadline passed before {self.channel.endpoint!r} could begin")
        self.channel.begun += 1
        waiting.append(call)
        if not self._scheduled and not self._running:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        calls, rows = self._next()
        if rows * self.seconds_per_row < SLOW:
            self._land(calls, self._work(calls))
        else:
            self._running = True
            future = self._executor.submit(self._work, calls)
            future.add_done_callback(
                lambda done: self._loop.call_soon_threadsafe(self._landed, calls, done.result())
            )
        if self._waiting and not self._running:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def _next(self) -> tuple[list[Call], int]:
        """The calls of the next batch and their rows: everything that waits, up to a bounded number of rows."""
        calls = self._waiting
        rows = 0
        for place, call in enumerate(calls):
            count = call.rows.count
            if rows + count > MAX_ROWS and place:
                self._waiting = calls[place:]
                return calls[:place], rows
            rows += count
        self._waiting = []
        return calls, rows

    def _landed(self, calls: list[Call], done: Batch | ModelkeepError) -> None:
        self._running = False
        if self._waiting and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)
        self._land(calls, done)

    def _work(self, calls: list[Call]) -> Batch | ModelkeepError:
        """Run the model on what the calls hold. Thread-safe; an error speaks of the batch as a whole."""
        try:
            inputs = self.inputs.stack([call.rows for call in calls])
            began = perf_counter()
            outputs = dict(self.loaded.model.predict(inputs))
            per_row = (perf_counter() - began) / inputs.rows
            # the smallest of a slowly forgotten past: one hiccup must not send a fast model to a thread
            self.seconds_per_row = min(per_row, self.seconds_per_row * 1.1 or per_row)
        except ModelkeepError as error:
            return error
        except Exception as error:
            log.exception("version %s of %s failed", self.channel.version, self.channel.model)
            return ModelkeepError(f"the model failed: {type(error).__name__}")
        return Batch(self, inputs, outputs)

    def _land(self, calls: list[Call], done: Batch | ModelkeepError) -> None:
        """Answer the calls; when the batch failed, refuse only the guilty and run the others again."""
        if isinstance(done, Batch):
            self._answer(calls, done)
            return
        if len(calls) == 1:
            self._refuse(calls[0], done)
            return
        faults = by_row(done.problems) if isinstance(done, Invalid) else {}
        innocent = [] if faults else calls
        start = 0
        for call in calls if faults else ():
            end = start + call.rows.count
            mine = [(row - start, p) for row, found in faults.items() if start <= row < end for p in found]
            if mine:
                self._refuse(call, Invalid([Problem(f"inputs.{p.path}[{row}]", p.message) for row, p in mine]))
            else:
                innocent.append(call)
            start = end
        if faults and innocent:
            self._land(innocent, self._work(innocent))
        else:
            for call in innocent:
                self._land([call], self._work([call]))

    def _refuse(self, call: Call, error: ModelkeepError) -> None:
        self.counters.errors += 1
        self.channel.errors += 1
        self.channel.ended += 1
        call.door.refuse(call, error)

    def _answer(self, calls: list[Call], batch: Batch) -> None:
        start = 0
        for call in calls:
            call.start = start
            start += call.rows.count
            call.door.answer(call, batch)
        now = perf_counter()
        latency = ((now - np.array([call.began for call in calls])) * 1e3).astype(np.float32)
        self.counters.observe(latency, start)
        keys = [call.key for call in calls]
        self.channel.offer(
            batch.inputs,
            batch.outputs,
            time=self._clock.now(),
            ids=[call.id for call in calls],
            counts=[call.rows.count for call in calls],
            keys=keys if any(keys) else None,
            latency=latency,
        )
        self.channel.ended += len(calls)
        for shadow in self.shadows:
            shadow.offer(batch.inputs, calls)


class Shadow:
    """A version that sees what a lane answered and answers nothing.

    Runs in its own thread after the answers are written; holds a bounded number of batches and drops the rest, so
    it can never slow or fail the version that answers.

    Args:
        share: Of the batches it sees, in [0, 1].
    """

    LIMIT = 64

    def __init__(
        self,
        loaded: Loaded,
        channel: Channel,
        counters: Counters,
        *,
        share: float,
        executor: ThreadPoolExecutor,
        clock: Clock,
    ) -> None:
        self.loaded = loaded
        self.share = share
        self.channel = channel
        self.counters = counters
        self._executor = executor
        self._clock = clock
        self._waiting: deque[Callable[[], None]] = deque()

    def offer(self, inputs: Blocks, calls: Sequence[Call]) -> None:
        """Copy a batch to the shadow, or count it as dropped when the shadow is behind."""
        if self.share < 1.0 and random.random() >= self.share:
            return
        channel = self.channel
        if len(self._waiting) >= self.LIMIT:
            channel.dropped += inputs.rows
            return
        ids = [call.id for call in calls]
        counts = [call.rows.count for call in calls]
        keys = [call.key for call in calls]
        self._waiting.append(lambda: self._run(inputs, ids, counts, keys))
        channel.begun += 1
        try:
            self._executor.submit(self._next)
        except RuntimeError:  # the process is ending
            channel.dropped += inputs.rows

    def _next(self) -> None:
        try:
            self._waiting.popleft()()
        finally:
            self.channel.ended += 1

    def _run(self, inputs: Blocks, ids: list[str], counts: list[int], keys: list[str | None]) -> None:
        began = perf_counter()
        try:
            mine = self.loaded.inputs.again(inputs)
            outputs = dict(self.loaded.model.predict(mine))
        except Exception as error:
            log.debug("shadow version %s failed: %s", self.channel.version, error)
            self.channel.errors += len(ids)
            self.counters.errors += len(ids)
            return
        latency = np.full(len(ids), (perf_counter() - began) * 1e3, dtype=np.float32)
        self.counters.observe(latency, mine.rows)
        self.channel.offer(
            mine,
            outputs,
            time=self._clock.now(),
            ids=ids,
            counts=counts,
            keys=keys if any(keys) else None,
            latency=latency,
        )
