"""How a version's metric varied between windows of its held-out rows: what live metrics are judged against."""

from __future__ import annotations

import msgspec
import numpy as np

from modelkeep.stats.bootstrap import intervals
from modelkeep.stats.outputs import Array, Floats, Outputs

FEWEST_ROWS = 200
MOST_WINDOWS = 60


class HeldOut(msgspec.Struct, frozen=True, kw_only=True):
    """A metric on the held-out rows.

    Attributes:
        metric: Its name.
        value: Over all rows.
        error: Its standard error by bootstrap.
        between: Variance between windows beyond sampling; 0 when it could not be measured.
        windows: Windows it was measured on; below 3 it could not be.
    """

    metric: str
    value: float
    error: float
    between: float = 0.0
    windows: int = 0


def measure(
    metric: str, y: Array, outputs: Outputs, time: Floats | None, window_seconds: float, *, seed: int = 0
) -> HeldOut:
    """Evaluate by window.

    The variance between windows is the moment estimator of random-effects meta-analysis (DerSimonian and Laird
    1986, unweighted): variance of the windows' values less their mean sampling variance. Windows are joined until
    each holds 200 rows and at most 60 are left; joining hides some variation, so with sparse held-out rows the
    figure is too small.

    Args:
        time: Seconds per row; None measures no windows.
        window_seconds: Length of the windows that will be served.
    """
    whole = intervals([metric], y, outputs, seed=seed)[metric]
    value, error = whole.value, whole.error if np.isfinite(whole.error) else 0.0
    if time is None or len(y) < 3 * FEWEST_ROWS:
        return HeldOut(metric=metric, value=value, error=error)
    order = np.argsort(time, kind="stable")
    number = np.floor(time[order] / window_seconds)
    least = max(FEWEST_ROWS, len(y) // MOST_WINDOWS)
    found = []
    start = 0
    ends = [*(np.flatnonzero(np.diff(number)) + 1).tolist(), len(order)]
    for end in ends:
        if end - start >= least:
            rows = order[start:end]
            found.append(intervals([metric], y[rows], outputs.take(rows), replicates=50, seed=seed)[metric])
            start = end
    values = np.array([(one.value, one.error) for one in found]).reshape(-1, 2)
    values = values[np.isfinite(values).all(axis=1)]
    if len(values) < 3:
        return HeldOut(metric=metric, value=value, error=error)
    between = max(float(values[:, 0].var(ddof=1) - (values[:, 1] ** 2).mean()), 0.0)
    return HeldOut(metric=metric, value=value, error=error, between=between, windows=len(values))
