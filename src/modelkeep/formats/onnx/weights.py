"""The weights of a large graph in a file of their own, which ONNX Runtime maps into memory instead of reading it.

So processes on one machine share them, and they need no memory that the kernel could not use otherwise. Only
constants of a graph can be outside: what a forest learnt is attributes of its nodes, and stays in the graph.
https://github.com/onnx/onnx/blob/main/docs/ExternalData.md
"""

from __future__ import annotations

from onnx import ModelProto, TensorProto

LARGE = 16 << 20
"""Bytes of weights from which on they are worth a file."""
_EACH = 1 << 16
"""Bytes of a constant below which it stays in the graph."""
_PAGE = 4096


def apart(data: bytes, location: str) -> tuple[bytes, bytes]:
    """A graph without its weights, and the weights. Equal graphs give equal bytes.

    Args:
        data: The ONNX file.
        location: Name of the file of weights, beside the graph's.

    Returns:
        The graph as it is and nothing, when its weights are few.
    """
    if len(data) < LARGE:
        return data, b""
    model = ModelProto.FromString(data)
    moved = [tensor for tensor in model.graph.initializer if len(tensor.raw_data) >= _EACH]
    if sum(len(tensor.raw_data) for tensor in moved) < LARGE:
        return data, b""
    weights = bytearray()
    for tensor in moved:
        weights += bytes(-len(weights) % _PAGE)
        place = {"location": location, "offset": str(len(weights)), "length": str(len(tensor.raw_data))}
        weights += tensor.raw_data
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in place.items():
            tensor.external_data.add(key=key, value=value)
    return model.SerializeToString(deterministic=True), bytes(weights)
