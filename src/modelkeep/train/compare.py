"""Champion against challenger: paired differences on the same frozen rows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from msgspec import Struct

from modelkeep.stats.bootstrap import paired_many
from modelkeep.stats.metrics import replicate
from modelkeep.stats.outputs import Outputs, View
from modelkeep.train.evaluate import Interval, metric_names
from modelkeep.train.slices import groups

CONFIDENCE = 0.90
"""Of the two-sided interval, so that each end by itself is a one-sided 95% bound."""


class Comparison(Struct, frozen=True, kw_only=True):
    """Challenger minus champion. JSON-able.

    Attributes:
        rows: How many rows, the same for both.
        confidence: Of every two-sided interval; each end is a one-sided bound at ``(1 + confidence) / 2``.
        metrics: The difference by metric.
        champion: The champion's own value by metric.
        slices: By column and value the differences within the slice.
    """

    rows: int
    confidence: float
    metrics: dict[str, Interval]
    champion: dict[str, float | None] = {}
    slices: dict[str, dict[str, dict[str, Interval]]] = {}


def compare(
    y: npt.NDArray[Any],
    champion: Outputs,
    challenger: Outputs,
    task: str,
    metrics: Sequence[str] = (),
    *,
    table: pa.Table | None = None,
    slices: Sequence[str] = (),
    replicates: int = 400,
    seed: int = 0,
) -> Comparison:
    """The difference challenger - champion, both evaluated on each resample of the same rows.

    Args:
        y: Truth (n,).
        champion: Its answers.
        challenger: Its answers.
        task: Of both.
        metrics: Which; empty takes all that both models' answers allow.
        table: The same rows, for the slice columns.
        slices: Columns to compare within.
        replicates: Bootstrap resamples. More than for reports, since gates read the 5% tail.
        seed: Of the resamples.

    Raises:
        Invalid: Unequal lengths, or a metric the answers of one do not allow.
    """
    both = [name for name in metric_names(task, challenger) if name in metric_names(task, champion)]
    names = [name for name in metrics if name in both] if metrics else both
    work = partial(paired_many, names, confidence=CONFIDENCE, replicates=replicates, seed=seed)
    found = work(y, challenger, champion) if names else {}
    by_column: dict[str, dict[str, dict[str, Interval]]] = {}
    for column in slices if table is not None and names else ():
        by_column[column] = {}
        for value, rows in groups(table, column).items():
            within = work(y[rows], challenger.take(rows), champion.take(rows))
            by_column[column][value] = {name: Interval.of(estimate) for name, estimate in within.items()}
    own = replicate(names, View(y, champion)) if names else {}
    return Comparison(
        rows=len(y),
        confidence=CONFIDENCE,
        metrics={name: Interval.of(estimate) for name, estimate in found.items()},
        champion={name: float(value[0]) if np.isfinite(value[0]) else None for name, value in own.items()},
        slices=by_column,
    )
