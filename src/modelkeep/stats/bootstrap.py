"""Intervals for metrics by resampling rows (Efron and Tibshirani 1993, chapters 13 and 14).

A resample is a vector of counts: how often each row was drawn. Metrics take a matrix of such vectors, so orders
and codes are computed once for all replicates and memory stays bounded. Equal seeds give equal intervals.

Of more than ``MANY`` rows the intervals come from little bootstraps (Kleiner, Talwalkar, Sarkar and Jordan 2014,
"A scalable bootstrap for massive data"): resamples as large as the whole, of the rows of a random subset; how far
they fall from the subset's own value is averaged over the subsets and laid around the value of all rows. Counts
are Poisson there, whose sum varies, which cancels in every metric of the catalogue.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
from scipy.special import ndtr, ndtri, pdtr

from modelkeep.core.errors import Invalid
from modelkeep.stats.metrics import get, replicate
from modelkeep.stats.outputs import Array, Floats, Outputs, View

Method = Literal["percentile", "bca"]
Rows = Callable[[Floats], dict[str, Floats]]
CELLS = 2_000_000
"""Weights held at once: 16 MB."""
GROUPS = 100
"""Groups of the jackknife behind BCa's acceleration."""
LITTLE, SUBSETS = 200_000, 2
"""Rows of a little bootstrap, and how many there are."""
MANY = LITTLE * SUBSETS


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
    y = np.asarray(y)

    def answers(rows: Array | None) -> Rows:
        return partial(replicate, names, _view(y, outputs, rows))

    found = _estimates(answers, len(y), confidence=confidence, replicates=replicates, seed=seed, method=method)
    return {name: _possible(name, estimate) for name, estimate in found.items()}


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
    y = np.asarray(y)

    def differences(rows: Array | None) -> Rows:
        one, two = _view(y, a, rows), _view(y, b, rows)

        def difference(weights: Floats) -> dict[str, Floats]:
            left, right = replicate(names, one, weights), replicate(names, two, weights)
            return {name: left[name] - right[name] for name in left}

        return difference

    return _estimates(differences, len(y), confidence=confidence, replicates=replicates, seed=seed, method=method)


def _view(y: Array, outputs: Outputs, rows: Array | None) -> View:
    return View(y, outputs) if rows is None else View(y[rows], outputs.take(rows))


def _estimates(
    answers: Callable[[Array | None], Rows],
    rows: int,
    *,
    confidence: float,
    replicates: int,
    seed: int,
    method: Method,
) -> dict[str, Estimate]:
    """``answers`` gives the metrics of these rows, or of all, by weights."""
    if not 0 < confidence < 1:
        raise Invalid(f"confidence is {confidence}; expected a share between 0 and 1, such as 0.95")
    evaluate = answers(None)
    whole = _values(evaluate, rows)
    nan = float("nan")
    if rows < 2 or replicates < 2:
        return {name: Estimate(value, nan, nan, rows) for name, value in whole.items()}
    tails = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
    if rows > MANY and method == "percentile":
        del evaluate  # what it derived from all rows
        return _little(answers, whole, rows, tails, replicates, seed)
    drawn = _collect(evaluate, _resamples(rows, replicates, seed))
    left_out = _collect(evaluate, _jackknife(rows, seed)) if method == "bca" else {}
    found = {}
    for name, value in whole.items():
        values = _defined(value, drawn[name])
        if values is None:
            found[name] = Estimate(value, nan, nan, rows)
            continue
        ends = _bca(tails, value, values, left_out[name]) if method == "bca" else tails
        low, high = np.quantile(values, ends)
        found[name] = Estimate(value, float(low), float(high), rows, float(values.std(ddof=1)))
    return found


def _little(
    answers: Callable[[Array | None], Rows],
    whole: dict[str, float],
    rows: int,
    tails: Floats,
    replicates: int,
    seed: int,
) -> dict[str, Estimate]:
    """The mean over subsets of how far resamples as large as the whole fall from a subset's own value."""
    generator = np.random.default_rng(seed)
    spreads: dict[str, list[Floats]] = {name: [] for name in whole}
    for subset in generator.choice(rows, (SUBSETS, LITTLE), replace=False, shuffle=False):
        evaluate = answers(subset)
        own = _values(evaluate, LITTLE)
        drawn = _collect(evaluate, _poisson(generator, rows / LITTLE, replicates))
        for name, value in own.items():
            values = _defined(value, drawn[name])
            if values is not None:
                low, high = np.quantile(values - value, tails)
                spreads[name].append(np.array([low, high, values.std(ddof=1)]))
    found = {}
    for name, value in whole.items():
        if not np.isfinite(value) or len(spreads[name]) < SUBSETS:
            found[name] = Estimate(value, float("nan"), float("nan"), rows)
            continue
        low, high, error = np.mean(spreads[name], axis=0).tolist()
        found[name] = Estimate(value, value + low, value + high, rows, error)
    return found


def _values(evaluate: Rows, rows: int) -> dict[str, float]:
    return {name: float(values[0]) for name, values in evaluate(np.ones((1, rows))).items()}


def _defined(value: float, drawn: Floats) -> Floats | None:
    """What the resamples gave; None where too few of them define the metric."""
    values = drawn[np.isfinite(drawn)]
    return values if np.isfinite(value) and len(values) >= max(2, len(drawn) // 2) else None


def _possible(name: str, estimate: Estimate) -> Estimate:
    """No end beyond the best value there is: 1, or 0 for what is better when lower."""
    if get(name).higher_is_better:
        return replace(estimate, high=min(estimate.high, max(estimate.value, 1.0)))
    return replace(estimate, low=max(estimate.low, min(estimate.value, 0.0)))


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


def _poisson(generator: np.random.Generator, mean: float, replicates: int) -> Iterator[Floats]:
    """Counts of a little bootstrap's rows, (R, ``LITTLE``) in bounded batches.

    Looked up by 16 random bits, in a fifth of the time that drawing takes: the variance is true to a thousandth.
    """
    chances = (np.arange(1 << 16) + 0.5) / (1 << 16)
    counts = np.searchsorted(pdtr(np.arange(mean + 20 * mean**0.5 + 20), mean), chances).astype(np.float64)
    step = max(1, CELLS // LITTLE)
    for start in range(0, replicates, step):
        shape = (min(step, replicates - start), LITTLE)
        yield counts[generator.integers(0, 1 << 16, shape, np.uint16)]


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
