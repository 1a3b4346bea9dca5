"""Gradient descent on whole passes, with the curvature learnt on the way: L-BFGS and, for L1, OWL-QN.

Every step needs the loss and its gradient over all rows: parts give theirs wherever an engine works on them, and
they are added up as a tree; that is a synchronous all-reduce (Agarwal et al., "A reliable effective terascale
linear learning system", JMLR 2014).

L-BFGS: Liu and Nocedal, Mathematical Programming 45, 1989. OWL-QN: Andrew and Gao, ICML 2007: the pseudo-gradient
of the penalised objective, steps kept within one orthant, so that weights become and stay exactly zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from modelkeep.train.linear.losses import Array, Objective, Sums, penalty

MEMORY = 10
"""Pairs of steps and changes of the gradient from which the curvature is known."""
HALVINGS = 30
ENOUGH = 1e-4
"""Share of the promised decrease that a step must bring (Armijo)."""

Whole = Callable[[Array], Sums]
"""Loss and gradient over all rows at the given weights, (features + 1, outputs)."""


@dataclass(slots=True)
class Descent:
    """Where the descent stands; all that a checkpoint needs.

    Attributes:
        weights: (features + 1, outputs).
        iteration: Steps done.
        value: The objective there.
        slope: Gradient of the loss and the L2 penalty there.
        pairs: Steps and changes of ``slope``, oldest first.
        first: Largest entry of the pseudo-gradient at the start, what convergence is measured against.
        norm: The same now.
        stuck: No step along the descent direction decreases the objective any more.
    """

    weights: Array
    iteration: int = 0
    value: float = np.inf
    slope: Array | None = None
    pairs: list[tuple[Array, Array]] = field(default_factory=list)
    first: float = 0.0
    norm: float = np.inf
    stuck: bool = False

    def begin(self, objective: Objective, whole: Whole) -> None:
        """Look at the start; does nothing when it was looked at already."""
        if self.slope is None:
            self.value, self.slope = _at(objective, whole, self.weights)
            self.norm = float(np.abs(pseudo_gradient(objective, self.weights, self.slope)).max())
            self.first = self.first or self.norm

    def converged(self, tolerance: float) -> bool:
        """Whether the pseudo-gradient has shrunk to ``tolerance`` of what it was at zero weights."""
        return self.norm <= tolerance * self.first

    def step(self, objective: Objective, whole: Whole) -> None:
        """One step, with as many looks at the rows as its line search needs (nearly always one)."""
        assert self.slope is not None
        steepest = -pseudo_gradient(objective, self.weights, self.slope)
        direction = _two_loops(steepest, self.pairs)
        if objective.l1 > 0.0:
            aligned = direction * steepest > 0.0
            aligned[-1] = True
            direction = np.where(aligned, direction, 0.0)
        promised = -float((direction * steepest).sum())
        if promised >= 0.0:
            self.pairs.clear()
            direction, promised = steepest, -float((steepest * steepest).sum())
        size = 1.0 if self.pairs else 1.0 / max(1e-12, float(np.sqrt((steepest * steepest).sum())))
        self.iteration += 1
        for _ in range(HALVINGS):
            to = self._landing(objective, steepest, direction, size)
            value, slope = _at(objective, whole, to)
            if value <= self.value + ENOUGH * size * promised:
                self._take(objective, to, value, slope)
                return
            size *= 0.5 if self.pairs else 0.2
        if self.pairs:  # the curvature misleads: once more along the gradient itself
            self.pairs.clear()
        else:
            self.stuck = True

    def _landing(self, objective: Objective, steepest: Array, direction: Array, size: float) -> Array:
        to = self.weights + size * direction
        if objective.l1 > 0.0:
            orthant = np.where(self.weights != 0.0, np.sign(self.weights), np.sign(steepest))
            crossed = to * orthant < 0.0
            crossed[-1] = False
            to[crossed] = 0.0
        return to

    def _take(self, objective: Objective, to: Array, value: float, slope: Array) -> None:
        assert self.slope is not None
        moved, bent = to - self.weights, slope - self.slope
        if (moved * bent).sum() > 1e-12 * (bent * bent).sum():
            self.pairs.append((moved, bent))
            del self.pairs[:-MEMORY]
        self.weights, self.value, self.slope = to, value, slope
        self.norm = float(np.abs(pseudo_gradient(objective, to, slope)).max())


def pseudo_gradient(objective: Objective, weights: Array, slope: Array) -> Array:
    """The objective's subgradient of least size, all zero exactly at an optimum.

    Args:
        weights: (features + 1, outputs).
        slope: Gradient of the differentiable part.
    """
    if objective.l1 == 0.0:
        return slope
    found = slope.copy()
    free, part = weights[:-1], slope[:-1]
    at_zero = np.sign(part) * np.maximum(np.abs(part) - objective.l1, 0.0)
    found[:-1] = np.where(free != 0.0, part + objective.l1 * np.sign(free), at_zero)
    return found


def _at(objective: Objective, whole: Whole, weights: Array) -> tuple[float, Array]:
    """The objective, and the gradient of its differentiable part."""
    sums = whole(weights)
    assert sums.gradient is not None
    slope = sums.gradient / sums.rows
    slope[:-1] += objective.l2 * weights[:-1]
    return sums.loss / sums.rows + penalty(objective, weights), slope


def _two_loops(steepest: Array, pairs: list[tuple[Array, Array]]) -> Array:
    """The direction of steepest descent, bent by the curvature (Nocedal 1980)."""
    direction = steepest.copy()
    shares = []
    for moved, bent in reversed(pairs):
        share = float((moved * direction).sum()) / float((moved * bent).sum())
        direction -= share * bent
        shares.append(share)
    if pairs:
        moved, bent = pairs[-1]
        direction *= float((moved * bent).sum()) / float((bent * bent).sum())
    for (moved, bent), share in zip(pairs, reversed(shares), strict=True):
        direction += (share - float((bent * direction).sum()) / float((moved * bent).sum())) * moved
    return direction
