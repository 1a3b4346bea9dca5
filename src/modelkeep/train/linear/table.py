"""The model while it learns by stochastic steps, and how the tables of several workers become one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import gcd
from typing import Any

import numpy as np
import numpy.typing as npt

from modelkeep.core.errors import Invalid
from modelkeep.train.linear.blocks import Block
from modelkeep.train.linear.losses import Array, Objective

STARTED = 1e-8
"""What a sum of squared gradients begins with, so that no step divides by zero."""


@dataclass(frozen=True, slots=True)
class Steps:
    """How far a step goes.

    Attributes:
        kind: ``adagrad``: ``rate / sqrt(sum of squared gradients)`` for each weight by itself (Duchi et al. 2011);
            ``constant``: ``rate``; ``inverse_scaling``: ``rate / sqrt(1 + steps)`` (Bottou, COMPSTAT 2010).
        rate: The learning rate.
        batch: Rows per step.
    """

    kind: str = "adagrad"
    rate: float = 0.1
    batch: int = 1

    @property
    def adaptive(self) -> bool:
        """Whether each weight has a step size of its own."""
        return self.kind == "adagrad"

    @property
    def power(self) -> float:
        """Of the number of steps that the rate is divided by."""
        return 0.5 if self.kind == "inverse_scaling" else 0.0


@dataclass(slots=True)
class Table:
    """What ``kernels`` works on.

    Attributes:
        cells: (features + 1, 2 * outputs): weights, then sums of squared gradients (or counts of steps).
        seen: (features + 1,): sum of rates when the penalty was last applied to a feature.
        clock: (2,): sum of rates, number of steps.
    """

    cells: Array
    seen: Array
    clock: Array = field(default_factory=lambda: np.zeros(2))

    @classmethod
    def fresh(cls, features: int, outputs: int) -> Table:
        """All weights zero."""
        cells = np.zeros((features + 1, 2 * outputs))
        cells[:, outputs:] = STARTED
        return cls(cells, np.zeros(features + 1))

    @property
    def weights(self) -> Array:
        """(features + 1, outputs), a view."""
        return self.cells[:, : self.cells.shape[1] // 2]

    def copy(self) -> Table:
        """Another table of the same content."""
        return Table(self.cells.copy(), self.seen.copy(), self.clock.copy())

    def settle(self, objective: Objective, steps: Steps) -> None:
        """Apply to every feature the penalty it still misses."""
        if objective.l1 == objective.l2 == 0.0:
            return
        outputs = self.cells.shape[1] // 2
        weights = self.cells[:-1, :outputs]
        missed = (self.clock[0] - self.seen[:-1])[:, None]
        size = missed / np.sqrt(self.cells[:-1, outputs:]) if steps.adaptive else missed
        shrunk = np.sign(weights) * np.maximum(np.abs(weights) - objective.l1 * size, 0.0)
        weights[:] = shrunk / (1.0 + objective.l2 * size)
        self.seen[:] = self.clock[0]


def learn(
    table: Table, objective: Objective, steps: Steps, blocks: Iterable[Block], rng: np.random.Generator | None
) -> tuple[int, float]:
    """Learn from blocks one after the other.

    Args:
        table: Changed in place.
        rng: Decides the order of the rows of a block; None takes them as they come.

    Returns:
        How many rows, and the sum of their losses, each taken before the row was learnt from.

    Raises:
        Invalid: The loss is no longer finite: the steps are too long for these features.
    """
    rows, total = 0, 0.0
    for x, y in blocks:
        if not len(y):
            continue
        total += _one(table, objective, steps, x, y, _order(len(y), rng))
        rows += len(y)
        if not np.isfinite(total):
            raise Invalid(
                f"the loss became {total} after {rows:,} rows: steps of {steps.rate:g} are too long",
                path="train.params.learning_rate",
                hint="add '- scale: {columns: numeric, method: standard}' under features, "
                "use step: adagrad, or lower learning_rate",
            )
    return rows, total


def _one(table: Table, objective: Objective, steps: Steps, x: Any, y: Array, walk: tuple[int, int]) -> float:
    from modelkeep.train.linear import kernels  # Numba takes a second to import

    y = np.asarray(y)
    penalties = (objective.l1, objective.l2)
    how = (objective.code, steps.rate, steps.power, steps.adaptive, *penalties, objective.intercept)
    state = (table.cells, table.seen, table.clock)
    if isinstance(x, np.ndarray):
        return float(kernels.batches_dense(np.asarray(x), y, walk, steps.batch, state, how))
    csr = (_narrow(x.indptr), _narrow(x.indices), np.asarray(x.data))
    if objective.outputs == 1 and steps.batch == 1:
        return float(kernels.rows_sparse(csr, y, walk, state, how))
    return float(kernels.batches_sparse(csr, y, walk, steps.batch, state, how))


def _narrow(index: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """int32, so that the loops are compiled for one type only."""
    if index.dtype != np.int32 and len(index) and index.max() > np.iinfo(np.int32).max:
        raise Invalid("a block has more than 2,147,483,647 values or columns", path="features")
    return np.asarray(index, np.int32)


def _order(rows: int, rng: np.random.Generator | None) -> tuple[int, int]:
    """First row and stride of a walk that visits every row once, neighbours far apart."""
    if rng is None or rows < 3:
        return 0, 1
    # Near the golden section the visited rows are spread evenly at every moment.
    stride = max(1, int(rows * rng.uniform(0.382, 0.618)))
    while gcd(stride, rows) != 1:
        stride += 1
    return int(rng.integers(rows)), stride % rows


@dataclass(slots=True)
class Moves:
    """How far workers got from a common start: what they send home, and adds up.

    Attributes:
        cells: Sum of the changes of the cells, shape as the table's.
        touched: (features + 1,) workers that had a feature's gradient.
        clock: Sum of the changes of the clocks.
        workers: How many are in here.
        rows: Rows learnt from.
        loss: Sum of their losses.
    """

    cells: Array
    touched: Array
    clock: Array
    workers: int
    rows: int
    loss: float

    @classmethod
    def between(cls, start: Table, end: Table, rows: int, loss: float) -> Moves:
        """What changed; ``end`` is used up."""
        outputs = start.cells.shape[1] // 2
        cells = np.subtract(end.cells, start.cells, out=end.cells)
        touched = np.asarray((cells[:, outputs:] > 0.0).any(axis=1), np.float64)
        return cls(cells, touched, end.clock - start.clock, 1, rows, loss)

    def plus(self, other: Moves) -> Moves:
        """Both together."""
        return Moves(
            self.cells + other.cells,
            self.touched + other.touched,
            self.clock + other.clock,
            self.workers + other.workers,
            self.rows + other.rows,
            self.loss + other.loss,
        )


def averaged(start: Table, moves: Moves, objective: Objective) -> Table:
    """The common table after a round: parameters averaged (Zinkevich et al. 2010; Stich, ICLR 2019).

    A weight moves by the sum of the workers' moves over the number of workers that had its gradient; so a rare
    feature that one worker of ten has seen is not held back tenfold. As a constant per weight this scales steps
    but moves no optimum. With an L1 penalty it is the number of all workers, since each has shrunk the weight and
    more than the mean of that could carry it through zero. Sums of squared gradients add up, as if one worker had
    seen all the rows.
    """
    outputs = start.cells.shape[1] // 2
    by = np.full(len(moves.touched), float(moves.workers))
    if objective.l1 == 0.0:
        by = np.where(moves.touched > 0.0, moves.touched, by)
    cells = moves.cells
    cells[:, :outputs] /= by[:, None]
    cells += start.cells
    clock = start.clock + moves.clock / moves.workers
    return Table(cells, np.full(len(start.seen), clock[0]), clock)
