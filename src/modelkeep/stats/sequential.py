"""Tests that are valid at every look: watch as long as you like, stop when you like, the error stays bounded.

An e-process is a nonnegative process whose expectation under the null is at most 1 at every stopping time; by
Ville's inequality it ever exceeds 1/alpha with probability at most alpha (Ramdas, Grünwald, Vovk and Shafer 2023,
"Game-theoretic statistics and safe anytime-valid inference").
"""

from __future__ import annotations

import math

from scipy import special


def exceeds(bad: int, total: int, bound: float, *, alpha: float = 0.001) -> bool:
    """Whether the evidence says that a proportion is above ``bound``.

    Args:
        bad: Events among the trials so far, in any order.
        total: Trials so far.
        bound: The proportion promised, in [0, 1].
        alpha: Chance of ever saying so although the proportion is at most ``bound``, over all looks together.
    """
    return log_evidence(bad, total, bound) >= -math.log(alpha)


def log_evidence(bad: int, total: int, bound: float) -> float:
    """Logarithm of the e-value against "the proportion is at most ``bound``".

    The likelihood ratio of p against ``bound`` is a supermartingale for every p above the bound; this is its
    mixture over p uniform on (bound, 1], in closed form by the incomplete beta function.

    Args:
        bad: Events, 0 <= bad <= total.
        total: Trials.
        bound: The proportion promised.
    """
    if total <= 0 or bound >= 1.0:
        return 0.0
    if bound <= 0.0:
        return math.inf if bad else 0.0
    good = total - bad
    tail = special.betaincc(bad + 1, good + 1, bound)
    log_tail = math.log(tail) if tail > 0 else -math.inf
    mixture = special.betaln(bad + 1, good + 1) + log_tail - math.log1p(-bound)
    return float(mixture - bad * math.log(bound) - good * math.log1p(-bound))
