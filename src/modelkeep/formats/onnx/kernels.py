"""Kernel machines and nearest neighbours: every row against every kept training row."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from modelkeep.formats.onnx.graph import Graph, Unconvertible
from modelkeep.formats.onnx.scores import Scores, both

Array = npt.NDArray[Any]


def _kernel(graph: Graph, model: Any, x: str) -> str:
    """Kernel values with the support vectors: [rows, vectors]."""
    vectors = model.support_vectors_
    vectors = np.asarray(vectors.toarray() if hasattr(vectors, "toarray") else vectors, np.float64)
    gamma = float(model._gamma)
    if model.kernel == "rbf":
        return graph.op(
            "Exp", graph.op("Mul", squared_distances(graph, x, vectors), graph.const(np.array(-gamma)))
        )
    if model.kernel == "linear":
        return graph.op("MatMul", x, graph.const(vectors.T))
    if model.kernel not in ("poly", "sigmoid"):
        raise Unconvertible(f"its kernel is {model.kernel!r}")
    inner = graph.affine(x, gamma * vectors.T, np.full(len(vectors), float(model.coef0)))
    if model.kernel == "sigmoid":
        return graph.op("Tanh", inner)
    return graph.op("Pow", inner, graph.const(np.array(float(model.degree))))


def squared_distances(graph: Graph, x: str, points: Array) -> str:
    """|x|^2 - 2 x.p + |p|^2 for every row and point, never below zero: [rows, points]."""
    own = graph.op("ReduceSumSquare", x, graph.const(np.array([1], np.int64)), keepdims=1)
    cross = graph.affine(x, -2.0 * points.T, np.einsum("ij,ij->i", points, points))
    return graph.op("Max", graph.op("Add", cross, own), graph.const(np.array(0.0)))


def support_vector_regressor(graph: Graph, model: Any, x: str) -> Scores:
    """SVR and NuSVR."""
    return Scores(value=graph.affine(_kernel(graph, model, x), _dense(model.dual_coef_).T, model.intercept_))


def support_vector_classifier(graph: Graph, model: Any, x: str) -> Scores:
    """SVC and NuSVC: one against one, as libsvm (Chang and Lin 2011) votes."""
    classes = len(model.classes_)
    starts = np.concatenate([[0], np.cumsum(model._n_support)])
    dual = _dense(model._dual_coef_)
    pairs = list(combinations(range(classes), 2))
    weights = np.zeros((starts[-1], len(pairs)))
    for column, (i, j) in enumerate(pairs):
        own, other = slice(starts[i], starts[i + 1]), slice(starts[j], starts[j + 1])
        weights[own, column] = dual[j - 1, own]
        weights[other, column] = dual[i, other]
    raw = graph.affine(_kernel(graph, model, x), weights, model._intercept_)
    if classes == 2:
        return Scores(decision=graph.op("Neg", raw), probability=_platt(graph, model, raw))
    if len(model._probA):
        raise Unconvertible("libsvm couples the probabilities of more than two classes by iteration")
    first, second = np.zeros((len(pairs), classes)), np.zeros((len(pairs), classes))
    for column, (i, j) in enumerate(pairs):
        first[column, i] = second[column, j] = 1.0
    ahead = graph.double(graph.op("Greater", raw, graph.const(np.array(0.0))))
    votes = graph.affine(ahead, first - second, second.sum(axis=0))
    if model.decision_function_shape == "ovo":
        return Scores(choice=votes)
    total = graph.op("MatMul", raw, graph.const(first - second))
    size = graph.op("Add", graph.op("Abs", total), graph.const(np.array(1.0)))
    confidence = graph.op("Div", total, graph.op("Mul", size, graph.const(np.array(3.0))))
    return Scores(decision=graph.op("Add", votes, confidence), choice="" if model.break_ties else votes)


def _platt(graph: Graph, model: Any, raw: str) -> str:
    """Platt's sigmoid on the decision value, bounded away from 0 and 1 as libsvm does."""
    if not len(model._probA):
        return ""
    slope, shift = float(model._probA[0]), float(model._probB[0])
    scaled = graph.op("Add", graph.op("Mul", raw, graph.const(np.array(slope))), graph.const(np.array(shift)))
    bounds = (graph.const(np.array(1e-7)), graph.const(np.array(1 - 1e-7)))
    return both(graph, graph.op("Clip", graph.op("Sigmoid", scaled), *bounds))


def _dense(values: Any) -> Array:
    return np.asarray(values.toarray() if hasattr(values, "toarray") else values, np.float64)


def neighbours(graph: Graph, model: Any, x: str) -> Scores:
    """k nearest neighbours by Euclidean distance, all counting alike."""
    if model.weights != "uniform":
        raise Unconvertible(f"its neighbours are weighed by {model.weights!r}")
    if model.effective_metric_ != "euclidean":
        raise Unconvertible(f"its metric is {model.effective_metric_!r}")
    points, y = _dense(model._fit_X), np.asarray(model._y)
    if y.ndim == 2 and y.shape[1] != 1:
        raise Unconvertible(f"it predicts {y.shape[1]} outputs at once")
    if len(points) > 20_000:
        raise Unconvertible(f"its search tree beats comparing each row with {len(points)} others")
    k = graph.const(np.array([model.n_neighbors], np.int64))
    _, nearest = graph.ops("TopK", squared_distances(graph, x, points), k, outputs=2, axis=1, largest=0)
    if hasattr(model, "classes_"):
        told = graph.const(np.eye(len(model.classes_))[y.reshape(-1)])
        axis = graph.const(np.array([1], np.int64))
        found = graph.op("Gather", told, nearest, axis=0)
        return Scores(probability=graph.op("ReduceMean", found, axis, keepdims=0))
    found = graph.op("Gather", graph.const(y.reshape(-1).astype(np.float64)), nearest, axis=0)
    return Scores(value=graph.op("ReduceMean", found, graph.const(np.array([1], np.int64)), keepdims=1))
