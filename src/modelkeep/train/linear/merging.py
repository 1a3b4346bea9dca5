"""The compiled loops over whole tables: what a round of several workers costs besides learning.

Tables are as in ``kernels``: ``cells`` (features + 1, 2 * outputs + 2); ``packed`` lacks the last two columns.
Each loop reads and writes memory once, where NumPy would once for each operation.
"""

from __future__ import annotations

from typing import Any

from modelkeep.train.linear.kernels import caught_up, compiled, inverse_root, settled


@compiled
def unpack(packed: Any, elapsed: float, adaptive: bool, cells: Any) -> None:
    """``cells`` of what is packed, whose penalties are settled."""
    rows, columns = packed.shape
    for j in range(rows):
        for k in range(columns):
            cells[j, k] = packed[j, k]
        cells[j, columns] = elapsed
        cells[j, columns + 1] = inverse_root(packed[j, columns - 1]) if adaptive else 1.0


@compiled
def settle(cells: Any, elapsed: float, adaptive: bool, l1: float, l2: float) -> None:
    """Apply to all features, but not the intercept, the penalty they still miss."""
    if cells.shape[1] == 4:  # one output: what its steps are multiplied by is at hand
        for j in range(cells.shape[0] - 1):
            cells[j, 0] = caught_up(cells[j, 0], (elapsed - cells[j, 2]) * cells[j, 3], l1, l2)
            cells[j, 2] = elapsed
        return
    for j in range(cells.shape[0] - 1):
        settled(cells, j, elapsed, adaptive, l1, l2)


@compiled
def between(packed: Any, cells: Any, elapsed: float, how: Any, change: Any, touched: Any) -> None:
    """What changed since a start, missed penalties applied; ``touched`` is 1 where there was a gradient.

    Args:
        how: Whether steps are adaptive, l1, l2.
    """
    adaptive, l1, l2 = how
    rows, columns = packed.shape
    for j in range(rows):
        if j < rows - 1 and (l1 > 0.0 or l2 > 0.0):  # not the intercept
            if columns == 2:  # one output: what its steps are multiplied by is at hand
                cells[j, 0] = caught_up(cells[j, 0], (elapsed - cells[j, 2]) * cells[j, 3], l1, l2)
            else:
                settled(cells, j, elapsed, adaptive, l1, l2)
        touched[j] = 0.0
        for k in range(columns):
            change[j, k] = cells[j, k] - packed[j, k]
            if k >= columns // 2 and change[j, k] > 0.0:
                touched[j] = 1.0


@compiled
def average(start: Any, moves: Any, everybody: bool, packed: Any) -> None:
    """``packed`` after the workers' moves: their sum, ``touched`` as ``between`` gave it, and their number.

    The changes of a weight are divided by the workers that had its gradient, or by all of them if ``everybody`` or
    if none had.
    """
    change, touched, workers = moves
    rows, columns = change.shape
    for j in range(rows):
        by = workers if everybody or touched[j] == 0.0 else touched[j]
        for k in range(columns):
            packed[j, k] = start[j, k] + (change[j, k] / by if k < columns // 2 else change[j, k])
