"""Every method, loss and penalty against the best that scikit-learn's and SciPy's solvers find.

Stated tolerances, as a share of what there is to gain (objective at zero weights less the optimum): full-batch
steps 1e-8, on the hinge 1e-5 for its rounded corner; stochastic methods 1 %.
"""

from __future__ import annotations

import itertools
import warnings
from functools import cache

import numpy as np
import pytest
from linear_kit import ALPHA, FEATURES, RATIO, certificate, classes_of, objective, rows, span, value
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning

from modelkeep.train.linear.estimator import OutOfCoreClassifier, OutOfCoreRegressor
from modelkeep.train.linear.losses import CODES

PENALTIES = ("none", "l2", "l1", "elastic_net")
EXACT = {"tolerance": 1e-7, "passes": 1000}
LONG = {"tolerance": 0.0, "passes": 150, "patience": 150, "learning_rate": 0.2}
METHODS = {
    "full_batch": EXACT,
    "all_reduce": {**EXACT, "workers": 2},
    "sgd": LONG,
    "mini_batch": {**LONG, "batch_size": 8},
    "local_sgd": {**LONG, "workers": 2},
}


def fit(loss: str, kind: str, *, form=np.asarray, **params):
    x, y = rows(classes_of(loss))
    make = OutOfCoreClassifier if classes_of(loss) else OutOfCoreRegressor
    model = make(loss=loss, penalty=kind, alpha=ALPHA, l1_ratio=RATIO, random_state=0, **params)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(form(x), y)


@cache
def least_hinge() -> float:
    exact = fit("hinge", "elastic_net", method="full_batch", **EXACT)
    return certificate(exact.coef_, float(exact.intercept_[0]))


def off(loss: str, kind: str, model) -> float:
    """How much of what there is to gain is still missing."""
    outputs = objective(loss, kind).outputs
    zero = value(objective(loss, kind), np.zeros((outputs, FEATURES)), np.zeros(outputs))
    reached = value(objective(loss, kind), model.coef_, model.intercept_)
    best = least_hinge() if (loss, kind) == ("hinge", "elastic_net") else span(loss, kind)[1]
    return (reached - best) / (zero - best)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", PENALTIES)
@pytest.mark.parametrize("loss", CODES)
def test_every_method_reaches_the_optimum(loss, kind, method):
    model = fit(loss, kind, method=method, **METHODS[method])
    exact = 1e-5 if loss == "hinge" else 1e-8
    assert off(loss, kind, model) < (exact if method in ("full_batch", "all_reduce") else 1e-2)


@pytest.mark.parametrize(
    ("loss", "kind", "staleness"),
    [(loss, kind, place % 3) for place, (loss, kind) in enumerate(itertools.product(CODES, PENALTIES))],
)
def test_the_parameter_server_reaches_the_optimum(loss, kind, staleness):
    server = {"method": "parameter_server", "workers": 2, "staleness": staleness, "batch_size": 30}
    model = fit(loss, kind, **{**LONG, "passes": 100, "patience": 100, "learning_rate": 0.3}, **server)
    assert off(loss, kind, model) < 1e-2


@pytest.mark.parametrize("step", ["constant", "inverse_scaling"])
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix], ids=["dense", "sparse"])
def test_other_steps_and_sparse_rows_reach_it_too(step, form):
    rate = {"constant": 0.002, "inverse_scaling": 0.3}[step]
    model = fit(
        "logistic", "elastic_net", method="sgd", form=form, **{**LONG, "step": step, "learning_rate": rate}
    )
    assert off("logistic", "elastic_net", model) < 1e-2


@pytest.mark.parametrize(("loss", "batch"), [("logistic", 1), ("logistic", 8), ("softmax", 1), ("squared", 4)])
def test_dense_and_sparse_rows_give_the_same_model(loss, batch):
    params = {"method": "mini_batch", "batch_size": batch, "passes": 3}
    dense = fit(loss, "elastic_net", **params)
    thin = fit(loss, "elastic_net", form=sparse.csr_matrix, **params)
    np.testing.assert_allclose(thin.coef_, dense.coef_, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(thin.intercept_, dense.intercept_, rtol=1e-9)


def test_refining_ends_at_the_optimum_from_a_short_pass():
    model = fit("logistic", "l1", method="sgd", passes=1, refine=200, tolerance=1e-9)
    assert off("logistic", "l1", model) < 1e-8
    exact = fit("logistic", "l1", method="full_batch", **EXACT)
    assert (np.ravel(model.coef_) == 0).tolist() == (np.ravel(exact.coef_) == 0).tolist()
    assert (np.ravel(model.coef_) == 0).any()


def test_without_an_intercept_there_is_none():
    for method in ("sgd", "full_batch"):
        model = fit("logistic", "l2", method=method, fit_intercept=False)
        assert model.intercept_.tolist() == [0.0]
