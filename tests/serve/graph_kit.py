"""Packages of ONNX graphs with as many weights as one likes, made without any framework."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import yaml
from onnx import TensorProto, helper, numpy_helper

from modelkeep.formats import adopt
from modelkeep.formats.manifest import Folder


def graph_folder(folder: Path, number: float, megabytes: int, *, external: bool = False) -> Folder:
    """A graph that answers ``number * (a + b)``, looked up among so many megabytes of weights.

    Args:
        external: Whether the weights lie in a file beside the graph.
    """
    weights = np.full((megabytes << 20) // 4, number, np.float32)
    constants = {"weights": weights, "axes": np.array([1], np.int64), "nothing": np.zeros(1, np.float32)}
    nodes = [
        helper.make_node("ReduceSum", ["x", "axes"], ["sum"], keepdims=1),
        helper.make_node("Mul", ["sum", "nothing"], ["zero"]),
        helper.make_node("Cast", ["zero"], ["place"], to=TensorProto.INT64),
        helper.make_node("Gather", ["weights", "place"], ["weight"]),
        helper.make_node("Mul", ["sum", "weight"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "lookup",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 1])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save_model(
        model, folder / "model.onnx", save_as_external_data=external, location="weights.bin", size_threshold=1024
    )
    column = '{"type": "double", "name": "%s"}'
    said = {
        "flavors": {"onnx": {"data": "model.onnx"}, "python_function": {"loader_module": "mlflow.onnx"}},
        "signature": {"inputs": f"[{column % 'a'}, {column % 'b'}]"},
    }
    (folder / "MLmodel").write_text(yaml.safe_dump(said))
    adopt.adopt(folder)
    return Folder(folder)
