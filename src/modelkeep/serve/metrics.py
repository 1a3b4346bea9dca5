"""Counts of what was served: plain integers on the request path, sums only when somebody asks."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from threading import Lock
from time import time
from typing import NamedTuple

import numpy as np

from modelkeep.serve.capture import Channel
from modelkeep.serve.columns import Array

BOUNDS_MS = np.array([0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000])
_FOLD = 256


class Stages(NamedTuple):
    """Where the time of a batch went, in seconds.

    Attributes:
        input: Stacking and checking the rows.
        infer: In the model.
        output: From there until the last answer was written.
    """

    input: float
    infer: float
    output: float


class Totals(NamedTuple):
    """What was counted since the process began.

    Attributes:
        buckets: Requests up to each of ``BOUNDS_MS``, and all.
        seconds: Sum over requests, from the whole request to the answer.
        queue, input, infer, output: Its parts, likewise; a batch's time counts for each of its requests.
        batches: Runs of the model.
        last: When the last batch was answered, in seconds since 1970 UTC; 0 for never.
    """

    buckets: list[int]
    seconds: float
    queue: float
    input: float
    infer: float
    output: float
    batches: int
    last: float


class Counters:
    """Requests, rows, errors and latencies of one version in one role at one endpoint.

    Besides: ``hits`` were answered from the cache, ``shed`` refused for want of room, ``late`` for their deadline.
    """

    __slots__ = (
        "_batches",
        "_buckets",
        "_folding",
        "_last",
        "_recent",
        "_sums",
        "errors",
        "hits",
        "late",
        "requests",
        "rows",
        "shed",
    )

    def __init__(self) -> None:
        self.requests = self.rows = self.errors = 0
        self.hits = self.shed = self.late = 0
        self._folding = Lock()
        self._recent: deque[tuple[Array, Stages]] = deque()
        self._buckets = np.zeros(len(BOUNDS_MS) + 1, dtype=np.int64)
        self._sums = np.zeros(4)  # all, input, infer, output: seconds
        self._batches = 0
        self._last = 0.0

    def observe(self, latency: Array, rows: int, stages: Stages) -> None:
        """Count an answered batch; summed up later.

        Args:
            latency: Of each request in milliseconds, float32.
        """
        self.requests += len(latency)
        self.rows += rows
        self._batches += 1
        self._last = time()
        self._recent.append((latency, stages))
        if len(self._recent) >= _FOLD:
            self._fold()

    def _fold(self) -> None:
        with self._folding:  # a shadow's thread and the loop may both get here
            taken = [self._recent.popleft() for _ in range(len(self._recent))]
            if taken:
                latency = np.concatenate([one for one, _ in taken])
                sizes = np.array([len(one) for one, _ in taken])
                self._buckets += np.bincount(BOUNDS_MS.searchsorted(latency), minlength=len(self._buckets))
                self._sums[0] += latency.sum(dtype=np.float64) / 1e3
                self._sums[1:] += sizes @ np.array([stages for _, stages in taken])

    def totals(self) -> Totals:
        """Everything so far."""
        self._fold()
        seconds, given, infer, output = self._sums.tolist()
        queue = max(0.0, seconds - given - infer - output)
        buckets = np.cumsum(self._buckets).tolist()
        return Totals(buckets, seconds, queue, given, infer, output, self._batches, self._last)


@dataclass(frozen=True, slots=True)
class Series:
    """What one version in one role at one endpoint is counted with."""

    channel: Channel
    counters: Counters
