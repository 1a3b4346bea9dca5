"""The compiled inner loops: stochastic steps over the rows of a block.

One table holds the model while it learns, (features + 1, 2 * outputs + 2) float64: each feature's weights; the
sums its step sizes depend on; the sum of all rates when its penalty was last applied; with one output, its step
size over the rate. So a feature costs one cache line. The last row is the intercept.

A step moves the weights of a row's features by ``-rate / sqrt(G) * gradient``, ``G`` being the sum of the squared
gradients so far (AdaGrad: Duchi, Hazan, Singer, JMLR 2011), or by ``-rate * gradient`` where ``G`` is not used.
The penalty is applied as a proximal step (Duchi and Singer, JMLR 2009), and lazily (Langford, Li, Zhang, JMLR
2009; Lipton and Elkan 2015): a feature that a row lacks is left alone, and when it is seen again all the penalty
it missed is applied at once, ``w = shrink(w, l1 * c) / (1 + l2 * c)`` where ``c`` is the sum of the missed step
sizes. So a row costs its own features and not all of them. What is missing at the end is settled by
``table.settle``.

The loops release the GIL.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np

from modelkeep.core.compiled import compiled as compiled_plainly
from modelkeep.train.linear.ahead import prefetch

LOGISTIC = 1  # as in ``losses.CODES``
LARGE = 1e30
AHEAD = 64
"""Values worked on while those of another row come from memory: as long as that takes, and fewer than the nearest
cache holds."""

# Sums may be regrouped; infinities and NaN stay what they are, so that a diverging fit is seen.
# Divisions by zero give infinity: to ask each divisor takes longer, and keeps loops from doing several at once.
compiled = partial(compiled_plainly, fastmath={"reassoc", "contract", "arcp", "nsz"}, error_model="numpy")
inlined = partial(compiled, inline="always")


@compiled
def logistic(margin: float, y: float) -> tuple[float, float, float]:
    """``e`` and ``rest``, the loss being ``log(1 + e) + rest``, and its derivative by the margin."""
    z = y * margin
    e = math.exp(-abs(z))
    share = 1.0 / (1.0 + e)
    return e, max(-z, 0.0), -y * (e * share if z > 0.0 else share)


@compiled
def derivative(loss: int, margin: float, y: float) -> tuple[float, float]:
    """Loss and its derivative by the margin, of one output of one row; codes as in ``losses.CODES``."""
    if loss == LOGISTIC:
        e, rest, slope = logistic(margin, y)
        return math.log1p(e) + rest, slope
    if loss == 0:  # squared
        off = margin - y
        return 0.5 * off * off, off
    short = 1.0 - y * margin
    if short <= 0.0:
        return 0.0, 0.0
    return (short, -y) if loss == 3 else (short * short, -2.0 * short * y)


@compiled
def caught_up(weight: float, size: float, l1: float, l2: float) -> float:
    """A weight after the penalty of the steps it missed, whose sizes sum to ``size``."""
    if l1 > 0.0:
        cut = l1 * size
        if weight > cut:
            weight -= cut
        elif weight < -cut:
            weight += cut
        else:
            return 0.0
    return weight / (1.0 + l2 * size)


@compiled
def inverse_root(x: float) -> float:
    """``1 / sqrt(x)``, quicker: single precision, and by a step of Newton's method as good as double."""
    return quick_root(x) if 1e-30 < x < LARGE else 1.0 / math.sqrt(x)


@compiled
def quick_root(x: float) -> float:
    """``inverse_root`` of what single precision can hold."""
    near = np.float64(np.float32(1.0) / np.sqrt(np.float32(x)))
    return near * (1.5 - 0.5 * x * near * near)


@compiled
def rate_at(rate: float, power: float, updates: float) -> float:
    """The step size's common factor: ``rate / (1 + updates) ** power``."""
    return rate if power == 0.0 else rate / (1.0 + updates) ** power


@compiled
def settled(table: Any, j: int, elapsed: float, adaptive: bool, l1: float, l2: float) -> None:
    """Apply to a feature's weights the penalty that they missed."""
    outputs = table.shape[1] // 2 - 1
    missed = elapsed - table[j, 2 * outputs]
    table[j, 2 * outputs] = elapsed
    for k in range(outputs):
        size = missed * inverse_root(table[j, outputs + k]) if adaptive else missed
        table[j, k] = caught_up(table[j, k], size, l1, l2)


@compiled
def moved(table: Any, j: Any, k: int, g: float, now: float, adaptive: bool) -> None:
    """One step of one weight along its gradient."""
    outputs = table.shape[1] // 2 - 1
    if adaptive:
        squares = table[j, outputs + k] + g * g
        inverse = inverse_root(squares)
        table[j, outputs + k] = squares
        table[j, 2 * outputs + 1] = inverse
        table[j, k] -= now * g * inverse
    else:
        table[j, k] -= now * g
        table[j, outputs + k] += 1.0


