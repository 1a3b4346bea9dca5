"""Estimators: which converter takes which, and what wraps another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from modelkeep.formats.coded import CodedClassifier
from modelkeep.formats.onnx import fallback, kernels, linear, trees
from modelkeep.formats.onnx.graph import Graph, Unconvertible
from modelkeep.formats.onnx.scores import Scores, one_vs_rest

Converter = Callable[[Graph, Any, str], Scores]


def convert(graph: Graph, model: Any, x: str) -> Scores:
    """One fitted estimator on a float64 matrix.

    Raises:
        Unconvertible: There is no way to say it; the message names it.
    """
    if isinstance(model, CodedClassifier):
        return convert(graph, model.estimator_, x)
    name = type(model).__name__
    ours = ("sklearn.", "modelkeep.train.linear.", "modelkeep.formats.network")
    converter = CONVERTERS.get(name) if type(model).__module__.startswith(ours) else None
    if converter is None:
        raise Unconvertible(f"{name} has no conversion")
    try:
        return converter(graph, model, x)
    except Unconvertible as error:
        raise error if error.args[0].startswith(name) else Unconvertible(f"{name}: {error}") from None


def calibrated(graph: Graph, model: Any, x: str) -> Scores:
    """CalibratedClassifierCV by Platt's sigmoids (1999): the mean over its calibrated classifiers."""
    if model.calibrated_classifiers_[0].method != "sigmoid":
        raise Unconvertible(f"it calibrates by {model.calibrated_classifiers_[0].method!r}")
    count = len(model.classes_)
    total = ""
    for part in model.calibrated_classifiers_:
        if len(part.calibrators) != (1 if count == 2 else count):
            raise Unconvertible("a fold of its calibration lacks a class")
        scores = convert(graph, part.estimator, x)
        values = scores.decision
        if not hasattr(part.estimator, "decision_function"):
            values = graph.columns(scores.probability, [1]) if count == 2 else scores.probability
        if not values:
            raise Unconvertible("what it calibrates has no decision values")
        slope = np.array([[-calibrator.a_ for calibrator in part.calibrators]])
        shift = np.array([[-calibrator.b_ for calibrator in part.calibrators]])
        scaled = graph.op("Add", graph.op("Mul", values, graph.const(slope)), graph.const(shift))
        said = one_vs_rest(graph, scaled, count)
        total = graph.op("Add", total, said) if total else said
    folds = graph.const(np.array(float(len(model.calibrated_classifiers_))))
    return Scores(probability=graph.op("Div", total, folds))


def _best(graph: Graph, model: Any, x: str) -> Scores:
    """A finished search: its best estimator."""
    return convert(graph, model.best_estimator_, x)


CONVERTERS: dict[str, Converter] = {
    **dict.fromkeys(
        ("LinearRegression", "Ridge", "RidgeCV", "Lasso", "LassoCV", "ElasticNet", "ElasticNetCV", "SGDRegressor",
         "LinearSVR", "HuberRegressor", "BayesianRidge", "ARDRegression", "TheilSenRegressor", "Lars", "LassoLars",
         "OrthogonalMatchingPursuit", "QuantileRegressor", "PassiveAggressiveRegressor", "OutOfCoreRegressor"),
        linear.regressor,
    ),
    **dict.fromkeys(("PoissonRegressor", "GammaRegressor"), linear.log_regressor),
    **dict.fromkeys(
        ("RidgeClassifier", "RidgeClassifierCV", "LinearSVC", "Perceptron", "PassiveAggressiveClassifier"),
        linear.classifier,
    ),
    **dict.fromkeys(("LogisticRegression", "LogisticRegressionCV", "LinearDiscriminantAnalysis"), linear.logistic),
    "SGDClassifier": linear.sgd_classifier,
    "OutOfCoreClassifier": linear.out_of_core,
    "GaussianNB": linear.gaussian_naive_bayes,
    "MultinomialNB": linear.multinomial_naive_bayes,
    "ComplementNB": linear.complement_naive_bayes,
    "BernoulliNB": linear.bernoulli_naive_bayes,
    **dict.fromkeys(("MLPClassifier", "MLPRegressor"), linear.perceptron),
    **dict.fromkeys(("SVC", "NuSVC"), kernels.support_vector_classifier),
    **dict.fromkeys(("SVR", "NuSVR"), kernels.support_vector_regressor),
    **dict.fromkeys(("KNeighborsClassifier", "KNeighborsRegressor"), kernels.neighbours),
    **dict.fromkeys(
        ("DecisionTreeClassifier", "DecisionTreeRegressor", "ExtraTreeClassifier", "ExtraTreeRegressor"),
        trees.decision_tree,
    ),
    **dict.fromkeys(
        ("RandomForestClassifier", "RandomForestRegressor", "ExtraTreesClassifier", "ExtraTreesRegressor"),
        trees.forest,
    ),
    **dict.fromkeys(("GradientBoostingClassifier", "GradientBoostingRegressor"), trees.gradient_boosting),
    **dict.fromkeys(
        ("HistGradientBoostingClassifier", "HistGradientBoostingRegressor"), trees.hist_gradient_boosting
    ),
    **dict.fromkeys(("NetworkClassifier", "NetworkRegressor"), fallback.network),
    "IsolationForest": trees.isolation_forest,
    "CalibratedClassifierCV": calibrated,
    **dict.fromkeys(("GridSearchCV", "RandomizedSearchCV"), _best),
}  # fmt: skip
