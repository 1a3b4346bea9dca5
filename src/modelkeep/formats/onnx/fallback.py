"""Estimators as graphs that others wrote: networks, and what only skl2onnx converts."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from onnx import AttributeProto, load_model_from_string

from modelkeep.formats.onnx.graph import FLOAT, ML, Graph, Unconvertible
from modelkeep.formats.onnx.scores import Scores, both

_NESTED = (AttributeProto.GRAPH, AttributeProto.GRAPHS)
_OLD_TREES = ("TreeEnsembleClassifier", "TreeEnsembleRegressor")


def convert(graph: Graph, model: Any, x: str, width: int, why: str) -> Scores:
    """Convert one estimator with skl2onnx and copy its nodes into the graph.

    Slow to import, so it comes last. In float32, the only precision in which all of its converters work; whether
    that is enough, the comparison with the original decides.

    Args:
        graph: The graph.
        model: A fitted estimator of scikit-learn.
        x: [rows, width] float64.
        width: Columns.
        why: Why we did not convert it ourselves, for the error.

    Raises:
        Unconvertible: skl2onnx cannot either.
    """
    if not type(model).__module__.startswith("sklearn."):
        raise Unconvertible(why)
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType

    classifier = hasattr(model, "classes_") and hasattr(model, "predict_proba")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = convert_sklearn(
                model,
                initial_types=[("X", FloatTensorType([None, width]))],
                options={id(model): {"zipmap": False}} if classifier else None,
                target_opset={"": 19, "ai.onnx.ml": 3},
            ).graph
    except Exception as error:  # any converter of theirs may raise anything
        text = str(error).strip().split("\n", 1)[0]
        raise Unconvertible(f"{why}; skl2onnx: {type(error).__name__}: {text}") from None
    if any(node.op_type in _OLD_TREES for node in made.node):
        graph.domains[ML] = 4  # the last version with their kind of trees; feature steps need no later one
    last = copy(graph, made, graph.op("Cast", x, to=FLOAT))
    if classifier:
        return Scores(probability=graph.double(last[-1]))
    if hasattr(model, "classes_"):
        raise Unconvertible(f"{why}; skl2onnx gives labels only")
    return Scores(value=graph.double(last[0]))


def network(graph: Graph, model: Any, x: str) -> Scores:
    """A network, which is a graph already: its nodes and weights, in float32.

    Raises:
        Unconvertible: It has loops or branches, whose insides have names of their own.
    """
    made = load_model_from_string(model.graph_).graph
    if any(part.type in _NESTED for node in made.node for part in node.attribute):
        raise Unconvertible("it has loops or branches")
    (last,) = copy(graph, made, graph.op("Cast", x, to=FLOAT))
    if not hasattr(model, "classes_"):
        return Scores(value=graph.double(last))
    count = len(model.classes_)
    shape = graph.const(np.array([-1, 1 if count == 2 and model.single_ else count], np.int64))
    said = graph.op("Reshape", graph.double(last), shape)
    return Scores(probability=both(graph, said) if count == 2 and model.single_ else said)


def copy(graph: Graph, made: Any, x: str) -> list[str]:
    """Copy nodes and constants of a graph of one input under fresh names; returns the outputs' new names."""
    names = {"": "", made.input[0].name: x}
    for constant in made.initializer:
        names[constant.name] = graph.name("skl")
        constant.name = names[constant.name]
        graph.initializer(constant)
    for node in made.node:
        for output in node.output:
            names[output] = graph.name("skl")
        inputs = [names[name] for name in node.input]
        outputs = [names[name] for name in node.output]
        del node.input[:], node.output[:]
        node.input.extend(inputs)
        node.output.extend(outputs)
        graph.nodes.append(node)
    return [names[output.name] for output in made.output]
