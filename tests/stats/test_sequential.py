import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.stats import sequential


def ever_alarms(p: float, bound: float, alpha: float, length: int, seed: int) -> bool:
    bad = np.random.default_rng(seed).random(length) < p
    counts = np.cumsum(bad)
    looks = range(1, length + 1, 7)
    return any(sequential.exceeds(int(counts[n - 1]), n, bound, alpha=alpha) for n in looks)


def test_promises_that_hold_are_rarely_doubted_over_all_looks():
    alarms = sum(ever_alarms(0.05, 0.05, 0.05, 1500, seed) for seed in range(200))
    assert alarms <= 200 * 0.05 + 3 * math.sqrt(200 * 0.05 * 0.95)


def test_broken_promises_are_found():
    assert all(ever_alarms(0.10, 0.01, 0.001, 600, seed) for seed in range(20))


@pytest.mark.parametrize("bad, total", [(0, 0), (0, 1000), (5, 1000)])
def test_no_doubt_without_reason(bad, total):
    assert not sequential.exceeds(bad, total, 0.01)


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.floats(0.001, 0.999))
def test_the_evidence_is_the_integral(bad, good, bound):
    value = sequential.log_evidence(bad, bad + good, bound)
    assert not math.isnan(value)
    more = sequential.log_evidence(bad + 1, bad + good + 1, bound)
    assert more >= value - 1e-9  # one more event is never evidence for the promise


def test_the_closed_form_equals_numerical_integration():
    bad, good, bound = 7, 60, 0.05
    p = np.linspace(bound, 1, 200_001)[1:-1]
    log_ratio = bad * np.log(p / bound) + good * np.log((1 - p) / (1 - bound))
    integral = np.exp(log_ratio).mean()
    assert math.isclose(math.exp(sequential.log_evidence(bad, bad + good, bound)), integral, rel_tol=1e-3)
