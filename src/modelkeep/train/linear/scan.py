"""``batch_size: auto``: what each batch size reaches in the same time, on the first rows.

Small batches learn more per row, large ones do more rows a second; how the two trade depends on the features, the
loss and the machine (Bottou, Curtis, Nocedal, SIAM Review 2018, section 4). So it is measured: each size learns
for the same time, then is judged on rows it did not learn from. To choose by cross-validation instead, put
``batch_size`` into ``train.tune.space``.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from modelkeep.train.linear.blocks import Block, Part
from modelkeep.train.linear.losses import Objective, Sums, of_rows
from modelkeep.train.linear.settings import SIZES
from modelkeep.train.linear.table import Steps, Table, learn
from modelkeep.train.log import RunLog

BLOCKS = 4
SECONDS = 0.25
"""Time for each size."""
CLOSE = 0.005
"""Losses nearer than this share are called equal, and the larger batch is taken."""


@dataclass(frozen=True, slots=True)
class Size:
    """One batch size.

    Attributes:
        batch: Rows per step.
        rows_per_second: How fast.
        loss: On rows not learnt from, after the same time for all sizes.
    """

    batch: int
    rows_per_second: float
    loss: float


def sizes(
    parts: Sequence[Part], features: int, objective: Objective, steps: Steps, seed: int, seconds: float = SECONDS
) -> tuple[Size, ...]:
    """Try each of ``SIZES`` on the first blocks of the first part that has rows."""
    blocks: list[Block] = []
    for part in parts:
        blocks = [block for block in itertools.islice(part(), BLOCKS) if len(block[1])]
        if blocks:
            break
    known = [(x[: len(y) * 4 // 5], y[: len(y) * 4 // 5]) for x, y in blocks]
    judged = [(x[len(y) * 4 // 5 :], y[len(y) * 4 // 5 :]) for x, y in blocks]
    rows = sum(len(y) for _, y in known)
    return tuple(
        _try(known, judged, features, objective, replace(steps, batch=size), seed, seconds)
        for size in SIZES
        if size == 1 or size * 4 <= rows
    )


def _try(
    known: list[Block],
    judged: list[Block],
    features: int,
    objective: Objective,
    steps: Steps,
    seed: int,
    seconds: float,
) -> Size:
    x, y = known[0]
    learn(Table.fresh(features, objective.outputs), objective, steps, [(x[:1], y[:1])], None)  # compiles
    table, rng = Table.fresh(features, objective.outputs), np.random.default_rng(seed)
    rows, begun = 0, time.perf_counter()
    for block in itertools.cycle(known):
        rows += learn(table, objective, steps, [block], rng)[0]
        spent = time.perf_counter() - begun
        if spent >= seconds:
            break
    table.settle(objective, steps)
    total = Sums(0, 0.0)
    for x, y in judged:
        total = total.plus(of_rows(objective, table.weights, x, np.asarray(y), slope=False))
    return Size(steps.batch, rows / spent, total.loss / max(1, total.rows))


def choose(found: Sequence[Size]) -> int:
    """The batch size that reached the least loss; the largest of those that are as good."""
    least = min(size.loss for size in found)
    return max(size.batch for size in found if size.loss <= least + CLOSE * abs(least))


def tell(log: RunLog, found: Sequence[Size], chosen: int) -> None:
    """Keep the trade-off with the run: two metrics whose steps are the batch sizes, and a table as a parameter."""
    for size in found:
        log.metric("batch_size_loss", size.loss, size.batch)
        log.metric("batch_size_rows_per_second", size.rows_per_second, size.batch)
    log.params({"batch_size_chosen": chosen, "batch_size_scan": shown(found)})


def shown(found: Sequence[Size]) -> str:
    """The trade-off in a line: what each batch size did in the same time."""
    return "; ".join(f"{one.batch}: {one.rows_per_second:,.0f} rows/s, loss {one.loss:.5g}" for one in found)
