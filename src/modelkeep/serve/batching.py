"""One micro-batch per turn of the event loop.

Each complete request appends itself to its lane's queue; the first one schedules a flush for the end of the turn;
the flush stacks the rows, checks them once, runs the model once and answers every request. Thin traffic does not
wait unless the endpoint asks for it: a batch of one runs at once. A batch that will take long runs in a thread;
what arrives meanwhile is the next batch. Batches are no larger than what fits into the endpoint's budget.
"""

from __future__ import annotations

import asyncio
import logging
import math
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Any

import numpy as np

from modelkeep.core.clock import Clock
from modelkeep.core.errors import ModelkeepError, Overloaded, TooLate
from modelkeep.serve.cache import Cache
from modelkeep.serve.calls import Batch, Call, CallWithParams
from modelkeep.serve.capture import Channel
from modelkeep.serve.columns import Loaded
from modelkeep.serve.cost import Cost
from modelkeep.serve.hot import Unwritten
from modelkeep.serve.limits import Limits, redacted
from modelkeep.serve.metrics import Counters, Stages
from modelkeep.serve.queueing import Queue
from modelkeep.serve.rerun import settled, sifted
from modelkeep.serve.shadow import Shadow
from modelkeep.serve.turns import Turns

log = logging.getLogger(__name__)

SLOW = 0.005
USUAL = Limits()
OURS = ModelkeepError("the answer could not be written; this is our fault, see the log of the serving process")


