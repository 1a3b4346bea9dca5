"""Tests that may be looked at as often as one likes: the chance of ever being wrong is bounded, not that per look.

Each is an e-process: a quantity that starts at 1 and, while the hypothesis holds, has expectation at most 1 at any
stopping time. By Ville's inequality (1939) it ever reaches 1 / alpha with probability at most alpha. See Robbins
(1970) for mixtures, Howard, Ramdas, McAuliffe and Sekhon (2021) for confidence sequences, Wasserman, Ramdas and
Balakrishnan (2020) for universal inference. All functions need only totals so far.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import betaincc, betaln

from modelkeep.core.errors import Invalid

PRIOR = 0.5
"""Both parameters of the beta prior of all mixtures (Jeffreys)."""


@dataclass(frozen=True)
class Moments:
    """Count, mean and variance of what was seen so far."""

    count: int
    mean: float
    variance: float


def evidence_above(bad: int, total: int, bound: float) -> float:
    """Logarithm of the evidence (e-value) that a proportion is above ``bound``.

    The mixture of likelihood ratios p against ``bound`` over p > bound, weighted by Jeffreys' prior cut off there.
    For every true proportion at or below the bound each ratio is a supermartingale, so the mixture is one too:
    exact for any number of looks.

    Args:
        bad: Events so far.
        total: Trials so far.
        bound: Share in [0, 1].

    Raises:
        Invalid: More events than trials, or a bound outside [0, 1].
    """
    _check(bad, total)
    if not 0 <= bound <= 1:
        raise Invalid(f"bound is {bound}; expected a share between 0 and 1")
    if total == 0 or bound == 1:
        return 0.0
    if bound == 0:
        return math.inf if bad else 0.0
    good = total - bad
    tail, prior_tail = betaincc(PRIOR + bad, PRIOR + good, bound), betaincc(PRIOR, PRIOR, bound)
    if tail == 0:
        return -math.inf
    mixture = betaln(PRIOR + bad, PRIOR + good) + math.log(tail) - betaln(PRIOR, PRIOR) - math.log(prior_tail)
    return float(mixture - _likelihood(bad, good, bound))


def exceeds(bad: int, total: int, bound: float, *, alpha: float = 0.001) -> bool:
    """Whether a proportion is above ``bound``; wrong with probability at most ``alpha`` over all looks."""
    return evidence_above(bad, total, bound) >= -math.log(alpha)


def proportion(bad: int, total: int, *, alpha: float = 0.05) -> tuple[float, float]:
    """Confidence sequence of a proportion: covers the truth at all looks together with 1 - alpha.

    All p for which the beta-binomial mixture's likelihood ratio against p stays below 1 / alpha.
    """
    _check(bad, total)
    if total == 0:
        return 0.0, 1.0
    good, seen = total - bad, bad / total
    mixture = betaln(PRIOR + bad, PRIOR + good) - betaln(PRIOR, PRIOR)

    def excess(p: float) -> float:
        return float(mixture - _likelihood(bad, good, p) + math.log(alpha))

    tiny = 1e-12
    low = 0.0 if bad == 0 or excess(tiny) < 0 else brentq(excess, tiny, max(seen, tiny * 2))
    high = 1.0 if good == 0 or excess(1 - tiny) < 0 else brentq(excess, min(seen, 1 - tiny * 2), 1 - tiny)
    return float(low), float(high)


def evidence_worse(bad_a: int, total_a: int, bad_b: int, total_b: int, *, margin: float = 0.0) -> float:
    """Logarithm of the evidence that the proportion of a is above that of b by more than ``margin``.

    Universal inference: the likelihood of both counts under a beta mixture, over the greatest of any pair with
    p_a <= p_b + margin. Exact for any number of looks and any division of traffic.

    Raises:
        Invalid: More events than trials, or a margin outside [0, 1).
    """
    _check(bad_a, total_a)
    _check(bad_b, total_b)
    if not 0 <= margin < 1:
        raise Invalid(f"margin is {margin}; expected a share of at least 0 and below 1")
    if total_a == 0 or total_b == 0:
        return 0.0
    counts = ((bad_a, total_a - bad_a), (bad_b, total_b - bad_b))
    mixture = sum(betaln(PRIOR + bad, PRIOR + good) - betaln(PRIOR, PRIOR) for bad, good in counts)
    best_a, best_b = bad_a / total_a, bad_b / total_b
    if best_a > best_b + margin:
        best_b = _boundary(counts, margin)
        best_a = best_b + margin
    return float(mixture - _likelihood(*counts[0], best_a) - _likelihood(*counts[1], best_b))


def worse(
    bad_a: int, total_a: int, bad_b: int, total_b: int, *, margin: float = 0.0, alpha: float = 0.001
) -> bool:
    """Whether a fails more often than b by more than ``margin``; wrong at most with ``alpha`` over all looks."""
    return evidence_worse(bad_a, total_a, bad_b, total_b, margin=margin) >= -math.log(alpha)


def difference(a: Moments, b: Moments, *, alpha: float = 0.05, tightest: int = 1000) -> tuple[float, float]:
    """Confidence sequence of mean(a) - mean(b).

    The normal mixture of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas (2024): valid at all looks together in
    the limit of large counts (start looking at a hundred of each), for any distribution with a variance.

    Args:
        tightest: Rows at which the interval is narrowest relative to a fixed-sample one.

    Returns:
        Lower and upper end; infinite below two rows of each.
    """
    if min(a.count, b.count) < 2:
        return -math.inf, math.inf
    centre = a.mean - b.mean
    squared_error = a.variance / a.count + b.variance / b.count
    rows = 1 / (1 / a.count + 1 / b.count)
    log_alpha = -2 * math.log(alpha)
    rho2 = (log_alpha + math.log(log_alpha + 1)) / tightest
    grown = rows * rho2 + 1
    width = math.sqrt(squared_error * grown / (rows * rho2) * (math.log(grown) + log_alpha))
    return centre - width, centre + width


def _likelihood(bad: int, good: int, p: float) -> float:
    """Logarithm of p^bad (1 - p)^good, with 0^0 = 1."""
    if (bad and p <= 0) or (good and p >= 1):
        return -math.inf
    return (bad * math.log(p) if bad else 0.0) + (good * math.log1p(-p) if good else 0.0)


def _boundary(counts: tuple[tuple[int, int], tuple[int, int]], margin: float) -> float:
    """The likeliest p_b with p_a = p_b + margin."""
    (bad_a, good_a), (bad_b, good_b) = counts
    if margin == 0:
        return (bad_a + bad_b) / (bad_a + good_a + bad_b + good_b)

    def slope(p: float) -> float:
        q = p + margin
        return bad_a / q - good_a / (1 - q) + bad_b / p - good_b / (1 - p)

    low, high = 1e-12, 1 - margin - 1e-12
    if slope(low) <= 0:
        return low
    return high if slope(high) >= 0 else float(brentq(slope, low, high))


def _check(bad: int, total: int) -> None:
    if not 0 <= bad <= total:
        raise Invalid(f"{bad} events in {total} trials; expected at most as many events as trials")


def moments(values: np.typing.ArrayLike) -> Moments:
    """Count, mean and sample variance of numbers."""
    found = np.asarray(values, dtype=np.float64)
    variance = float(found.var(ddof=1)) if len(found) > 1 else float("nan")
    return Moments(len(found), float(found.mean()) if len(found) else float("nan"), variance)
