"""How rows are divided for boosted trees, and what is done when workers are lost."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, Ridge

from modelkeep.core.errors import Unavailable
from modelkeep.engines import boosting
from modelkeep.train.algorithms import resolve


def test_every_share_has_every_class_and_every_row_is_in_one():
    target = np.array(["a"] * 7 + ["b"] * 50 + ["c"] * 3)
    shares = boosting.deal(LogisticRegression(), target, 3)
    assert sorted(np.concatenate(shares)) == list(range(60))
    assert all(set(target[share]) == {"a", "b", "c"} for share in shares)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert len(boosting.deal(LogisticRegression(), target, 8)) == 3, "no more shares than rows of the rarest class"
    assert len(boosting.deal(Ridge(), np.arange(5.0), 8)) == 5


def test_a_fit_that_lost_a_worker_begins_again_with_the_others():
    there = {"one", "two"}
    tried = []

    def fit(workers):
        tried.append(workers)
        if "two" in workers:
            there.discard("two")
            raise ConnectionError("the peer is gone")
        return "fitted"

    freed = []
    assert boosting.repeated(fit, lambda: set(there), "dask://s:1", free=freed.append) == "fitted"
    assert tried == [["one", "two"], ["one"]]
    assert freed == [["one"]], "it may still wait for the other"


def test_a_fit_that_waits_for_a_lost_worker_is_given_up():
    ended = threading.Event()
    with pytest.raises(boosting.Gone):
        boosting.unless_lost(ended.wait, lambda: True, notice=0.1)
    ended.set()
    assert boosting.unless_lost(lambda: 7, lambda: True) == 7
    with pytest.raises(ValueError, match="its own"):
        boosting.unless_lost(lambda: int("its own"), lambda: False)


def test_a_fit_that_loses_all_its_workers_ends():
    there = {"one"}

    def fit(workers):
        there.clear()
        raise ConnectionError("gone")

    with pytest.raises(Unavailable, match="dask://s:1: workers were lost"):
        boosting.repeated(fit, lambda: set(there), "dask://s:1")


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("xgboost", {"objective": "nope"}), ("lightgbm", {"num_leaves": 1}), ("xgboost", {"max_depth": -1})],
)
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_what_the_library_says_here_too_is_told_without_waiting_for_a_loss(name, wrong, task):
    random = np.random.default_rng(1)
    x, y = random.normal(size=(4000, 3)), np.arange(4000) % 2
    estimator = resolve(name, task, base=Path()).make()
    own = partial(boosting.said_here, estimator, x, y)
    assert not own(ConnectionError("Socket recv error, Connection reset by peer"))
    estimator.set_params(**wrong, n_estimators=10**9)

    def fit(workers):
        try:
            clone(estimator).set_params(n_estimators=1).fit(x, y)
        except Exception as error:
            raise RuntimeError("a task failed, of 3") from error

    with pytest.raises(RuntimeError, match="a task failed"):
        boosting.repeated(fit, lambda: {"one"}, "spark://m:1", notice=float("inf"), own=own)
    assert not own(ConnectionError("Socket recv error, Connection reset by peer")), "others are waited for"


def test_an_error_that_lost_no_worker_is_raised_at_once():
    tried = []

    def fit(workers):
        tried.append(workers)
        raise ValueError("max_depth should be greater")

    with pytest.raises(ValueError, match="max_depth"):
        boosting.repeated(fit, lambda: {"one"}, "dask://s:1", notice=0.0)
    assert len(tried) == 1
