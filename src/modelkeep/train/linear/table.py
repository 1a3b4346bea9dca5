"""The model while it learns by stochastic steps, and how the tables of several workers become one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import gcd
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from modelkeep.core.errors import Invalid
from modelkeep.train.linear.losses import Array, Objective

if TYPE_CHECKING:  # a shard of the parameter server starts without what blocks are made with
    from modelkeep.train.linear.blocks import Block

RUN = 32
"""Rows of a run at most; fewer where there are few."""
LINE = 64
"""Bytes of a processor's cache line."""
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
        cells: (features + 1, 2 * outputs + 2): weights; sums of squared gradients, or counts of steps; the sum of
            rates when the penalty was last applied; with one output, what a step is multiplied by.
        clock: (2,): sum of rates, number of steps.
    """

    cells: Array
    clock: Array = field(default_factory=lambda: np.zeros(2))

    @classmethod
    def fresh(cls, features: int, outputs: int) -> Table:
        """All weights zero."""
        packed = np.zeros((features + 1, 2 * outputs))
        packed[:, outputs:] = STARTED
        return cls.unpacked(packed, np.zeros(2), adaptive=False)

    @classmethod
    def unpacked(cls, packed: Array, clock: Array, *, adaptive: bool) -> Table:
        """The table of what ``packed`` gave, its penalties settled."""
        from modelkeep.train.linear import merging  # Numba takes a while to import

        cells = _from_a_line(len(packed), packed.shape[1] + 2)
        merging.unpack(packed, float(clock[0]), adaptive, cells)
        return cls(cells, clock.copy())

    @property
    def outputs(self) -> int:
        """How many."""
        return int(self.cells.shape[1]) // 2 - 1

    @property
    def packed(self) -> Array:
        """(features + 1, 2 * outputs), a view: the weights and the sums."""
        return self.cells[:, :-2]

    @property
    def weights(self) -> Array:
        """(features + 1, outputs), a view."""
        return self.cells[:, : self.outputs]

    @property
    def sums(self) -> Array:
        """(features + 1, outputs), a view."""
        return self.cells[:, self.outputs : -2]

    @property
    def seen(self) -> Array:
        """(features + 1,), a view: the sum of rates when the penalty was last applied."""
        return self.cells[:, -2]

    def settle(self, objective: Objective, steps: Steps, rows: Any = None) -> None:
        """Apply to features the penalty they still miss, as the compiled loops do.

        Args:
            rows: Which; all but the intercept unless said.
        """
        if objective.l1 == objective.l2 == 0.0:
            return
        if rows is None:
            from modelkeep.train.linear import merging

            merging.settle(self.cells, float(self.clock[0]), steps.adaptive, objective.l1, objective.l2)
            return
        missed = (self.clock[0] - self.seen[rows])[:, None]
        size = missed / np.sqrt(self.sums[rows]) if steps.adaptive else missed
        weights = self.weights[rows]
        shrunk = np.sign(weights) * np.maximum(np.abs(weights) - objective.l1 * size, 0.0)
        self.weights[rows] = shrunk / (1.0 + objective.l2 * size)
        self.seen[rows] = self.clock[0]


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


def _one(table: Table, objective: Objective, steps: Steps, x: Any, y: Array, walk: tuple[int, int, int]) -> float:
    from modelkeep.train.linear import kernels  # Numba takes a second to import

    y = np.asarray(y)
    penalties = (objective.l1, objective.l2)
    how = (objective.code, steps.rate, steps.power, steps.adaptive, *penalties, objective.intercept)
    state = (table.cells, table.clock)
    if isinstance(x, np.ndarray):
        return float(kernels.batches_dense(np.asarray(x), y, walk, steps.batch, *state, how))
    csr = (_narrow(x.indptr), _narrow(x.indices), np.asarray(x.data))
    if objective.outputs == 1 and steps.batch == 1:
        return float(kernels.rows_sparse(csr, y, walk, *state, how))
    return float(kernels.batches_sparse(csr, y, walk, steps.batch, *state, how))


def _from_a_line(rows: int, columns: int) -> Array:
    """(rows, columns), not set, from the beginning of a cache line: with one output a feature lies in one."""
    room = np.empty(rows * columns + LINE // 8)
    begin = -room.ctypes.data % LINE // 8
    return room[begin : begin + rows * columns].reshape(rows, columns)


def _narrow(index: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """int32, so that the loops are compiled for one type only."""
    if index.dtype != np.int32 and len(index) and index.max() > np.iinfo(np.int32).max:
        raise Invalid("a block has more than 2,147,483,647 values or columns", path="features")
    return np.asarray(index, np.int32)


def _order(rows: int, rng: np.random.Generator | None) -> tuple[int, int, int]:
    """A walk over all rows as ``kernels.rows_sparse`` takes it, runs of neighbours far apart."""
    if rng is None or rows < 3:
        return 0, 1, 1
    run = min(RUN, max(1, rows // 256))
    runs = -(-rows // run)
    # Near the golden section the visited rows are spread evenly at every moment.
    stride = max(1, int(runs * rng.uniform(0.382, 0.618)))
    while gcd(stride, runs) != 1:
        stride += 1
    return int(rng.integers(runs)) * run, stride % runs if runs > 1 else 1, run


@dataclass(slots=True)
class Moves:
    """How far workers got from a common start: what they send home, and adds up.

    Attributes:
        cells: Sum of the changes of the weights and the sums, (features + 1, 2 * outputs).
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
    def between(
        cls, start: tuple[Array, Array], end: Table, objective: Objective, steps: Steps, rows: int, loss: float
    ) -> Moves:
        """What changed since a start, ``Table.packed`` and the clock then. ``end`` need not be settled."""
        from modelkeep.train.linear import merging

        packed, clock = start
        cells, touched = np.empty(packed.shape), np.empty(len(packed))
        how = (steps.adaptive, objective.l1, objective.l2)
        merging.between(packed, end.cells, float(end.clock[0]), how, cells, touched)
        return cls(cells, touched, end.clock - clock, 1, rows, loss)

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


def averaged(start: tuple[Array, Array], moves: Moves, objective: Objective) -> tuple[Array, Array]:
    """The common table after a round: parameters averaged (Zinkevich et al. 2010; Stich, ICLR 2019).

    A weight moves by the sum of the workers' moves over the number of workers that had its gradient; so a rare
    feature that one worker of ten has seen is not held back tenfold. As a constant per weight this scales steps
    but moves no optimum. With an L1 penalty it is the number of all workers, since each has shrunk the weight and
    more than the mean of that could carry it through zero. Sums of squared gradients add up, as if one worker had
    seen all the rows.

    Args:
        start: ``Table.packed``, contiguous, and the clock before.

    Returns:
        The same after it.
    """
    from modelkeep.train.linear import merging

    before, clock = start
    packed = np.empty(before.shape)
    merging.average(before, (moves.cells, moves.touched, float(moves.workers)), objective.l1 != 0.0, packed)
    return packed, clock + moves.clock / moves.workers
