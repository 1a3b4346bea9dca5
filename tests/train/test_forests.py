"""Forests grown in parts are tree for tree those grown at once."""

import warnings

import numpy as np
import pytest
from scipy import sparse
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LogisticRegression

from modelkeep.engines.local import LocalEngine
from modelkeep.train import forests


@pytest.fixture(scope="module")
def engine():
    with LocalEngine(2) as engine:
        yield engine


@pytest.fixture
def rows():
    random = np.random.default_rng(5)
    matrix = random.normal(size=(300, 6)).astype(np.float32)
    return matrix, matrix[:, 0] * matrix[:, 1] + random.normal(scale=0.1, size=300)


def same(one, other) -> bool:
    """Whether two forests hold the same trees in the same order."""
    return [tree.tree_.__getstate__()["nodes"].tobytes() for tree in one.estimators_] == [
        tree.tree_.__getstate__()["nodes"].tobytes() for tree in other.estimators_
    ]


@pytest.mark.parametrize("make", [RandomForestRegressor, ExtraTreesRegressor])
@pytest.mark.parametrize("count", [2, 3, 21])
def test_regression(engine, rows, make, count):
    matrix, target = rows
    forest = make(count, random_state=7, n_jobs=2)
    grown = forests.grow(forest, matrix, target, engine, None)
    assert same(grown, forest.fit(matrix, target))
    assert grown.get_params() == forest.get_params()
    # threads add the trees' answers up in any order
    assert grown.predict(matrix) == pytest.approx(forest.predict(matrix), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("make", [RandomForestClassifier, ExtraTreesClassifier])
@pytest.mark.parametrize("weight", [None, "balanced", "balanced_subsample"])
def test_classification(engine, rows, make, weight):
    matrix, target = rows
    labels = np.where(target > 1.5, "rare", np.where(target > 0, "up", "down"))
    forest = make(20, random_state=3, class_weight=weight, max_samples=0.5, bootstrap=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        grown = forests.grow(forest, sparse.csr_matrix(matrix), labels, engine, None)
    forest.fit(sparse.csr_matrix(matrix), labels)
    assert same(grown, forest)
    assert list(grown.classes_) == ["down", "rare", "up"]
    assert grown.predict_proba(matrix) == pytest.approx(forest.predict_proba(matrix), rel=1e-12)


def test_what_cannot_be_divided_is_not():
    assert not forests.divides(LogisticRegression())
    assert not forests.divides(RandomForestClassifier(1))
    assert not forests.divides(RandomForestClassifier(10, oob_score=True))


def test_faults_are_scikit_learns(engine, rows):
    matrix, target = rows
    with pytest.raises(ValueError, match="max_depth"):
        forests.grow(RandomForestRegressor(8, max_depth="deep"), matrix, target, engine, None)
