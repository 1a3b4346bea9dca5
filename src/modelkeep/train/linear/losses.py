"""The losses of linear models: values, derivatives, and what is minimised.

For rows ``x_i`` with targets ``y_i``, margins ``m_i = w . x_i + b`` and ``n`` rows, everything here minimises

    F(w, b) = 1/n sum_i loss(m_i, y_i) + alpha (l1_ratio |w|_1 + (1 - l1_ratio)/2 |w|_2^2)

the intercept ``b`` free of penalty. This is scikit-learn's ``SGDClassifier``; its ``LogisticRegression`` and
``LinearSVC`` are the same with ``C = 1 / (alpha n)``, its ``Ridge`` with ``alpha n``, its ``ElasticNet`` as it is.

==============  =============================  ==========================================
loss            value                          for
==============  =============================  ==========================================
squared         (m - y)^2 / 2                  numbers
logistic        log(1 + exp(-y m))             two classes; more: each against the rest
softmax         log sum_k exp(m_k) - m_y       more than two classes
hinge           max(0, 1 - y m)                classes, no probabilities
squared_hinge   max(0, 1 - y m)^2              classes, no probabilities
==============  =============================  ==========================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

CODES = {"squared": 0, "logistic": 1, "softmax": 2, "hinge": 3, "squared_hinge": 4}


@dataclass(frozen=True, slots=True)
class Objective:
    """What is minimised.

    Attributes:
        loss: A name of ``CODES``.
        l1: ``alpha * l1_ratio``.
        l2: ``alpha * (1 - l1_ratio)``.
        outputs: Margins per row: 1, or the number of classes when it is more than two.
        intercept: Whether there is one.
        smoothing: Width of the quadratic piece that rounds the hinge's corner off; 0 leaves it. The rounded hinge
            is below the hinge by at most half the width (Nesterov, Mathematical Programming 2005).
    """

    loss: str
    l1: float
    l2: float
    outputs: int = 1
    intercept: bool = True
    smoothing: float = 0.0

    @property
    def code(self) -> int:
        """The loss's number in the compiled loops."""
        return CODES[self.loss]


@dataclass(slots=True)
class Sums:
    """The loss of some rows and its gradient, as sums: parts add up to the whole.

    Attributes:
        rows: How many.
        loss: Sum over the rows.
        gradient: (features + 1, outputs), the intercept's last; None where only the loss was asked for.
    """

    rows: int
    loss: float
    gradient: Array | None = None

    def plus(self, other: Sums) -> Sums:
        """Both together; may reuse this one's array."""
        gradient = self.gradient
        if gradient is not None and other.gradient is not None:
            gradient = gradient + other.gradient
        return Sums(self.rows + other.rows, self.loss + other.loss, gradient)


def encoded(y: npt.NDArray[Any], classes: npt.NDArray[Any] | None) -> Array:
    """Targets as the loops take them, (n,) float64: numbers, -1 and 1 for two classes, else the class's number.

    Raises:
        ValueError: A label that is not among the classes.
    """
    if classes is None:
        return np.asarray(y, np.float64)
    places = np.searchsorted(classes, y)
    places[places == len(classes)] = 0
    wrong = classes[places] != y
    if wrong.any():
        raise ValueError(f"the label {np.asarray(y)[wrong][0]!r} is not among the classes")
    codes: Array = places.astype(np.float64)
    return codes * 2.0 - 1.0 if len(classes) == 2 else codes


def of_margins(objective: Objective, margins: Array, y: Array) -> tuple[float, Array]:
    """Sum of the losses, and the derivative by each margin.

    Args:
        margins: (n, outputs).
        y: (n,) as ``encoded``.
    """
    if objective.loss == "softmax":
        shifted = margins - margins.max(axis=1, keepdims=True)
        chances = np.exp(shifted)
        total = chances.sum(axis=1)
        rows, right = np.arange(len(y)), y.astype(np.intp)
        loss = float((np.log(total) - shifted[rows, right]).sum())
        chances /= total[:, None]
        chances[rows, right] -= 1.0
        return loss, chances
    signs = y[:, None]
    if objective.outputs > 1:
        signs = np.where(y[:, None] == np.arange(objective.outputs), 1.0, -1.0)
    if objective.loss == "squared":
        off = margins - signs
        return 0.5 * float((off * off).sum()), off
    if objective.loss == "logistic":
        z = signs * margins
        return float(np.logaddexp(0.0, -z).sum()), -signs * _sigmoid(-z)
    short = np.maximum(1.0 - signs * margins, 0.0)
    if objective.loss == "squared_hinge":
        return float((short * short).sum()), -2.0 * signs * short
    width = objective.smoothing
    if width == 0.0:
        return float(short.sum()), np.where(short > 0.0, -signs, 0.0)
    inside = short < width
    value = np.where(inside, short * short / (2.0 * width), short - width / 2.0)
    return float(value.sum()), -signs * np.where(inside, short / width, 1.0)


def of_rows(objective: Objective, weights: Array, x: Any, y: Array, *, slope: bool = True) -> Sums:
    """Loss and gradient of a block, without the penalty.

    Args:
        weights: (features + 1, outputs), the intercept last.
        x: (n, features), dense or CSR.
        y: (n,) as ``encoded``.
        slope: Whether the gradient is wanted too.
    """
    margins = np.asarray(x @ weights[:-1]) + weights[-1]
    loss, by_margin = of_margins(objective, margins, y)
    if not slope:
        return Sums(len(y), loss)
    gradient = np.empty_like(weights)
    gradient[:-1] = x.T @ by_margin
    gradient[-1] = by_margin.sum(axis=0) if objective.intercept else 0.0
    return Sums(len(y), loss, gradient)


def penalty(objective: Objective, weights: Array) -> float:
    """What the objective adds for the weights, (features + 1, outputs)."""
    free = weights[:-1]
    return float(objective.l1 * np.abs(free).sum() + 0.5 * objective.l2 * (free * free).sum())


def _sigmoid(z: Array) -> Array:
    e = np.exp(-np.abs(z))
    return np.where(z >= 0.0, 1.0, e) / (1.0 + e)


def probabilities(loss: str, margins: Array) -> Array:
    """Chances of the classes, (n, classes), from margins (n,) or (n, classes): sigmoid or softmax."""
    if margins.ndim == 1:
        positive = _sigmoid(margins)
        return np.stack([1.0 - positive, positive], axis=1)
    softmax = loss == "softmax"
    chances = np.exp(margins - margins.max(axis=1, keepdims=True)) if softmax else _sigmoid(margins)
    return np.asarray(chances / chances.sum(axis=1, keepdims=True))
