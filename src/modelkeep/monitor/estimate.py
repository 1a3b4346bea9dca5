"""What a classifier's performance probably is before labels come, from its own probabilities.

If the probabilities are calibrated, a row of probabilities says how likely each class is, so labels can be
drawn from it and any metric computed on them; their mean is the metric's expectation. Once the inputs drift,
probabilities may no longer be calibrated and the estimate is then wrong in an unknown direction: it is shown as
an estimate, and never decides.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from modelkeep.stats.metrics import METRICS, replicate
from modelkeep.stats.outputs import Outputs, View

DRAWS = 40
MOST_ROWS = 5000
SUFFIX = "_estimated"


def expected(outputs: Outputs, metric: str, *, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Expected accuracy and ``metric``.

    Args:
        outputs: With probabilities and classes; without them nothing is estimated.
        metric: A metric of classification; others are left out.

    Returns:
        Per metric, named ``<metric>_estimated``: value, and low and high as the 2.5 % and 97.5 % points of the
        metric with labels drawn from the probabilities, on at most 5000 rows.
    """
    if outputs.probability is None or outputs.classes is None or outputs.rows < 2:
        return {}
    wanted = [metric] if metric in METRICS and METRICS[metric].task == "classification" else []
    names = list(dict.fromkeys(["accuracy", *wanted]))
    generator = np.random.default_rng(seed)
    if outputs.rows > MOST_ROWS:
        outputs = outputs.take(np.sort(generator.choice(outputs.rows, MOST_ROWS, replace=False)))
    stated = np.asarray(outputs.probability, dtype=np.float64)
    rows, size = stated.shape
    everything = outputs.take(np.repeat(np.arange(rows), size))
    view = View(np.tile(np.asarray(outputs.classes), rows), everything)
    upto = stated.cumsum(axis=1)
    drawn = (generator.random((DRAWS, rows, 1)) * upto[:, -1:] > upto[None]).sum(axis=2)
    weights = np.eye(size)[np.minimum(drawn, size - 1)].reshape(DRAWS, rows * size)
    values = replicate(names, view, weights)
    found = {}
    for name, all_values in values.items():
        spread = all_values[np.isfinite(all_values)]
        if len(spread) < DRAWS // 2:
            continue
        low, high = np.quantile(spread, [0.025, 0.975])
        found[name + SUFFIX] = {
            "value": float(spread.mean()),
            "low": float(low),
            "high": float(high),
            "rows": rows,
            "estimate": True,
        }
    return found
