"""Intervals: coverage by simulation, determinism, pairing."""

import numpy as np
import pytest

from modelkeep.core.errors import Invalid
from modelkeep.stats import bootstrap
from modelkeep.stats.bootstrap import interval, intervals, paired, paired_many
from modelkeep.stats.metrics import Outputs


def draw(generator, rows, gap=1.0):
    y = generator.integers(0, 2, rows)
    score = generator.normal(gap * y, 1)
    probability = 1 / (1 + np.exp(-(score - gap / 2) * gap))
    return y, Outputs(label=(score > gap / 2).astype(int), probability=probability, classes=np.array([0, 1]))


@pytest.fixture
def little(monkeypatch):
    """Little bootstraps for tables of more than 300 rows instead of 400,000."""
    monkeypatch.setattr(bootstrap, "LITTLE", 150)
    monkeypatch.setattr(bootstrap, "MANY", 300)


@pytest.mark.parametrize(("method", "rows"), [("percentile", 300), ("bca", 300), ("percentile", 900)])
def test_intervals_cover_the_truth_as_often_as_they_say(method, rows, little):
    generator = np.random.default_rng(11)
    truth = {"roc_auc": 0.7602499389, "accuracy": 0.6914624613}  # Phi(1/sqrt 2), Phi(1/2)
    covered = dict.fromkeys(truth, 0)
    trials = 150
    for trial in range(trials):
        y, out = draw(generator, rows)
        for name, found in intervals(list(truth), y, out, confidence=0.9, seed=trial, method=method).items():
            covered[name] += found.low <= truth[name] <= found.high
    for name, count in covered.items():
        assert 0.82 <= count / trials <= 0.97, name  # 0.9 plus or minus 3 standard errors of 150 trials


def test_the_error_of_a_mean_is_known():
    generator = np.random.default_rng(1)
    y = generator.normal(size=2000)
    found = interval("mae", y, Outputs(value=np.zeros(2000)), replicates=1000)
    assert found.error == pytest.approx(np.abs(y).std() / np.sqrt(2000), rel=0.1)
    assert found.low < found.value < found.high
    assert found.rows == 2000


def test_little_bootstraps_know_the_error_of_a_mean_and_keep_pairs_and_bounds(little):
    generator = np.random.default_rng(1)
    y = generator.normal(size=6000)
    found = interval("mae", y, Outputs(value=np.zeros(6000)), replicates=400)
    # Each subset knows the spread of the rows to 1 / sqrt(2 * 150), so two of them to a twentieth.
    assert found.error == pytest.approx(np.abs(y).std() / np.sqrt(6000), rel=0.2)
    assert found.low < found.value < found.high
    assert found.value == np.abs(y).mean()
    assert found == interval("mae", y, Outputs(value=np.zeros(6000)), replicates=400)
    truth, a = draw(generator, 2000)
    same = paired_many(["roc_auc", "log_loss", "accuracy"], truth, a, a)
    assert {(one.value, one.low, one.high) for one in same.values()} == {(0.0, 0.0, 0.0)}
    right = Outputs(label=np.where(np.arange(2000) == 7, 1 - truth, truth), classes=np.array([0, 1]))
    assert interval("accuracy", truth, right).high <= 1.0
    rare = np.arange(2000) == 7  # none in either subset: not known, rather than surely 0
    assert np.isnan(interval("recall", rare.astype(int), right).low)


def test_equal_seeds_give_equal_intervals_whatever_else_is_asked():
    y, out = draw(np.random.default_rng(2), 500)
    alone = interval("roc_auc", y, out, seed=5)
    assert alone == intervals(["f1", "roc_auc", "log_loss"], y, out, seed=5)["roc_auc"]
    assert alone != interval("roc_auc", y, out, seed=6)


def test_pairing_cancels_what_is_hard_for_both():
    generator = np.random.default_rng(4)
    y, a = draw(generator, 2000)
    b = Outputs(
        label=a.label,
        probability=np.clip(a.probability + generator.normal(0, 0.02, 2000), 0, 1),
        classes=a.classes,
    )
    difference = paired("roc_auc", y, a, b)
    single = interval("roc_auc", y, a)
    assert difference.high - difference.low < (single.high - single.low) / 3
    same = paired_many(["roc_auc", "log_loss", "accuracy"], y, a, a)
    assert {(found.value, found.low, found.high) for found in same.values()} == {(0.0, 0.0, 0.0)}


def test_undefined_stays_undefined():
    out = Outputs(label=np.zeros(9, int), probability=np.full(9, 0.2), classes=np.array([0, 1]))
    found = intervals(["roc_auc", "accuracy"], np.zeros(9, int), out)
    assert np.isnan(found["roc_auc"].low)
    assert found["accuracy"].value == 1.0
    empty = interval("mse", np.array([]), Outputs(value=np.array([])))
    assert np.isnan(empty.value)
    assert empty.rows == 0


def test_bad_confidence_is_refused():
    with pytest.raises(Invalid, match="confidence is 95"):
        interval("mse", np.zeros(3), Outputs(value=np.zeros(3)), confidence=95)
