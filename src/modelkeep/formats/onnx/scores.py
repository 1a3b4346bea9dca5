"""What a converted estimator gives, and the usual ways from decision values to probabilities."""

from __future__ import annotations

from dataclasses import dataclass

from modelkeep.formats.onnx.graph import Graph


@dataclass(frozen=True, slots=True)
class Scores:
    """Tensors of one estimator, each empty where the estimator has no such output.

    Attributes:
        value: Regression: [rows, 1].
        decision: Decision values, [rows, 1] for two classes (positive means the second), else [rows, classes].
        probability: [rows, classes].
        choice: [rows, classes] whose largest is the label, where it is neither the decision nor the probability.
        anomaly: Anomaly score, higher is more anomalous: [rows, 1].
        offset: The anomaly score above which a row counts as anomalous.
    """

    value: str = ""
    decision: str = ""
    probability: str = ""
    choice: str = ""
    anomaly: str = ""
    offset: float = 0.5


def both(graph: Graph, positive: str) -> str:
    """[rows, 2] from the probability of the second class, [rows, 1]."""
    return graph.concat([graph.op("Sub", graph.scalar(1.0), positive), positive])


def sigmoid(graph: Graph, decision: str) -> str:
    """Probabilities of two classes from one decision value."""
    return both(graph, graph.op("Sigmoid", decision))


def softmax(graph: Graph, decision: str) -> str:
    """Probabilities of many classes from their decision values."""
    return graph.op("Softmax", decision, axis=1)


def normalised(graph: Graph, weights: str, classes: int) -> str:
    """Rows divided by their sum; rows of zeros become uniform, as scikit-learn does."""
    total = graph.sum_rows(weights)
    empty = graph.op("Equal", total, graph.scalar(0.0))
    one = graph.scalar(1.0)
    share = graph.op("Div", weights, graph.op("Where", empty, one, total))
    return graph.op("Where", empty, graph.scalar(1.0 / classes), share)


def logistic(graph: Graph, x: str) -> str:
    """1 / (1 + exp(-x)) to the smallest float64; ONNX Runtime's Sigmoid is 0 from about -40 on, which a
    normalisation over the classes would show."""
    one = graph.scalar(1.0)
    return graph.op("Div", one, graph.op("Add", one, graph.op("Exp", graph.op("Neg", x))))


def one_vs_rest(graph: Graph, decision: str, classes: int) -> str:
    """Sigmoid of each decision value, normalised over the classes (Zadrozny and Elkan, KDD 2002)."""
    if classes == 2:
        return sigmoid(graph, decision)
    return normalised(graph, logistic(graph, decision), classes)
