"""Counts of what was served: plain integers on the request path, sums only when somebody asks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from threading import Lock
from time import time
from typing import NamedTuple

import numpy as np
from msgspec import Struct

from modelkeep.serve.capture import Channel
from modelkeep.serve.columns import Array

BOUNDS_MS = np.array([0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000])
_FOLD = 256
_EXACT = 64


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


class Runs(Struct, frozen=True, gc=False):
    """Runs of the model on batches of one size.

    Attributes:
        count: How many.
        input, infer, output: Seconds, as in ``Stages``, summed up over the runs.
    """

    count: int
    input: float
    infer: float
    output: float

    def plus(self, other: Runs) -> Runs:
        """Both together."""
        return Runs(
            self.count + other.count,
            self.input + other.input,
            self.infer + other.infer,
            self.output + other.output,
        )


_NONE = Runs(0, 0.0, 0.0, 0.0)


class Totals(Struct, frozen=True, gc=False):
    """What was counted of one version in one role at one endpoint, since counting began.

    Attributes:
        requests: Answered.
        rows: Predicted in them.
        errors: Requests refused or failed, but for those counted in ``shed`` and ``late``.
        hits: Requests answered from the cache.
        shed: Refused for want of room.
        late: Refused for their deadline.
        dropped: Rows not captured.
        pending: Requests waiting or under way.
        batches: Runs of the model.
        buckets: Requests up to each of ``BOUNDS_MS``, and all.
        seconds: Sum over requests, from the whole request to the answer.
        queue, input, infer, output: Its parts, likewise; a batch's time counts for each of its requests.
        last: When the last batch was answered, in seconds since 1970 UTC; 0 for never.
        sizes: Runs by rows of the batch; beyond 64 rows by the next power of two, so that there are few.
    """

    endpoint: str
    model: str
    version: int
    mode: str
    requests: int
    rows: int
    errors: int
    hits: int
    shed: int
    late: int
    dropped: int
    pending: int
    batches: int
    buckets: list[int]
    seconds: float
    queue: float
    input: float
    infer: float
    output: float
    last: float
    sizes: dict[int, Runs] = {}

    @property
    def failures(self) -> int:
        """Requests refused or failed, for whatever reason."""
        return self.errors + self.shed + self.late

    def plus(self, other: Totals) -> Totals:
        """Both together, under the names of this one."""
        return Totals(
            self.endpoint,
            self.model,
            self.version,
            self.mode,
            self.requests + other.requests,
            self.rows + other.rows,
            self.errors + other.errors,
            self.hits + other.hits,
            self.shed + other.shed,
            self.late + other.late,
            self.dropped + other.dropped,
            self.pending + other.pending,
            self.batches + other.batches,
            [a + b for a, b in zip(self.buckets, other.buckets, strict=True)],
            self.seconds + other.seconds,
            self.queue + other.queue,
            self.input + other.input,
            self.infer + other.infer,
            self.output + other.output,
            max(self.last, other.last),
            {
                size: self.sizes.get(size, _NONE).plus(other.sizes.get(size, _NONE))
                for size in sorted({*self.sizes, *other.sizes})
            },
        )


def together(parts: Iterable[Totals]) -> list[Totals]:
    """One of each series, from however many processes."""
    found: dict[tuple[str, str, int, str], Totals] = {}
    for part in parts:
        key = (part.endpoint, part.model, part.version, part.mode)
        found[key] = found[key].plus(part) if key in found else part
    return list(found.values())


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
        "_sizes",
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
        self._recent: deque[tuple[Array, int, Stages]] = deque()
        self._sizes: dict[int, Runs] = {}
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
        self._recent.append((latency, rows, stages))
        if len(self._recent) >= _FOLD:
            self._fold()

    def _fold(self) -> None:
        with self._folding:  # a shadow's thread and the loop may both get here
            taken = [self._recent.popleft() for _ in range(len(self._recent))]
            if taken:
                latency = np.concatenate([one for one, _, _ in taken])
                sizes = np.array([len(one) for one, _, _ in taken])
                self._buckets += np.bincount(BOUNDS_MS.searchsorted(latency), minlength=len(self._buckets))
                self._sums[0] += latency.sum(dtype=np.float64) / 1e3
                spent = np.array([stages for _, _, stages in taken])
                self._sums[1:] += sizes @ spent
                self._sort([_bounded(rows) for _, rows, _ in taken], spent)

    def _sort(self, sizes: list[int], spent: Array) -> None:
        """Count runs by the size of their batch."""
        different, places, counts = np.unique(sizes, return_inverse=True, return_counts=True)
        sums = np.zeros((len(different), spent.shape[1]))
        np.add.at(sums, places, spent)
        found = dict(self._sizes)
        for size, count, seconds in zip(different.tolist(), counts.tolist(), sums.tolist(), strict=True):
            found[size] = found.get(size, _NONE).plus(Runs(count, *seconds))
        self._sizes = found

    @property
    def sizes(self) -> dict[int, Runs]:
        """Runs by the size of their batch, as of the last ``sums``."""
        return self._sizes

    def sums(self) -> tuple[list[int], float, float, float, float, int, float]:
        """Cumulative buckets; seconds in all, of input, model, output; batches; time of the last one."""
        self._fold()
        seconds, given, infer, output = self._sums.tolist()
        return np.cumsum(self._buckets).tolist(), seconds, given, infer, output, self._batches, self._last


def _bounded(rows: int) -> int:
    return rows if rows <= _EXACT else 1 << (rows - 1).bit_length()


@dataclass(frozen=True, slots=True)
class Series:
    """What one version in one role at one endpoint is counted with."""

    channel: Channel
    counters: Counters

    def totals(self) -> Totals:
        """Everything so far."""
        channel, counters = self.channel, self.counters
        buckets, seconds, given, infer, output, batches, last = counters.sums()
        return Totals(
            endpoint=channel.endpoint,
            model=channel.model,
            version=channel.version,
            mode=channel.mode,
            requests=counters.requests,
            rows=counters.rows,
            errors=counters.errors,
            hits=counters.hits,
            shed=counters.shed,
            late=counters.late,
            dropped=channel.dropped + channel.lost,
            pending=max(0, channel.begun - channel.ended),
            batches=batches,
            buckets=buckets,
            seconds=seconds,
            queue=max(0.0, seconds - given - infer - output),
            input=given,
            infer=infer,
            output=output,
            last=last,
            sizes=counters.sizes,
        )
