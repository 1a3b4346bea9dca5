"""Small problems, and the best that other solvers know for them."""

from __future__ import annotations

import warnings
from functools import cache

import numpy as np
from scipy.optimize import linprog, minimize
from sklearn.linear_model import ElasticNet, LinearRegression, LogisticRegression, Ridge
from sklearn.svm import SVC, LinearSVC

from modelkeep.train.linear.losses import Objective, encoded, of_rows, penalty

ALPHA, RATIO, ROWS, FEATURES = 0.02, 0.4, 240, 6


@cache
def rows(classes: int):
    """(X, y): independent columns, one of them useless; numbers for ``classes`` 0."""
    rng = np.random.default_rng(classes)
    x = rng.normal(size=(ROWS, FEATURES))
    truth = rng.normal(size=(FEATURES, max(classes, 1)))
    truth[0] = 0.0
    margins = x @ truth + rng.gumbel(size=(ROWS, max(classes, 1)))
    if classes == 0:
        return x, margins[:, 0]
    return x, (margins.argmax(axis=1) if classes > 2 else (margins[:, 0] > 0).astype(int))


def classes_of(loss: str) -> int:
    return {"squared": 0, "softmax": 3}.get(loss, 2)


def objective(loss: str, kind: str) -> Objective:
    ratio = {"none": 0.0, "l2": 0.0, "l1": 1.0, "elastic_net": RATIO}[kind]
    alpha = 0.0 if kind == "none" else ALPHA
    count = classes_of(loss)
    return Objective(loss, alpha * ratio, alpha * (1 - ratio), count if count > 2 else 1)


def value(goal: Objective, coef, intercept) -> float:
    """The objective of a fitted model, by the definition in ``losses``."""
    x, y = rows(classes_of(goal.loss))
    count = classes_of(goal.loss)
    weights = np.vstack([np.atleast_2d(coef).T, np.atleast_1d(intercept)[None]])
    coded = encoded(y, np.arange(count) if count else None)
    return of_rows(goal, weights, x, coded, slope=False).loss / len(y) + penalty(goal, weights)


def span(loss: str, kind: str) -> tuple[float, float]:
    """The objective at zero weights and at the optimum."""
    goal = objective(loss, kind)
    outputs = goal.outputs
    zero = value(goal, np.zeros((outputs, FEATURES)), np.zeros(outputs))
    return zero, value(goal, *_best(loss, kind))


@cache
def _best(loss: str, kind: str):
    x, y = rows(classes_of(loss))
    n = len(y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if loss == "squared":
            made = {
                "none": LinearRegression(),
                "l2": Ridge(alpha=ALPHA * n),
                "l1": ElasticNet(alpha=ALPHA, l1_ratio=1.0, tol=1e-10, max_iter=100_000),
                "elastic_net": ElasticNet(alpha=ALPHA, l1_ratio=RATIO, tol=1e-10, max_iter=100_000),
            }[kind].fit(x, y)
        elif loss in ("logistic", "softmax"):
            ratio = {"none": 0.0, "l2": 0.0, "l1": 1.0, "elastic_net": RATIO}[kind]
            solver = "saga" if kind in ("l1", "elastic_net") else "lbfgs"
            c = np.inf if kind == "none" else 1 / (ALPHA * n)
            made = LogisticRegression(C=c, l1_ratio=ratio, solver=solver, tol=1e-9, max_iter=20_000).fit(x, y)
        elif loss == "squared_hinge" and kind in ("none", "l2"):
            # LinearSVC penalises its intercept; scaled up, that penalty is nothing.
            c = 1e6 if kind == "none" else 1 / (ALPHA * n)
            made = LinearSVC(C=c, dual=False, intercept_scaling=1e3, tol=1e-10, max_iter=100_000).fit(x, y)
        elif loss == "hinge" and kind == "l2":
            made = SVC(C=1 / (ALPHA * n), kernel="linear", tol=1e-9).fit(x, y)
        else:
            return _program(loss, kind, x, y * 2.0 - 1.0)
    return made.coef_, made.intercept_


def _program(loss: str, kind: str, x, y):
    """Hinge losses with L1 as programs over split weights and slacks: linear by HiGHS, squared by L-BFGS-B."""
    n, d = x.shape
    goal = objective(loss, kind)
    signed = np.hstack([x, -x, np.ones((n, 1))]) * y[:, None]
    if loss == "hinge":
        cost = np.concatenate([np.full(2 * d, goal.l1), [0.0], np.full(n, 1 / n)])
        limits = [(0, None)] * (2 * d) + [(None, None)] + [(0, None)] * n
        found = linprog(cost, -np.hstack([signed, np.eye(n)]), -np.ones(n), bounds=limits).x
        return (found[:d] - found[d : 2 * d])[None], found[2 * d : 2 * d + 1]

    def smooth(w):
        short = np.maximum(1 - signed @ w, 0)
        free = w[:d] - w[d : 2 * d]
        slope = -2 * signed.T @ short / n
        slope[: 2 * d] += goal.l1 + goal.l2 * np.concatenate([free, -free])
        return (short**2).mean() + goal.l1 * w[: 2 * d].sum() + goal.l2 / 2 * free @ free, slope

    limits = [(0, None)] * (2 * d) + [(None, None)]
    options = {"maxiter": 10_000, "ftol": 1e-15, "gtol": 1e-10}
    found = minimize(smooth, np.zeros(2 * d + 1), jac=True, bounds=limits, method="L-BFGS-B", options=options).x
    return (found[:d] - found[d : 2 * d])[None], found[2 * d :]


def certificate(coef, intercept) -> float:
    """A bound that no hinge with elastic net can be below, from weak duality.

    For any 0 <= a <= 1/n with y'a = 0: sum(a) - |shrink(X'(a y), l1)|^2 / (2 l2). The a of a rounded corner's
    slopes is nearly such a one; what y'a is off by counts against it, times the intercept.
    """
    goal = objective("hinge", "elastic_net")
    x, y = rows(2)
    sign, width = y * 2.0 - 1.0, 1e-4
    short = 1 - sign * (x @ np.ravel(coef) + intercept)
    a = np.clip(short / width, 0, 1) / len(y)
    shrunk = np.sign((a * sign) @ x) * np.maximum(np.abs((a * sign) @ x) - goal.l1, 0)
    return float(a.sum() - shrunk @ shrunk / (2 * goal.l2) - abs(a @ sign) * abs(intercept))
