"""A version that sees what another answers, and answers nothing."""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

import numpy as np

from modelkeep.core.clock import Clock
from modelkeep.formats.batch import Batch as Blocks
from modelkeep.serve.capture import Channel
from modelkeep.serve.columns import Loaded
from modelkeep.serve.metrics import Counters, Stages
from modelkeep.serve.residency import NoRoom

log = logging.getLogger(__name__)


class Shadow:
    """A version that sees what a lane answered and answers nothing.

    Runs in its own thread after the answers are written; holds a bounded number of batches and drops the rest, so
    it can never slow or fail the version that answers. Where models share memory, it is loaded only while there is
    room beside those that answer, and drops what comes meanwhile.

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

    def offer(self, inputs: Blocks, ids: list[str], counts: list[int], keys: list[str | None]) -> None:
        """Copy a batch to the shadow, or count it as dropped when the shadow is behind."""
        if self.share < 1.0 and random.random() >= self.share:
            return
        channel = self.channel
        if len(self._waiting) >= self.LIMIT:
            channel.dropped += inputs.rows
            return
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
            ready = perf_counter()
            outputs = dict(self.loaded.watch(mine))
        except NoRoom as error:
            log.debug("shadow version %s is not loaded: %s", self.channel.version, error)
            self.channel.dropped += inputs.rows
            return
        except Exception as error:
            log.debug("shadow version %s failed: %s", self.channel.version, error)
            self.channel.errors += len(ids)
            self.counters.errors += len(ids)
            return
        ended = perf_counter()
        latency = np.full(len(ids), (ended - began) * 1e3, dtype=np.float32)
        self.counters.observe(latency, mine.rows, Stages(ready - began, ended - ready, 0.0))
        self.channel.offer(
            mine,
            outputs,
            time=self._clock.now(),
            ids=ids,
            counts=counts,
            keys=keys if any(keys) else None,
            latency=latency,
        )
