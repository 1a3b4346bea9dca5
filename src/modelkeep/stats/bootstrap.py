"""Intervals for metrics by resampling rows (Efron and Tibshirani 1993, chapters 13 and 14).

A resample is a vector of counts: how often each row was drawn. Metrics take a matrix of such vectors, so orders
and codes are computed once for all replicates and memory stays bounded. Equal seeds give equal intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from scipy.special import ndtr, ndtri

from modelkeep.core.errors import Invalid
from modelkeep.stats.metrics import replicate
from modelkeep.stats.outputs import Array, Floats, Outputs, View

Method = Literal["percentile", "bca"]
Rows = Callable[[Floats], dict[str, Floats]]
CELLS = 2_000_000
"""Weights held at once: 16 MB."""
GROUPS = 100
"""Groups of the jackknife behind BCa's acceleration."""


@dataclass(frozen=True)
class Estimate:
    """A value with its interval.

    Attributes:
        value: On the rows as they are.
        low: Lower end.
        high: Upper end. Both NaN when too few resamples define the metric.
        rows: How many rows it rests on.
        error: Bootstrap standard error.
    """

    value: float
    low: float
    high: float
    rows: int
    error: float = float("nan")


def interval(
    name: str,
    y: Array,
    outputs: Outputs,
    *,
    confidence: float = 0.95,
    replicates: int = 200,
    seed: int = 0,
    method: Method = "percentile",
) -> Estimate:
    """One metric with its interval; see ``intervals``."""
    many = partial(intervals, confidence=confidence, replicates=replicates, seed=seed, method=method)
    return many([name], y, outputs)[name]


def intervals(
    names: Sequence[str],
    y: Array,
    outputs: Outputs,
    *,
    confidence: float = 0.95,
    replicates: int = 200,
    seed: int = 0,
    method: Method = "percentile",
) -> dict[str, Estimate]:
    """Several metrics with their intervals, on the same resamples.

    Args:
        names: Metrics of the catalogue.
        y: Truth, (n,).
        outputs: Answers for the same rows.
        confidence: Coverage aimed at, in (0, 1).
        replicates: Resamples. 200 serve reports; use 1000 or more for BCa or confidence above 0.99.
        seed: Of the resamples.
        method: ``percentile``, or ``bca`` (bias-corrected and accelerated, Efron 1987), whose acceleration comes
            from a jackknife over at most 100 groups of rows.

    Raises:
        Invalid: Unknown metric, unequal lengths, confidence outside (0, 1).
    """
    view = View(y, outputs)
    work = partial(replicate, names, view)
    return _estimates(work, len(view.y), confidence=confidence, replicates=replicates, seed=seed, method=method)


def paired(
    name: str,
    y: Array,
    a: Outputs,
    b: Outputs,
    *,
    confidence: float = 0.95,
    replicates: int = 200,
    seed: int = 0,
    method: Method = "percentile",
) -> Estimate:
    """The difference metric(a) - metric(b) over the same rows; see ``paired_many``."""
    many = partial(paired_many, confidence=confidence, replicates=replicates, seed=seed, method=method)
    return many([name], y, a, b)[name]


def paired_many(
    names: Sequence[str],
    y: Array,
    a: Outputs,
    b: Outputs,
    *,
    confidence: float = 0.95,
    replicates: int = 200,
    seed: int = 0,
    method: Method = "percentile",
) -> dict[str, Estimate]:
    """Differences of several metrics between two models, both evaluated on each resample.

    What is hard for both models cancels out, so the interval is far narrower than that of two separate ones.
    Arguments and errors as for ``intervals``.
    """
    one, two = View(y, a), View(y, b)

    def differences(weights: Floats) -> dict[str, Floats]:
        left, right = replicate(names, one, weights), replicate(names, two, weights)
        return {name: left[name] - right[name] for name in left}

    return _estimates(
        differences, len(one.y), confidence=confidence, replicates=replicates, seed=seed, method=method
    )


def _estimates(
    evaluate: Rows, rows: int, *, confidence: float, replicates: int, seed: int, method: Method
) -> dict[str, Estimate]:
    if not 0 < confidence < 1:
        raise Invalid(f"confidence is {confidence}; expected a share between 0 and 1, such as 0.95")
    whole = {name: float(values[0]) for name, values in evaluate(np.ones((1, rows))).items()}
    nan = float("nan")
    if rows < 2 or replicates < 2:
        return {name: Estimate(value, nan, nan, rows) for name, value in whole.items()}
    drawn = _collect(evaluate, _resamples(rows, replicates, seed))
    left_out = _collect(evaluate, _jackknife(rows, seed)) if method == "bca" else {}
    found = {}
    for name, value in whole.items():
        values = drawn[name][np.isfinite(drawn[name])]
        if not np.isfinite(value) or len(values) < max(2, replicates // 2):
            found[name] = Estimate(value, nan, nan, rows)
            continue
        tails = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
        if method == "bca":
            tails = _bca(tails, value, values, left_out[name])
        low, high = np.quantile(values, tails)
        found[name] = Estimate(value, float(low), float(high), rows, float(values.std(ddof=1)))
    return found


def _collect(evaluate: Rows, batches: Iterable[Floats]) -> dict[str, Floats]:
    parts = [evaluate(weights) for weights in batches]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _resamples(rows: int, replicates: int, seed: int) -> Iterator[Floats]:
    """Counts of n draws with replacement, (R, n) in bounded batches."""
    generator = np.random.default_rng(seed)
    step = max(1, min(replicates, CELLS // rows))
    for start in range(0, replicates, step):
        weights = np.empty((min(step, replicates - start), rows))
        for row in weights:
            row[:] = np.bincount(generator.integers(0, rows, rows), minlength=rows)
        yield weights


def _jackknife(rows: int, seed: int) -> Iterator[Floats]:
    """All rows but one group, for each group."""
    groups = min(GROUPS, rows)
    member = np.random.default_rng(seed).permutation(rows) % groups
    step = max(1, min(groups, CELLS // rows))
    for start in range(0, groups, step):
        left_out = np.arange(start, min(start + step, groups))
        yield (member != left_out[:, None]).astype(np.float64)


def _bca(tails: Floats, value: float, drawn: Floats, left_out: Floats) -> Floats:
    """Move the tails for bias and for how the standard error changes with the value (Efron 1987, section 4)."""
    below = np.mean(drawn < value) + np.mean(drawn == value) / 2
    bias = ndtri(np.clip(below, 0.5 / len(drawn), 1 - 0.5 / len(drawn)))
    influence = np.nanmean(left_out) - left_out[np.isfinite(left_out)]
    scale = 6 * float(np.sum(influence**2)) ** 1.5
    acceleration = float(np.sum(influence**3)) / scale if scale > 0 else 0.0
    moved = bias + ndtri(tails)
    return np.asarray(ndtr(bias + moved / (1 - acceleration * moved)))
