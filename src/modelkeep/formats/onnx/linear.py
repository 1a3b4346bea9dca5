"""Linear models, naive Bayes and multi-layer perceptrons: matrix products in float64."""

from __future__ import annotations

from typing import Any

import numpy as np

from modelkeep.formats.onnx.graph import Graph, Unconvertible
from modelkeep.formats.onnx.scores import Scores, both, normalised, one_vs_rest, sigmoid, softmax


def regressor(graph: Graph, model: Any, x: str) -> Scores:
    """``x @ coef_ + intercept_``."""
    coefficients = np.asarray(model.coef_, np.float64)
    if coefficients.ndim == 2 and coefficients.shape[0] != 1:
        raise Unconvertible(f"it predicts {coefficients.shape[0]} outputs at once")
    return Scores(value=graph.affine(x, coefficients.reshape(-1, 1), model.intercept_))


def log_regressor(graph: Graph, model: Any, x: str) -> Scores:
    """Generalised linear models with a log link: Poisson and Gamma."""
    return Scores(value=graph.op("Exp", regressor(graph, model, x).value))


def _decision(graph: Graph, model: Any, x: str) -> str:
    return graph.affine(x, np.atleast_2d(model.coef_).T, model.intercept_)


def classifier(graph: Graph, model: Any, x: str) -> Scores:
    """A linear classifier without probabilities: ridge, linear SVM, perceptron."""
    return Scores(decision=_decision(graph, model, x))


def logistic(graph: Graph, model: Any, x: str) -> Scores:
    """Logistic regression and linear discriminant analysis: sigmoid for two classes, softmax for more."""
    decision = _decision(graph, model, x)
    probability = sigmoid if len(model.classes_) == 2 else softmax
    return Scores(decision=decision, probability=probability(graph, decision))


def sgd_classifier(graph: Graph, model: Any, x: str) -> Scores:
    """Probabilities for the log loss and, with two classes, the modified Huber loss."""
    decision = _decision(graph, model, x)
    count = len(model.classes_)
    if model.loss == "log_loss":
        return Scores(decision=decision, probability=one_vs_rest(graph, decision, count))
    if model.loss != "modified_huber":
        return Scores(decision=decision)
    clipped = graph.op("Clip", decision, *(graph.const(np.array(bound)) for bound in (-1.0, 1.0)))
    half = graph.op("Mul", graph.op("Add", clipped, graph.scalar(1.0)), graph.scalar(0.5))
    return Scores(
        decision=decision, probability=both(graph, half) if count == 2 else normalised(graph, half, count)
    )


def out_of_core(graph: Graph, model: Any, x: str) -> Scores:
    """``linear_out_of_core`` for classes, whatever its loss."""
    decision = _decision(graph, model, x)
    count = len(model.classes_)
    if model.loss_ == "softmax":
        return Scores(decision=decision, probability=softmax(graph, decision))
    if model.loss_ == "logistic":
        return Scores(decision=decision, probability=one_vs_rest(graph, decision, count))
    return Scores(decision=decision)


def gaussian_naive_bayes(graph: Graph, model: Any, x: str) -> Scores:
    """log p(c) - (sum of log(2 pi var) + (x - mean)^2 / var) / 2, without expanding the square."""
    variance = np.asarray(model.var_, np.float64)
    constant = np.log(model.class_prior_) - 0.5 * np.log(2.0 * np.pi * variance).sum(axis=1)
    rows = graph.op("Unsqueeze", x, graph.const(np.array([1], np.int64)))
    off = graph.op("Sub", rows, graph.const(np.asarray(model.theta_, np.float64)[None]))
    weighed = graph.op("Div", graph.op("Mul", off, off), graph.const(-2.0 * variance[None]))
    total = graph.op("ReduceSum", weighed, graph.const(np.array([2], np.int64)), keepdims=0)
    return _bayes(graph, graph.op("Add", total, graph.const(constant[None])), model)


def multinomial_naive_bayes(graph: Graph, model: Any, x: str) -> Scores:
    """``x @ log p(feature | class) + log p(class)``."""
    return _bayes(graph, graph.affine(x, model.feature_log_prob_.T, model.class_log_prior_), model)


def complement_naive_bayes(graph: Graph, model: Any, x: str) -> Scores:
    """Rennie et al. (ICML 2003): weights of the complement of each class."""
    prior = model.class_log_prior_ if len(model.classes_) == 1 else np.zeros(len(model.classes_))
    return _bayes(graph, graph.affine(x, model.feature_log_prob_.T, prior), model)


def bernoulli_naive_bayes(graph: Graph, model: Any, x: str) -> Scores:
    """Presence and absence of each feature both count."""
    if model.binarize is not None:
        x = graph.double(graph.op("Greater", x, graph.const(np.array(float(model.binarize)))))
    absent = np.log(1.0 - np.exp(model.feature_log_prob_))
    weights = (model.feature_log_prob_ - absent).T
    return _bayes(graph, graph.affine(x, weights, model.class_log_prior_ + absent.sum(axis=1)), model)


def _bayes(graph: Graph, joint: str, model: Any) -> Scores:
    if len(model.classes_) == 1:
        raise Unconvertible("it knows a single class")
    return Scores(choice=joint, probability=softmax(graph, joint))


_ACTIVATIONS = {"relu": "Relu", "tanh": "Tanh", "logistic": "Sigmoid", "identity": ""}


def perceptron(graph: Graph, model: Any, x: str) -> Scores:
    """A multi-layer perceptron, classifier or regressor."""
    last = len(model.coefs_) - 1
    hidden = _ACTIVATIONS[model.activation]
    for layer, (weights, bias) in enumerate(zip(model.coefs_, model.intercepts_, strict=True)):
        x = graph.affine(x, weights, bias)
        if layer < last and hidden:
            x = graph.op(hidden, x)
    width = model.coefs_[-1].shape[1]
    if not hasattr(model, "classes_"):
        if width != 1:
            raise Unconvertible(f"it predicts {width} outputs at once")
        return Scores(value=graph.op("Exp", x) if model.out_activation_ == "exp" else x)
    if model.out_activation_ == "softmax":
        return Scores(probability=softmax(graph, x))
    if width != 1:
        raise Unconvertible("it gives several labels at once")
    return Scores(probability=sigmoid(graph, x))
