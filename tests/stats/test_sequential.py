"""Error control over all looks together, by simulation; power; exact cases."""

import numpy as np
import pytest

from modelkeep.core.errors import Invalid
from modelkeep.stats.sequential import (
    Moments,
    difference,
    evidence_above,
    evidence_worse,
    exceeds,
    moments,
    proportion,
    worse,
)

LOOKS = np.unique(np.geomspace(5, 3000, 40).astype(int))
TRIALS = 300


def ever(found):
    return float(np.mean([any(one) for one in found]))


def counts(generator, p):
    return (generator.random((TRIALS, LOOKS[-1])) < p).cumsum(axis=1)[:, LOOKS - 1]


def test_a_proportion_at_its_bound_is_rarely_ever_called_above_it():
    seen = counts(np.random.default_rng(1), 0.02)
    rang = ever(
        [exceeds(int(b), int(n), 0.02, alpha=0.1) for b, n in zip(row, LOOKS, strict=True)] for row in seen
    )
    assert rang <= 0.1


def test_the_evidence_has_expectation_at_most_one():
    generator = np.random.default_rng(2)
    for p in (0.005, 0.02):
        drawn = generator.binomial(200, p, 4000)
        values = np.exp([evidence_above(int(bad), 200, 0.02) for bad in drawn])
        assert values.mean() <= 1 + 3 * values.std() / np.sqrt(len(values))


def test_a_proportion_well_above_its_bound_is_found():
    seen = counts(np.random.default_rng(3), 0.06)
    rang = ever(
        [exceeds(int(b), int(n), 0.02, alpha=0.001) for b, n in zip(row, LOOKS, strict=True)] for row in seen
    )
    assert rang > 0.95


def test_edges_of_a_bound():
    assert not exceeds(0, 0, 0.01)
    assert not exceeds(0, 10_000, 0.01)
    assert exceeds(10_000, 10_000, 0.01)
    assert exceeds(1, 5, 0.0)
    assert not exceeds(5, 5, 1.0)
    with pytest.raises(Invalid, match="6 events in 5 trials"):
        exceeds(6, 5, 0.1)
    with pytest.raises(Invalid, match="bound is 2"):
        exceeds(1, 5, 2)


def test_confidence_sequences_of_a_proportion_cover_at_all_looks_together():
    seen = counts(np.random.default_rng(4), 0.3)
    missed = 0
    for row in seen:
        bounds = [proportion(int(b), int(n), alpha=0.1) for b, n in zip(row, LOOKS, strict=True)]
        missed += any(not low <= 0.3 <= high for low, high in bounds)
    assert missed / TRIALS <= 0.1
    assert proportion(0, 0) == (0.0, 1.0)
    low, high = proportion(0, 1000)
    assert low == 0.0
    assert 0 < high < 0.02
    assert proportion(1000, 1000)[1] == 1.0


@pytest.mark.parametrize("margin", [0.0, 0.01])
def test_a_canary_like_the_stable_version_is_rarely_ever_called_worse(margin):
    generator = np.random.default_rng(5)
    a, b = counts(generator, 0.05 + margin), counts(generator, 0.05)
    rang = ever(
        [
            worse(int(x), int(n), int(y), int(n), margin=margin, alpha=0.1)
            for x, y, n in zip(one, two, LOOKS, strict=True)
        ]
        for one, two in zip(a, b, strict=True)
    )
    assert rang <= 0.1


def test_a_worse_canary_is_found_and_a_better_one_never():
    generator = np.random.default_rng(6)
    a, b = counts(generator, 0.12), counts(generator, 0.05)
    last = int(LOOKS[-1])
    assert np.mean([worse(int(x), last, int(y), last) for x, y in zip(a[:, -1], b[:, -1], strict=True)]) > 0.95
    assert not any(worse(int(y), last, int(x), last) for x, y in zip(a[:, -1], b[:, -1], strict=True))
    assert evidence_worse(0, 0, 5, 10) == 0.0
    assert worse(50, 50, 0, 50, margin=0.2)


def test_differences_of_means_cover_at_all_looks_together():
    generator = np.random.default_rng(7)
    looks = LOOKS[LOOKS >= 100]
    missed = 0
    for _ in range(200):
        a, b = generator.gamma(2, 1, looks[-1]), generator.gamma(2, 1, looks[-1])
        bounds = [difference(moments(a[:n]), moments(b[:n]), alpha=0.1) for n in looks]
        missed += any(not low <= 0 <= high for low, high in bounds)
    assert missed / 200 <= 0.1
    low, _ = difference(Moments(2000, 1.2, 1.0), Moments(2000, 1.0, 1.0))
    assert low > 0
    assert difference(Moments(1, 0, 0), Moments(9, 0, 1))[0] == -np.inf
