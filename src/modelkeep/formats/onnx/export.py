"""A whole fitted pipeline as one ONNX graph: feature steps, estimator, labels."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt

from modelkeep.formats.onnx import estimators, fallback, features
from modelkeep.formats.onnx.graph import DOUBLE, Exported, Graph, Unconvertible, element_type
from modelkeep.formats.onnx.scores import Scores
from modelkeep.formats.onnx.values import Column, Columns, Inputs, Value
from modelkeep.formats.signature import Signature

_KINDS = {"int64": "number", "float64": "number", "bool": "bool", "string": "string", "timestamp": "timestamp"}


def export(pipeline: Any, signature: Signature) -> Exported:
    """Write the pipeline as ONNX.

    The graph takes at most two inputs: ``numbers`` (float64, [rows, k]; NaN is missing, timestamps are
    microseconds since 1970 UTC, booleans 0 and 1) and ``strings`` ([rows, s]; the empty string is missing). The
    model's metadata names their columns. It gives ``label`` [rows] and, where the estimator has it,
    ``probability`` [rows, classes]; or ``prediction`` [rows]; or ``label`` and ``score`` for anomalies.

    Args:
        pipeline: A fitted scikit-learn Pipeline or estimator of a DataFrame with the signature's inputs.
        signature: Names and types of the inputs, the task and the classes.

    Raises:
        Unconvertible: Some part has no conversion; the message says which.
    """
    graph = Graph()
    inputs = Inputs(graph)
    columns = tuple(
        Column(field.name, _KINDS[field.type], field.type == "string")  # type: ignore[arg-type]
        for field in signature.inputs
    )
    value: Value = Columns(columns)
    steps = [part for _, part in pipeline.steps] if hasattr(pipeline, "steps") else [pipeline]
    for step in steps[:-1]:
        value = features.transform(inputs, step, value)
    model = steps[-1]
    x = inputs.matrix(value)
    try:
        scores = estimators.convert(graph, model, x.name)
    except Unconvertible as error:
        scores = fallback.convert(graph, model, x.name, x.width, str(error))
    outputs = _outputs(graph, model, scores, signature)
    packed = {}
    if inputs.numbers:
        packed["numbers"] = (element_type(np.dtype(np.float64)), len(inputs.numbers))
    if inputs.strings:
        packed["strings"] = (element_type(np.dtype(object)), len(inputs.strings))
    metadata = {"numbers": json.dumps(inputs.numbers), "strings": json.dumps(inputs.strings)}
    data = graph.finish(packed, outputs, metadata)
    return Exported(data, tuple(inputs.numbers), tuple(inputs.strings), tuple(outputs))


Outputs = dict[str, tuple[str, int, int | None]]


def _outputs(graph: Graph, model: Any, scores: Scores, signature: Signature) -> Outputs:
    if signature.task == "regression":
        if not scores.value:
            raise Unconvertible(f"{type(model).__name__} is no regressor")
        return {"prediction": (_vector(graph, scores.value), DOUBLE, None)}
    if signature.task == "anomaly":
        if not scores.anomaly:
            raise Unconvertible(f"{type(model).__name__} gives no anomaly score")
        score = _vector(graph, scores.anomaly)
        label = graph.op("Greater", score, graph.const(np.array(scores.offset)))
        return {"label": (label, element_type(np.dtype(bool)), None), "score": (score, DOUBLE, None)}
    classes = _classes(model)
    label = _winner(graph, scores, len(classes))
    if not np.array_equal(classes, np.arange(len(classes))) or classes.dtype != np.int64:
        label = graph.op("Gather", graph.const(classes), label, axis=0)
    made: Outputs = {"label": (label, element_type(classes.dtype), None)}
    if scores.probability:
        made["probability"] = (scores.probability, DOUBLE, len(classes))
    return made


def _winner(graph: Graph, scores: Scores, count: int) -> str:
    """The place of the label among the classes: of the largest probability where there is any. [rows]."""
    ranked = scores.probability or scores.choice or scores.decision
    if not ranked:
        raise Unconvertible("the estimator gives neither probabilities nor decisions")
    if ranked == scores.decision and count == 2:
        positive = graph.op("Greater", _vector(graph, ranked), graph.const(np.array(0.0)))
        return graph.op("Cast", positive, to=element_type(np.dtype(np.int64)))
    return graph.op("ArgMax", ranked, axis=1, keepdims=0)


def _classes(model: Any) -> npt.NDArray[Any]:
    classes = np.asarray(model.classes_)
    if classes.dtype.kind in "iu":
        return classes.astype(np.int64)
    if classes.dtype.kind in "bfUO":
        return classes.astype(np.float64) if classes.dtype.kind == "f" else classes
    raise Unconvertible(f"its classes are of type {classes.dtype}")


def _vector(graph: Graph, column: str) -> str:
    return graph.op("Reshape", column, graph.const(np.array([-1], np.int64)))
