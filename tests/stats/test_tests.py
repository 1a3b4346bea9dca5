"""Window tests: rates of false alarms with and without day effects, and power."""

import numpy as np
import pytest
from scipy import stats as sp

from modelkeep.stats.tests import benjamini_hochberg, compare, rare, simes, spread

EDGES = sp.norm.ppf(np.arange(1, 10) / 10)


def windows(generator, count, rows, day, shift=0.0, tails=None):
    """Counts in deciles of a normal variable whose mean and scale move from window to window."""
    wander = (
        generator.standard_t(tails, count) * np.sqrt((tails - 2) / tails)
        if tails
        else generator.normal(size=count)
    )
    place, scale = shift + day * wander, np.exp(day / 2 * generator.normal(size=count))
    upto = sp.norm.cdf((EDGES - place[:, None]) / scale[:, None])
    shares = np.diff(np.column_stack([np.zeros(count), upto, np.ones(count)]), axis=1)
    return np.array([generator.multinomial(rows, share) for share in shares])


def rate(day, level, *, ordered, reference=30, rows=500, live=500, shift=0.0, trials=60, tails=None):
    generator = np.random.default_rng(1)
    alarms = []
    for _ in range(trials):
        known = spread(windows(generator, reference, rows, day, tails=tails), ordered=ordered)
        alarms += [compare(w, known).p <= level for w in windows(generator, 25, live, day, shift, tails=tails)]
    return float(np.mean(alarms))


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("day", [0.0, 0.3])
def test_false_alarms_stay_at_the_chosen_rate(ordered, day):
    assert rate(day, 0.05, ordered=ordered) <= 0.065  # 0.05 and two standard errors of correlated trials
    assert rate(day, 0.01, ordered=ordered) <= 0.016


def test_small_reference_windows_do_not_make_large_windows_drift():
    assert rate(0.0, 0.01, ordered=True, rows=50, live=5000) <= 0.01


def test_heavy_tailed_days_stay_near_the_rate():
    assert rate(0.3, 0.01, ordered=True, tails=5) <= 0.02


@pytest.mark.parametrize("ordered", [True, False])
def test_real_shifts_are_found(ordered):
    assert rate(0.0, 0.001, ordered=ordered, shift=0.4, trials=10) > 0.95
    assert rate(0.15, 0.001, ordered=ordered, shift=1.2, trials=10) > 0.95


def test_a_classical_test_would_cry_wolf_on_day_effects():
    generator = np.random.default_rng(2)
    cried = [sp.chisquare(w, np.full(10, 50.0)).pvalue <= 0.01 for w in windows(generator, 200, 500, 0.3)]
    assert np.mean(cried) > 0.5


def test_independent_rows_agree_with_pearson():
    generator = np.random.default_rng(3)
    share = np.array([0.4, 0.3, 0.2, 0.1])
    known = spread(generator.multinomial(100_000, share, 50), ordered=False)
    seen = np.array([420, 310, 180, 90])
    pearson = sp.chisquare(seen, known.counts / known.counts.sum() * 1000).pvalue
    assert compare(seen, known).p == pytest.approx(pearson, rel=0.35)


def test_nothing_to_compare_is_no_alarm():
    known = spread([[10, 0], [12, 0]], ordered=True)
    assert compare([5, 0], known).p == 1.0
    assert compare([0, 0], known).p == 1.0
    assert compare([1, 2], spread(np.zeros((3, 2)), ordered=False)).p == 1.0
    assert rare(0, 0, [1], [10]).p == 1.0


def test_rare_events():
    assert rare(0, 1000, [0] * 20, [1000] * 20).p == 1.0
    assert rare(1, 1000, [0] * 20, [1000] * 20).p > 0.01
    assert rare(60, 1000, [0] * 20, [1000] * 20).p < 1e-6
    calm, wild = [10] * 20, [0, 0, 0, 0, 50] * 4
    assert rare(40, 1000, calm, [1000] * 20).p < 1e-6
    assert rare(40, 1000, wild, [1000] * 20).p > 0.01


def test_rare_events_stay_at_the_rate():
    generator = np.random.default_rng(4)
    alarms = []
    for _ in range(200):
        base = generator.gamma(4, 0.01 / 4, 40)
        seen = generator.binomial(1000, base)
        alarms += [rare(int(n), 1000, seen[:30], [1000] * 30).p <= 0.01 for n in seen[30:]]
    assert np.mean(alarms) <= 0.015


def test_simes_and_benjamini_hochberg_agree():
    generator = np.random.default_rng(5)
    for _ in range(200):
        p = generator.random(8) ** 3
        assert any(benjamini_hochberg(p, 0.05)) == (simes(p) <= 0.05)
    assert benjamini_hochberg([0.001, 0.5, 0.02], 0.05) == [True, False, True]
    assert benjamini_hochberg([], 0.05) == []
    assert simes([]) == 1.0
    nothing = [simes(generator.random(10)) <= 0.05 for _ in range(2000)]
    assert 0.035 <= np.mean(nothing) <= 0.065