class Lane:
    """The queue in front of one version in one role at one endpoint, and who answers it.

    Belongs to the event loop's thread. A lane that no route leads to any more ends with its last batch: nothing
    else refers to it, so its model is freed.

    Attributes:
        loaded: The model and what is known of it.
        channel: Where batches are captured; names endpoint, model, version and mode.
        limits: How the endpoint wants to be served.
        ignore_unknown: Whether inputs that the signature does not name are left out rather than refused.
        shadows: Who else sees each batch once it is answered.
        memo: Room for doors to keep what depends only on the version.
        cost: What batches take.
        surely: Whether there is room for so many rows in any case; cheap.
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
        limits: Limits = USUAL,
        turns: Turns | None = None,
    ) -> None:
        self.loaded = loaded
        self.inputs = loaded.inputs
        self._predict = loaded.once
        self.channel = channel
        self.counters = counters
        self.limits = limits
        self.ignore_unknown = limits.ignore_unknown
        self.memo: dict[str, Any] = {}
        self.shadows: tuple[Shadow, ...] = ()
        self.cost = Cost()
        self._cache = Cache(limits.cache_rows, limits.cache_bytes) if limits.cache_rows else None
        self._loop = loop
        self._clock = clock
        self._executor = executor
        self._turns = turns or Turns()
        self._queue: Queue[Call] = Queue(channel.endpoint, limits, self.cost, self._turns)
        self.surely = self._queue.surely
        self._running = 0
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._away: set[Call] = set()  # in threads
        self._over: ModelkeepError | None = None

    @property
    def full(self) -> Overloaded | None:
        """Why a call of one row would be refused now; None when there is room."""
        return None if self._queue.surely(1) else self._queue.full(perf_counter())

    def unread(self) -> float | None:
        """Seconds after which a call of the usual size, refused before it is read, may try again; None to read it.

        Counts the refusal.
        """
        queue = self._queue
        if queue.ranked or queue.surely(1):
            return None
        excess = queue.unread(perf_counter(), max(1, int(queue.usual)))
        if excess is not None:
            self.counters.shed += 1
        return excess

    def overloaded(self, excess: float) -> Overloaded:
        """What such a call is told."""
        return self._queue.overloaded(excess)

    @property
    def waiting(self) -> int:
        """Calls that wait."""
        return len(self._queue.calls)

    @property
    def idle(self) -> bool:
        """Whether nothing waits or is under way."""
        return self.channel.idle

    @property
    def pressure(self) -> float:
        """Expected waiting time of a further call of one row, as a share of the budget."""
        return self._queue.expected(perf_counter(), 1) / self.limits.budget if self._queue.calls else 0.0

    def submit(self, call: Call) -> None:
        """Queue a call; it is answered or refused through its door.

        Raises:
            Overloaded: It could not be answered within the endpoint's budget.
            TooLate: Its deadline has passed.
        """
        try:
            replaced = self._queue.put(call)
        except Overloaded:
            self.counters.shed += 1
            raise
        except TooLate:
            self.counters.late += 1
            raise
        self.channel.begun += 1
        self.inputs.pack(call.rows)
        for gone in replaced:
            self._refuse(gone, self._queue.overloaded())
        if not self._scheduled:
            self._schedule()
        elif self._timer is not None and self._queue.rows >= self.limits.max_rows:
            self._timer.cancel()
            self._timer = None
            self._loop.call_soon(self._flush)
        if call.deadline is not None and (self._running or self._timer is not None):
            self._loop.call_later(call.deadline - call.began, self._give_up)

    def submit_with_params(self, call: CallWithParams) -> None:
        """Queue a call with params: the model is given it alone, or with calls of equal params. As ``submit``."""
        self._queue.varied = True
        self.submit(call)

    def _schedule(self, *, wait: bool = True) -> None:
        if self._scheduled or self._running >= self.limits.concurrency or not self._queue.calls:
            return
        self._scheduled = True
        if wait and self.limits.wait and self._queue.rows < self.limits.max_rows:
            self._timer = self._loop.call_later(self.limits.wait, self._flush)
        else:
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled, self._timer = False, None
        now = perf_counter()
        self._give_up(now)
        for call in self._queue.outwaited(now):
            self._refuse(call, self._queue.overloaded())
        limits, queue = self.limits, self._queue
        calls, rows = queue.take(min(limits.max_rows, self.cost.rows_within(limits.budget / 4)))
        if not calls:
            return
        queue.in_loop = self.cost.estimate(rows) < SLOW and not self.loaded.waits
        if queue.in_loop:
            done = self._work(calls)
            if isinstance(done, Batch):
                self._answer(calls, done)
            else:
                self._failed(calls, done)
        else:
            queue.free_at = now + (0.0 if self.cost.fixed == math.inf else self.cost.estimate(rows))
            self._in_thread(calls)
        self._schedule(wait=not queue.varied)  # who was left for his params has waited

    def _failed(self, calls: list[Call], error: ModelkeepError) -> None:
        """A batch on the loop failed: refuse those that failed a check, run the others again."""
        guilty, calls, done = sifted(calls, error, self._work)
        for part, found in guilty:
            self._land(part, found)
        if isinstance(done, Batch) or len(calls) == 1:
            self._land(calls, done)
        elif calls:  # to find out who is guilty may take longer than the loop can wait
            self._in_thread(calls, done)

    def end(self, why: ModelkeepError) -> None:
        """Refuse all that waits or is under way, and what still comes unless it can be answered at once."""
        self._over = why
        refused = [*self._away]
        while self._queue.calls:  # those of other params are taken apart
            refused += self._queue.take(self._queue.rows)[0]
        self._away.clear()
        for call in refused:
            self._refuse(call, why)

    def _in_thread(self, calls: list[Call], done: ModelkeepError | None = None) -> None:
        """Run a batch, or what is to run again of one that failed, in one thread."""
        if self._over is not None:
            self._land(calls, self._over)
            return
        self._away.update(calls)
        self._running += 1
        if not self.loaded.here:
            self._queue.patient = True
            for call in calls:
                call.expected = math.inf
        self._executor.submit(self._through, calls, done)

    def _through(self, calls: list[Call], failed: ModelkeepError | None) -> None:
        """In a thread: the loop hears of each call as soon as it can be answered, and at last that all is done."""
        tell = self._loop.call_soon_threadsafe
        done = failed or self._work(calls)
        if isinstance(done, Batch):
            tell(self._landed, calls, done)
            return
        for part, found in settled(calls, done, self._work, repeatable=self.loaded.repeatable):
            tell(self._back, part, found)
        tell(self._landed, [], None)

    def _landed(self, calls: list[Call], done: Batch | None) -> None:
        self._running -= 1
        self._queue.free_at = 0.0
        self._queue.patient = False
        if self._queue.calls and not (self._queue.in_loop or self._scheduled or self.limits.wait):
            self._flush()  # the next batch runs while this one is answered
        else:
            self._schedule(wait=not self._queue.varied)
        if done is not None:
            self._back(calls, done)

    def _back(self, calls: list[Call], done: Batch | ModelkeepError) -> None:
        """What became of calls in a thread; those that were refused meanwhile have been told already."""
        if self._over is None:
            self._away.difference_update(calls)
            self._land(calls, done)

    def _give_up(self, now: float | None = None) -> None:
        for call in self._queue.give_up(perf_counter() if now is None else now):
            self._refuse(call, self._queue.late())

    def _work(self, calls: list[Call]) -> Batch | ModelkeepError:
        """Run the model on what the calls hold. Thread-safe; an error speaks of the batch as a whole."""
        stacking = perf_counter()
        here = self.loaded.here
        try:
            inputs = self.inputs.stack([call.rows for call in calls])
            inputs.params = calls[0].params
            began = perf_counter()
            computed = inputs.rows
            if self._cache is None:
                outputs = self._predict(inputs)
            else:
                counts = [call.rows.count for call in calls]
                outputs, hits, computed = self._cache.predict(inputs, counts, self._predict)
                self.counters.hits += hits
            ended = perf_counter()
            if computed and here:  # loading is no part of what a batch costs
                self.cost.observe(computed, ended - began)
        except ModelkeepError as error:
            return error
        except Exception as error:
            log.exception("version %s of %s failed", self.channel.version, self.channel.model)
            return ModelkeepError(f"the model failed: {type(error).__name__}")
        return Batch(self, inputs, outputs, (stacking, began, ended))

    def _land(self, calls: list[Call], done: Batch | ModelkeepError) -> None:
        """Answer the calls, or refuse them all."""
        if isinstance(done, Batch):
            self._answer(calls, done)
            return
        for call in calls:
            self._refuse(call, done)

    def _refuse(self, call: Call, error: ModelkeepError) -> None:
        if isinstance(error, Overloaded):
            self.counters.shed += 1
        elif isinstance(error, TooLate):
            self.counters.late += 1
        else:
            self.counters.errors += 1
            self.channel.errors += 1
        self.channel.ended += 1
        try:
            call.door.refuse(call, redacted(error) if self.limits.redact else error)
        except Exception as fault:
            self._unwritten(call, fault)

    def _unwritten(self, call: Call, fault: Exception) -> None:
        """A door raised on a call: that is the end of this one, and no other's matter."""
        log.error(
            "an answer of version %s of %s could not be written",
            self.channel.version,
            self.channel.model,
            exc_info=fault,
        )
        if not isinstance(fault, Unwritten):
            try:
                call.door.refuse(call, OURS)
            except Exception:
                log.exception("nor could it be refused")

    def _answer(self, calls: list[Call], batch: Batch) -> None:
        answering = perf_counter()
        start = 0
        failed: set[Call] = set()
        for call in calls:
            call.start = start
            start += call.rows.count
            try:
                call.door.answer(call, batch)
            except Exception as fault:
                failed.add(call)
                self._unwritten(call, fault)
        now = perf_counter()
        self._queue.answered(calls[0], now)
        self._turns.worked(batch.times[0] if self._queue.in_loop else answering, now)
        latency = np.array([(now - call.began) * 1e3 for call in calls], dtype=np.float32)
        stacking, began, ended = batch.times
        if self._queue.in_loop:
            self._queue.spent(now - ended, len(calls))
        spent = Stages(began - stacking, ended - began, now - ended)
        if failed:
            self.counters.errors += len(failed)
            self.channel.errors += len(failed)
            answered = [call not in failed for call in calls]
            rows = sum(call.rows.count for call in calls if call not in failed)
            self.counters.observe(latency[answered], rows, spent)
        else:
            self.counters.observe(latency, start, spent)
        keys = [call.key for call in calls]
        ids = [call.id for call in calls]
        counts = [call.rows.count for call in calls]
        self.channel.offer(
            batch.inputs,
            batch.outputs,
            time=self._clock.now(),
            ids=ids,
            counts=counts,
            keys=keys if any(keys) else None,
            latency=latency,
        )
        self.channel.ended += len(calls)
        for shadow in self.shadows:
            shadow.offer(batch.inputs, ids, counts, keys)
