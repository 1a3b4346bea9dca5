"""Does this window differ from the reference more than honest windows differ from each other?

Windows are not independent draws from one table: days differ. So the reference is itself cut into windows, and a
window is judged against their spread (quasi-likelihood; McCullagh and Nelder 1989, section 4.5).

**Model.** Window j has n_j rows in K cells with shares p_j = p + u_j, where u_j is the window's own deviation with
covariance T. Given u_j the counts are multinomial, so

    Cov(observed share) = (diag(p) - p p') / n_j + T.

T comes from the reference windows by the moment estimator of one-way analysis of variance. For independent rows
T is near 0 and the test is the classical one.

**Statistic.** Q = |L (observed - p)|^2. For ordered cells L accumulates and weights by 1 / sqrt(F (1 - F)): the
binned Anderson-Darling statistic (Choulakian, Lockhart and Stephens 1994), strong against shifts. For unordered
cells L weights by 1 / sqrt(p): Pearson's chi-square divided by n. Rare cells are pooled until 5 rows are expected.

**Null distribution.** With V = L Cov L', E Q = tr V and Var Q = 2 tr V^2, so Q / tr V is close to chi-square / nu
with nu = (tr V)^2 / tr V^2 (Satterthwaite 1946). Where the reference windows scatter more unevenly than that
(storms, holidays), nu is lowered to fit their variance. Since V was estimated, Q / tr V is referred to F(nu, d):
d counts what B windows tell about V, at most (B - 1) nu, and at most 12 for the part of V that is the windows' own
(d grows as that part shrinks), because few windows, and windows with tails heavier than a Gaussian's, err upwards.

Measured at a chosen 0.001 with 10 / 30 / 100 reference windows of 500 rows: independent rows 0.0003 / 0.0010 /
0.0014, Gaussian day effects 0.0014 / 0.0002 / 0.0000 (ordered cells). The limit: day effects as heavy-tailed as
Student's t with 3 degrees of freedom give 0.012 / 0.007 / 0.004, for such days are rarely in a short reference.

**Many columns.** Simes' test (1986) bounds the chance of any alarm in a window by the chosen rate; the procedure
of Benjamini and Hochberg (1995) names the columns. Both hold for independent and positively dependent columns
(Benjamini and Yekutieli 2001).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from modelkeep.stats.outputs import Floats, Ints

FEWEST_EXPECTED = 5.0
MOST_KNOWN = 12.0
"""Most degrees of freedom granted to the spread between windows: days have heavier tails than a Gaussian."""


@dataclass(frozen=True)
class Spread:
    """Counts of a reference in K cells, and how its windows differ from each other.

    Attributes:
        counts: (K,) over all reference windows.
        covariance: (K, K) of the windows' own deviations of the shares: T above, not yet made positive.
        windows: Effective number of reference windows, (sum n)^2 / sum n^2.
        unevenness: Variance of the windows' Q / E Q; NaN when unknown.
        ordered: Whether the cells have an order.
    """

    counts: Floats
    covariance: Floats
    windows: float
    unevenness: float
    ordered: bool


@dataclass(frozen=True)
class Test:
    """The answer of one test.

    Attributes:
        statistic: Q / E Q: 1 is what honest windows give on average. For rare events observed / expected.
        p: Chance of at least this much when nothing changed.
        distance: Size of the change in [0, 1] whatever the rows: largest difference of the cumulative shares for
            ordered cells (Kolmogorov), half the sum of absolute differences for others (total variation).
    """

    statistic: float
    p: float
    distance: float

    __test__ = False


NOTHING = Test(0.0, 1.0, 0.0)


def spread(counts: npt.ArrayLike, *, ordered: bool) -> Spread:
    """Measure how reference windows differ.

    Args:
        counts: (B, K) rows of each of B windows in each of K cells. Empty windows are ignored.
        ordered: Whether the cells have an order.
    """
    table = np.asarray(counts, dtype=np.float64)
    table = table[table.sum(axis=1) > 0]
    total, rows = table.sum(axis=0), table.sum(axis=1)
    all_rows = rows.sum()
    if all_rows == 0:
        return Spread(total, np.zeros((len(total), len(total))), 0.0, float("nan"), ordered)
    share, size = total / all_rows, all_rows - (rows**2).sum() / all_rows
    windows = float(all_rows**2 / (rows**2).sum())
    if len(table) < 2:
        return Spread(total, np.zeros((len(share), len(share))), windows, float("nan"), ordered)
    off = table / rows[:, None] - share
    between = (off * rows[:, None]).T @ off
    covariance = (between - (len(table) - 1) * _multinomial(share)) / size
    found = Spread(total, covariance, windows, float("nan"), ordered)
    return Spread(total, covariance, windows, _unevenness(found, table, rows, off), ordered)


def _unevenness(found: Spread, table: Floats, rows: Floats, off: Floats) -> float:
    """Variance over the reference windows of Q / E Q, each window weighted by its rows."""
    typical = float(rows.mean())
    pool = _pool(found.counts, typical, found.ordered)
    share = pool @ found.counts / found.counts.sum()
    weigh = _lens(share, found.ordered) @ pool
    squares = ((off @ weigh.T) ** 2).sum(axis=1)
    noise = np.trace(weigh @ _multinomial(found.counts / found.counts.sum()) @ weigh.T)
    own = max(float(np.trace(weigh @ found.covariance @ weigh.T)), 0.0)
    expected = noise * (1 / rows - 1 / rows.sum()) + own * (1 - 1 / found.windows)
    if len(table) < 3 or expected.min() <= 1e-12:  # so few rows that all cells were pooled: nothing can differ
        return float("nan")
    ratio = squares / expected
    mean = np.average(ratio, weights=rows)
    return float(np.average((ratio - mean) ** 2, weights=rows) / max(mean**2, 1e-300))


def compare(counts: npt.ArrayLike, reference: Spread) -> Test:
    """Test one window against the reference.

    Args:
        counts: (K,) rows of the window in each cell.

    Returns:
        The test; p is 1 when there is nothing to compare (no rows, or a single cell).
    """
    seen = np.asarray(counts, dtype=np.float64)
    rows, all_rows = seen.sum(), reference.counts.sum()
    if rows == 0 or all_rows == 0:
        return NOTHING
    pool = _pool(reference.counts, min(rows, all_rows), reference.ordered)
    if len(pool) < 2:
        return NOTHING
    share = pool @ reference.counts / all_rows
    off = pool @ seen / rows - share
    weigh = _lens(share, reference.ordered)
    noise = weigh @ _multinomial(share) @ weigh.T
    own = _positive(weigh @ pool @ reference.covariance @ pool.T @ weigh.T, noise, reference, rows)
    spread_of_window = noise * (1 / rows + 1 / all_rows) + own * (1 + 1 / max(reference.windows, 1))
    mean = float(np.trace(spread_of_window))
    pieces = mean**2 / float((spread_of_window**2).sum())
    if np.isfinite(reference.unevenness) and own.any():
        pieces = min(pieces, 2 / max(reference.unevenness, 1e-9))
    statistic = float((weigh @ off) @ (weigh @ off)) / mean
    free = max(reference.windows - 1, 0.5)
    known = min(free * min(pieces, 1.0), MOST_KNOWN) * (mean / max(float(np.trace(own)), 1e-9 * mean)) ** 2
    p = float(stats.f.sf(statistic, pieces, min(free * pieces, known)))
    plain = seen / rows - reference.counts / all_rows
    distance = np.abs(np.cumsum(plain)).max() if reference.ordered else np.abs(plain).sum() / 2
    return Test(statistic, p, float(distance))


def _positive(own: Floats, noise: Floats, reference: Spread, rows: float) -> Floats:
    """The spread between windows as a covariance: no negative directions, the estimated total kept.

    A window much larger than the reference windows sees differences these were too small to show; it is given the
    estimate's own standard error in addition, in proportion.
    """
    size = float(reference.counts.sum()) / max(reference.windows, 1)
    error = float(np.sqrt(2 * (noise**2).sum() / max(reference.windows - 1, 1))) / size
    total = max(float(np.trace(own)), 0.0) + max(0.0, 1 - size / rows) * error
    values, vectors = np.linalg.eigh(own)
    values = np.maximum(values, 0)
    if total <= 0:
        return np.zeros_like(own)
    if values.sum() <= 0:
        return np.asarray(noise * (total / np.trace(noise)))
    return np.asarray((vectors * (values * total / values.sum())) @ vectors.T)


def _multinomial(share: Floats) -> Floats:
    return np.asarray(np.diag(share) - np.outer(share, share))


def _lens(share: Floats, ordered: bool) -> Floats:
    if not ordered:
        return np.asarray(np.diag(1 / np.sqrt(share)))
    upto = np.cumsum(share)[:-1]
    weight = np.sqrt((share[:-1] + share[1:]) / 2 / (upto * (1 - upto)))
    return np.asarray(weight[:, None] * np.tri(len(share) - 1, len(share)))


def _pool(counts: Floats, rows: float, ordered: bool) -> Floats:
    """(G, K) zeros and ones: which cells are joined so that each joint one expects enough rows."""
    expected = counts / counts.sum() * rows
    order = np.arange(len(counts)) if ordered else np.argsort(expected, kind="stable")
    group = np.zeros(len(counts), dtype=np.int64)
    held, number = 0.0, 0
    for cell in order:
        group[cell] = number
        held += expected[cell]
        if held >= FEWEST_EXPECTED:
            held, number = 0.0, number + 1
    if held > 0 or (number > 0 and (group == number).any()):
        group[group == number] = max(number - 1, 0)  # what is left joins its neighbour
    return np.equal.outer(np.arange(int(group.max()) + 1), group).astype(np.float64)


def rare(count: int, rows: int, reference: npt.ArrayLike, reference_rows: npt.ArrayLike) -> Test:
    """Whether something that should be rare (missing values, unseen categories) became more frequent.

    The share in honest windows follows a beta distribution whose mean and spread come from the reference windows,
    with half an event added (Jeffreys) and two standard errors added to the variance; the window's count is then
    beta-binomial.

    Args:
        count: Events in the window.
        rows: Rows of the window.
        reference: (B,) events in each reference window.
        reference_rows: (B,) rows of each.
    """
    events, sizes = np.asarray(reference, dtype=np.float64), np.asarray(reference_rows, dtype=np.float64)
    events, sizes = events[sizes > 0], sizes[sizes > 0]
    if rows == 0 or len(sizes) == 0:
        return NOTHING
    total = sizes.sum()
    share = (events.sum() + 0.5) / (total + 1)
    strength = total + 1
    if len(sizes) > 1:
        weight = total - (sizes**2).sum() / total
        mean = events.sum() / total
        between = (sizes * (events / sizes - mean) ** 2).sum() - (len(sizes) - 1) * mean * (1 - mean)
        variance = max(between / weight, 0.0) * (1 + 2 * np.sqrt(2 / (len(sizes) - 1)))
        variance += share * (1 - share) / total
        strength = min(strength, max(share * (1 - share) / variance - 1, 1e-3))
    p = float(stats.betabinom.sf(count - 1, rows, share * strength, (1 - share) * strength)) if count else 1.0
    return Test(float(count / (rows * share)), min(max(p, 0.0), 1.0), max(0.0, float(count / rows - share)))


def simes(p: Sequence[float]) -> float:
    """One p-value for "nothing changed in any of them" (Simes 1986); 1 for none."""
    ordered = np.sort(np.asarray(p, dtype=np.float64))
    if len(ordered) == 0:
        return 1.0
    return float(min(1.0, (ordered * len(ordered) / np.arange(1, len(ordered) + 1)).min()))


def benjamini_hochberg(p: Sequence[float], rate: float) -> list[bool]:
    """Which of them changed, with a share of false ones of at most ``rate``.

    Some is named exactly if ``simes(p) <= rate``.
    """
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    passed: Ints = np.flatnonzero(values[order] <= rate * np.arange(1, len(values) + 1) / max(len(values), 1))
    named = np.zeros(len(values), dtype=bool)
    if len(passed):
        named[order[: passed[-1] + 1]] = True
    return [bool(one) for one in named]
