"""How local SGD would scale: a model of one round, its parts measured, checked against what was measured.

A round of ``n`` workers, each learning ``r`` rows from the common table of ``b`` bytes, takes

    r / speed  +  (n > 1) * merge  +  ceil(log2 n) * 2 * (latency + b / bandwidth)

``speed`` (rows a second of one worker) and ``merge`` (adding up, averaging, unpacking on the driver) are measured
here; the tree is what the sums go up and the table comes down by, and costs nothing among threads of one machine.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from benchmarks.training.clicks import BITS
from modelkeep.train.linear.losses import Objective
from modelkeep.train.linear.table import Moves, Steps, Table, averaged

LATENCY, BANDWIDTH = 0.5e-3, 10e9 / 8
"""Of an ordinary network: half a millisecond a message, 10 Gbit/s."""
NODES = (10, 100, 1000)


@dataclass(frozen=True)
class Round:
    """The model. ``rows`` of each worker a round, ``speed`` in rows a second, ``merge`` in seconds."""

    rows: float
    speed: float
    merge: float

    def seconds(self, workers: int, *, network: bool) -> float:
        """Of a round."""
        table = ((1 << BITS) + 1) * 2 * 8
        hops = math.ceil(math.log2(workers)) if network and workers > 1 else 0
        merged = self.merge if workers > 1 else 0.0
        return self.rows / self.speed + merged + hops * 2 * (LATENCY + table / BANDWIDTH)

    def gain(self, workers: int, *, network: bool) -> float:
        """Rows a second over those of one worker."""
        return workers * self.seconds(1, network=network) / self.seconds(workers, network=network)


def merge_seconds() -> float:
    """What the driver does at the end of a round of two workers: best of five."""
    objective, steps = Objective("logistic", 0.0, 1e-6), Steps()
    fresh, tried = Table.fresh(1 << BITS, 1), []
    start = np.ascontiguousarray(fresh.packed), fresh.clock
    for _ in range(5):
        begin = time.perf_counter()
        ends = [Table.unpacked(*start, adaptive=True) for _ in range(2)]
        one, two = (Moves.between(start, end, objective, steps, 1, 1.0) for end in ends)
        averaged(start, one.plus(two), objective)
        tried.append(time.perf_counter() - begin)
    return min(tried)
