"""How local SGD would scale: a model of one round, its parts measured, checked against what was measured.

A round of ``n`` workers, each learning ``r`` rows from the common table of ``b`` bytes, takes

    r / speed  +  merge  +  adds * add
    +  tasks * task  +  sent * m / bandwidth  +  ceil(log2 n) * (latency + b / bandwidth)

The first line is computing: ``speed`` (rows a second of one worker), ``merge`` (what a round of two workers
takes beside learning) and ``add`` (unpacking and adding the moves of one more worker) are measured here. The
second is the network, and nothing among threads of one machine; the table comes down from worker to worker.

Up to eight workers, each sends its ``m`` bytes of moves to the driver, one after the other through its one
connection: ``n - 2`` adds, ``n`` tasks, ``n`` sent. More are merged by eights at the workers, level by level, and
one comes home: in each of ``ceil(log8 n)`` levels a group's results are sent one after the other in the same way,
and a group is a task as a part is.
"""

from __future__ import annotations

import math
import pickle
import time
from dataclasses import dataclass

import numpy as np

from benchmarks.training.clicks import BITS
from modelkeep.engines.merging import WIDTH
from modelkeep.train.linear.losses import Objective
from modelkeep.train.linear.table import Moves, Steps, Table, averaged

LATENCY, BANDWIDTH = 0.5e-3, 10e9 / 8
"""Of an ordinary network: half a millisecond a message, 10 Gbit/s."""
TASK = 1e-3
"""Seconds of the driver for a part to be handed out and answered: about what Ray takes."""
TABLE, MOVES = ((1 << BITS) + 1) * 2 * 8, ((1 << BITS) + 1) * 3 * 8
"""Bytes of what goes out and of what each worker sends home, which has ``touched`` beside it."""
NODES, ROWS = (10, 100, 1000), (10**6, 10**7)
"""What is projected: so many nodes, and rows of each a round."""


@dataclass(frozen=True)
class Round:
    """The model. ``rows`` of each worker a round, ``speed`` in rows a second, ``merge`` and ``add`` in seconds."""

    rows: float
    speed: float
    merge: float
    add: float

    def seconds(self, workers: int, *, network: bool) -> float:
        """Of a round."""
        if workers == 1:
            return self.rows / self.speed
        adds, tasks, sent = workers - 2, workers, workers
        if workers > WIDTH:
            adds = sent = 0
            groups = workers
            while groups > 1:
                each, groups = min(groups, WIDTH), math.ceil(groups / WIDTH)
                adds, tasks, sent = adds + each, tasks + groups, sent + each
            sent += 1
        computing = self.rows / self.speed + self.merge + adds * self.add
        if not network:
            return computing
        hops = math.ceil(math.log2(workers))
        return computing + tasks * TASK + sent * MOVES / BANDWIDTH + hops * (LATENCY + TABLE / BANDWIDTH)

    def gain(self, workers: int, *, network: bool) -> float:
        """Rows a second over those of one worker."""
        return workers * self.seconds(1, network=network) / self.seconds(workers, network=network)


def merge_seconds() -> tuple[float, float]:
    """What a round of two workers takes beside learning, and what adding one more takes: each the best of five."""
    objective, steps = Objective("logistic", 0.0, 1e-6), Steps()
    fresh, tried, added = Table.fresh(1 << BITS, 1), [], []
    start = np.ascontiguousarray(fresh.packed), fresh.clock
    for _ in range(5):
        begin = time.perf_counter()
        ends = [Table.unpacked(*start, adaptive=True) for _ in range(2)]
        one, two = (Moves.between(start, end, objective, steps, 1, 1.0) for end in ends)
        both = one.plus(two)
        averaged(start, both, objective)
        tried.append(time.perf_counter() - begin)
        sent = pickle.dumps(two, protocol=5)
        begin = time.perf_counter()
        both.plus(pickle.loads(sent))
        added.append(time.perf_counter() - begin)
    return min(tried), min(added)