@inlined
def next_row(row: int, walk: Any, n: int) -> int:
    """The row after this one: its neighbour, or at the end of a run the first of the next run.

    Runs of neighbours cost the processor far less than single rows would.
    """
    _, stride, run = walk
    row += 1
    if row >= n or row % run == 0:
        row = ((row - 1) // run + stride) % ((n + run - 1) // run) * run
    return row


@compiled
def widest(indptr: Any) -> int:
    """Values of the row that has most."""
    most = 0
    for row in range(len(indptr) - 1):
        most = max(most, indptr[row + 1] - indptr[row])
    return most


@compiled
def rooted(room: Any, count: Any) -> float:
    """Make the first ``count`` numbers their inverse roots, several at once; returns what their sum was."""
    total = 0.0
    for at in range(count):
        total += room[at]
        room[at] = quick_root(room[at])
    return total


@inlined
def moved_all(csr: Any, begin: Any, end: Any, table: Any, slope: float, now: float, room: Any) -> None:
    """One adaptive step of the weights of a row, whose values are from ``begin`` to ``end``; one output.

    Args:
        room: (values of the widest row,), for the roots.
    """
    _, indices, values = csr
    count = np.int64(end - begin)
    for at in range(count):
        place = begin + np.uintp(at)
        j, g = np.uintp(indices[place]), slope * values[place]
        squares = table[j, 1] + g * g
        room[at] = table[j, 1] = squares
    if not rooted(room, count) < LARGE:  # a feature that comes twice in the row then has its last sum both times
        for at in range(count):
            room[at] = inverse_root(table[np.uintp(indices[begin + np.uintp(at)]), 1])
    for at in range(count):
        place = begin + np.uintp(at)
        j, g = np.uintp(indices[place]), slope * values[place]
        table[j, 0] -= now * g * room[at]
        table[j, 3] = room[at]


@compiled
def moved_plainly(csr: Any, begin: Any, end: Any, table: Any, slope: float, now: float) -> None:
    """``moved_all`` where steps are not adaptive."""
    _, indices, values = csr
    for place in range(begin, end):
        moved(table, np.uintp(indices[place]), 0, slope * values[place], now, False)


@compiled
def rows_ahead(indptr: Any) -> int:
    """How many rows before its turn a row is asked for: by then about ``AHEAD`` values are worked on."""
    n = len(indptr) - 1
    return 1 + min(AHEAD, AHEAD * n // max(1, indptr[n] - indptr[0]))  # type: ignore[no-any-return]


@inlined
def ask_for(csr: Any, row: int, table: Any) -> None:
    """Have the features of a row fetched from far caches."""
    indptr, indices, _ = csr
    for place in range(np.uintp(indptr[row]), np.uintp(indptr[row + 1])):
        prefetch(table, np.uintp(indices[place]))


@compiled
def rows_sparse(csr: Any, y: Any, walk: Any, table: Any, clock: Any, how: Any) -> float:
    """Stochastic gradient descent, one row a step, one output, sparse rows.

    Args:
        csr: The block: row pointers (n + 1,), columns (nnz,), values (nnz,).
        y: (n,) targets; -1 and 1 for classes.
        walk: Rows are visited in runs of neighbours: first row, runs to go on from one to the next, rows of a run.
            Each is visited once if the stride is prime to the number of runs.
        table: See above, (features + 1, 4), changed in place.
        clock: (2,) sum of rates and number of steps so far, changed in place.
        how: The loss's code, the rate, its power, whether steps are adaptive, l1, l2, whether the intercept is
            learnt.

    Returns:
        The sum of the losses, each before its row was learnt from.
    """
    indptr, indices, values = csr
    loss, rate, power, adaptive, l1, l2, bias = how
    n, last, row = y.shape[0], table.shape[0] - 1, walk[0]
    penalised, room = l1 > 0.0 or l2 > 0.0, np.empty(widest(indptr))
    total, product, elapsed = 0.0, 1.0, clock[0]
    asked = row
    for _ in range(rows_ahead(indptr) - 1):
        asked = next_row(asked, walk, n)
    for step in range(n):
        # Unsigned: else each access asks whether the place counts from the end.
        begin, end = np.uintp(indptr[row]), np.uintp(indptr[row + 1])
        margin = table[last, 0]
        if penalised:
            for place in range(begin, end):
                j = np.uintp(indices[place])
                weight = caught_up(table[j, 0], (elapsed - table[j, 2]) * table[j, 3], l1, l2)
                table[j, 0], table[j, 2] = weight, elapsed
                margin += weight * values[place]
        else:
            for place in range(begin, end):
                margin += table[np.uintp(indices[place]), 0] * values[place]
        asked = next_row(asked, walk, n)
        ask_for(csr, asked, table)
        if loss == LOGISTIC:  # one logarithm for many rows
            e, lost, slope = logistic(margin, y[row])
            product *= 1.0 + e
            if product > 1e200:
                lost, product = lost + math.log(product), 1.0
        else:
            lost, slope = derivative(loss, margin, y[row])
        total += lost
        now = rate_at(rate, power, clock[1] + step)
        if slope != 0.0:
            if adaptive:
                moved_all(csr, begin, end, table, slope, now, room)
            else:
                moved_plainly(csr, begin, end, table, slope, now)
            if bias:
                moved(table, last, 0, slope, now, adaptive)
        elapsed += now
        row = next_row(row, walk, n)
    clock[0] = elapsed
    clock[1] += n
    return total + math.log(product)


@compiled
def slopes(loss: int, margins: Any, y: float, out: Any) -> float:
    """Loss of one row with any number of outputs; ``out`` gets the derivatives by the margins.

    With several outputs ``y`` is the class's number: softmax joins them, other losses set each class against the
    rest.
    """
    outputs = margins.shape[0]
    if outputs == 1:
        lost, out[0] = derivative(loss, margins[0], y)
        return lost
    total = 0.0
    right = int(y)
    if loss != 2:
        for k in range(outputs):
            lost, out[k] = derivative(loss, margins[k], 1.0 if k == right else -1.0)
            total += lost
        return total
    top = margins[0]
    for k in range(1, outputs):
        top = max(top, margins[k])
    for k in range(outputs):
        out[k] = math.exp(margins[k] - top)
        total += out[k]
    for k in range(outputs):
        out[k] /= total
    out[right] -= 1.0
    return math.log(total) - (margins[right] - top)  # type: ignore[no-any-return]


@compiled
def batches_sparse(csr: Any, y: Any, walk: Any, batch: int, table: Any, clock: Any, how: Any) -> float:
    """Mini-batches of sparse rows, any number of outputs: a step goes along the mean gradient of ``batch`` rows.

    Arguments and result as of ``rows_sparse``; the table is (features + 1, 2 * outputs + 2).
    """
    indptr, indices, values = csr
    loss, rate, power, adaptive, l1, l2, bias = how
    n, outputs, last, row = y.shape[0], table.shape[1] // 2 - 1, table.shape[0] - 1, walk[0]
    penalised = l1 > 0.0 or l2 > 0.0
    gradient = np.zeros((last + 1, outputs))
    marked, touched = np.zeros(last, np.bool_), np.empty(last + 1, np.int64)
    margins, slope = np.empty(outputs), np.empty(outputs)
    total = 0.0
    for begin in range(0, n, batch):
        size, count = min(batch, n - begin), 0
        for _ in range(size):
            margins[:] = table[last, :outputs]
            for place in range(indptr[row], indptr[row + 1]):
                j = indices[place]
                if not marked[j]:
                    marked[j] = True
                    touched[count] = j
                    count += 1
                    if penalised:
                        settled(table, j, clock[0], adaptive, l1, l2)
                for k in range(outputs):
                    margins[k] += table[j, k] * values[place]
            total += slopes(loss, margins, y[row], slope)
            for k in range(outputs):
                if bias:
                    gradient[last, k] += slope[k]
                for place in range(indptr[row], indptr[row + 1]):
                    gradient[indices[place], k] += slope[k] * values[place]
            row = next_row(row, walk, n)
        now = rate_at(rate, power, clock[1])
        touched[count] = last
        for j in touched[: count + 1]:
            for k in range(outputs):
                if gradient[j, k] != 0.0:
                    moved(table, j, k, gradient[j, k] / size, now, adaptive)
                    gradient[j, k] = 0.0
            if j < last:
                marked[j] = False
        clock[0] += now
        clock[1] += 1.0
    return total


@compiled
def batches_dense(x: Any, y: Any, walk: Any, batch: int, table: Any, clock: Any, how: Any) -> float:
    """Mini-batches of dense rows, (n, features), any number of outputs; ``batch`` 1 is one row a step.

    Arguments and result as of ``batches_sparse``.
    """
    loss, rate, power, adaptive, l1, l2, bias = how
    n, features = x.shape
    outputs, row = table.shape[1] // 2 - 1, walk[0]
    penalised = l1 > 0.0 or l2 > 0.0
    gradient, weights = np.zeros((outputs, features + 1)), np.empty((outputs, features + 1))
    margins, slope = np.empty(outputs), np.empty(outputs)
    total = 0.0
    for begin in range(0, n, batch):
        size = min(batch, n - begin)
        for j in range(features + 1):
            if penalised and j < features:
                settled(table, j, clock[0], adaptive, l1, l2)
            for k in range(outputs):
                weights[k, j] = table[j, k]
        for _ in range(size):
            for k in range(outputs):
                margin = weights[k, features]
                for j in range(features):
                    margin += weights[k, j] * x[row, j]
                margins[k] = margin
            total += slopes(loss, margins, y[row], slope)
            for k in range(outputs):
                for j in range(features):
                    gradient[k, j] += slope[k] * x[row, j]
                if bias:
                    gradient[k, features] += slope[k]
            row = next_row(row, walk, n)
        now = rate_at(rate, power, clock[1])
        for k in range(outputs):
            for j in range(features + 1):
                if gradient[k, j] != 0.0:
                    moved(table, j, k, gradient[k, j] / size, now, adaptive)
                    gradient[k, j] = 0.0
        clock[0] += now
        clock[1] += 1.0
    return total
