"""A small builder of ONNX graphs: operators in, tensor names out.

All numbers in our graphs are float64, as in scikit-learn, so a graph takes the same branch at every threshold and
agrees to the last digits. Operators and types: https://onnx.ai/onnx/operators/ and
https://github.com/microsoft/onnxruntime/blob/main/docs/OperatorKernels.md (what ONNX Runtime has kernels for).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

OPSET = 19
"""First with Equal on strings; ONNX Runtime 1.17."""
ML_OPSET = 5
"""First with TreeEnsemble in float64 and with sets of categories; ONNX Runtime 1.20."""
IR_VERSION = 10
ML = "ai.onnx.ml"
MICROSOFT = "com.microsoft"

_ELEMENT = {
    "f8": TensorProto.DOUBLE,
    "f4": TensorProto.FLOAT,
    "i8": TensorProto.INT64,
    "b1": TensorProto.BOOL,
    "O": TensorProto.STRING,
}
DOUBLE, FLOAT, INT64 = TensorProto.DOUBLE, TensorProto.FLOAT, TensorProto.INT64


class Unconvertible(Exception):
    """This pipeline cannot be said in ONNX; the message says which part and why. Never leaves ``formats``."""


@dataclass(frozen=True, slots=True)
class Exported:
    """A graph on its way to a package.

    Attributes:
        data: The serialised ModelProto.
        numbers: Input names in the order of the columns of the input ``numbers`` (float64, [rows, k]).
        strings: The same for the input ``strings`` ([rows, s]).
        outputs: Names of the graph's outputs.
    """

    data: bytes
    numbers: tuple[str, ...]
    strings: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """Neighbouring columns of a matrix.

    Attributes:
        name: Codes [rows], int64, of which these columns are the indicators; or the columns themselves.
        width: How many columns.
        coded: Whether ``name`` holds codes. A code of ``width`` or more is no column's: all zeros.
    """

    name: str
    width: int
    coded: bool


class Graph:
    """A graph under construction. Constants are kept once; nodes nobody needs are left out at the end."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._initializers: dict[str, TensorProto] = {}
        self._blocks: dict[str, tuple[Block, ...]] = {}
        # by name of what was cut out: of which matrix, from which column to before which
        self._runs: dict[str, tuple[str, int, int]] = {}
        self._count = 0
        self.domains = {"": OPSET, ML: ML_OPSET}

    def name(self, stem: str) -> str:
        """A fresh tensor name."""
        self._count += 1
        return f"{stem}_{self._count}"

    def const(self, value: npt.ArrayLike) -> str:
        """A constant tensor; lists of strings become string tensors."""
        array = np.asarray(value)
        array = array.astype(object) if array.dtype.kind in "UO" else np.asarray(array, order="C")
        content = repr(array.tolist()).encode() if array.dtype == object else array.tobytes()
        key = (array.dtype.str, array.shape, content)
        if key not in self._constants:
            name = self.name("const")
            self._constants[key] = name
            self.initializer(numpy_helper.from_array(array, name))
        return self._constants[key]

    def scalar(self, value: float) -> str:
        """A float64 for every cell of a matrix: [1, 1].

        Operators of ONNX Runtime take ten times as long where one side is [rows, 1] and the other of lower rank.
        """
        return self.const(np.array([[value]], np.float64))

    def initializer(self, tensor: TensorProto) -> None:
        """Keep a tensor under its own name."""
        self._initializers[tensor.name] = tensor

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add an operator with one output; returns the output's name."""
        return self.ops(kind, *inputs, outputs=1, domain=domain, **attributes)[0]

    def ops(self, kind: str, *inputs: str, outputs: int, domain: str = "", **attributes: Any) -> tuple[str, ...]:
        """Add an operator with several outputs."""
        names = tuple(self.name(kind.lower()) for _ in range(outputs))
        if domain not in self.domains:
            self.domains[domain] = 1
        node = NodeProto(op_type=kind, domain=domain, input=inputs, output=names)
        node.attribute.extend(attribute(key, value) for key, value in attributes.items())
        self.nodes.append(node)
        return names

    # Shorthands for what nearly every converter needs.

    def columns(self, x: str, index: Sequence[int]) -> str:
        """Columns of a matrix, in that order: [rows, len(index)].

        Neighbours are copied row by row: ONNX Runtime's Gather copies number by number, which takes longer than
        all else in a linear model. A whole input is not copied at all.
        """
        wanted = np.asarray(index, np.int64)
        if not len(wanted) or not np.array_equal(wanted, np.arange(len(wanted)) + wanted[0]):
            return self.op("Gather", x, self.const(wanted), axis=1)
        first, end = int(wanted[0]), int(wanted[-1]) + 1
        bounds = (self.const(np.array([value], np.int64)) for value in (first, end, 1))
        made = self.op("Slice", x, *bounds)
        self._runs[made] = (x, first, end)
        return made

    def column(self, x: str, index: int) -> str:
        """One column of a matrix as a vector: [rows]."""
        return self.op("Gather", x, self.const(np.asarray(index, np.int64)), axis=1)

    def concat(self, parts: Sequence[str], widths: Sequence[int] = ()) -> str:
        """Matrices side by side; with their widths it is remembered which columns are indicators."""
        made = parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=1)
        if any(part in self._blocks for part in parts):
            dense = (Block(part, width, False) for part, width in zip(parts, widths, strict=True))
            self._blocks[made] = tuple(
                block for whole in dense for block in self._blocks.get(whole.name, (whole,))
            )
        return made

    def indicators(self, codes: Sequence[tuple[str, int]]) -> str:
        """Codes (int64 [rows], not negative), each as that many indicator columns, side by side: float64.

        A code out of range is all zeros.
        """
        values = self.const(np.array([0.0, 1.0], np.float32))
        made = [self.op("OneHot", code, self.const(np.array(width, np.int64)), values) for code, width in codes]
        matrix = self.double(self.concat(made))
        self._blocks[matrix] = tuple(Block(code, width, True) for code, width in codes)
        return matrix

    def double(self, x: str) -> str:
        """Cast to float64."""
        return self.op("Cast", x, to=DOUBLE)

    def affine(self, x: str, weights: npt.ArrayLike, bias: npt.ArrayLike) -> str:
        """``x @ weights + bias`` in float64; weights (in, out), bias (out,).

        Indicators are not made: their rows of the weights are looked up, so that a row costs what it holds and not
        how many categories or buckets there are.
        """
        w = np.asarray(weights, np.float64)
        b = self.const(np.broadcast_to(np.asarray(bias, np.float64).reshape(-1), (w.shape[1],)))
        if x not in self._blocks:
            return self.op("Gemm", x, self.const(w), b)
        total, start, none = b, 0, np.zeros((1, w.shape[1]))
        for block in self._blocks[x]:
            rows = w[start : start + block.width]
            start += block.width
            if block.coded:
                last = self.const(np.array(block.width, np.int64))
                found = self.op("Gather", self.const(np.vstack([rows, none])), self.op("Min", block.name, last))
            else:
                found = self.op("MatMul", block.name, self.const(rows))
            total = self.op("Add", total, found)
        return total

    def sum_rows(self, x: str, *, keep: bool = True) -> str:
        """Sum over the columns of each row."""
        return self.op("ReduceSum", x, self.const(np.array([1], np.int64)), keepdims=int(keep))

    def finish(
        self,
        inputs: Mapping[str, tuple[int, int]],
        outputs: Mapping[str, tuple[str, int, int | None]],
        metadata: Mapping[str, str],
    ) -> bytes:
        """Serialise, deterministically.

        Args:
            inputs: By name: element type and width; each is a tensor [rows, width].
            outputs: By name: tensor, element type and width; width None means [rows].
            metadata: Kept in the model's properties.
        """
        renamed = self._renamed(inputs, {name: tensor for name, (tensor, _, _) in outputs.items()})
        wanted = set(outputs)
        kept: list[NodeProto] = []
        for node in reversed(self.nodes):
            for names in (node.input, node.output):
                names[:] = [renamed.get(name, name) for name in names]
            if wanted.intersection(node.output):
                wanted.update(node.input)
                kept.append(node)
        kept.reverse()
        for position, node in enumerate(kept):
            node.name = f"{node.op_type}_{position}"
        model = ModelProto(ir_version=IR_VERSION, producer_name="modelkeep")
        graph = model.graph
        graph.name = "model"
        graph.node.extend(kept)
        graph.initializer.extend(tensor for name, tensor in self._initializers.items() if name in wanted)
        for name, (element, width) in inputs.items():
            graph.input.append(helper.make_tensor_value_info(name, element, ["rows", width]))
        for name, (_, element, size) in outputs.items():
            shape: list[Any] = ["rows"] if size is None else ["rows", size]
            graph.output.append(helper.make_tensor_value_info(name, element, shape))
        for domain, version in sorted(self.domains.items()):
            model.opset_import.append(helper.make_opsetid(domain, version))
        for key, text in sorted(metadata.items()):
            model.metadata_props.add(key=key, value=text)
        if model.ByteSize() >= 2**31 - 1:
            raise Unconvertible("the graph would exceed the 2 GB an ONNX file can hold")
        data: bytes = model.SerializeToString(deterministic=True)
        return data

    def _renamed(self, inputs: Mapping[str, tuple[int, int]], outputs: Mapping[str, str]) -> dict[str, str]:
        """New names of tensors: of a whole input its own, of what is given out the output's."""
        renamed = {
            made: x
            for made, (x, first, end) in self._runs.items()
            if x in inputs and (first, end) == (0, inputs[x][1])
        }
        self.nodes = [node for node in self.nodes if node.output[0] not in renamed]
        made = {name for node in self.nodes for name in node.output}
        for name, tensor in outputs.items():
            if tensor in made and tensor not in renamed:
                renamed[tensor] = name
            else:
                self.nodes.append(NodeProto(op_type="Identity", input=[tensor], output=[name]))
        return renamed


def attribute(name: str, value: Any) -> AttributeProto:
    """An attribute; arrays of integers become INTS without a Python loop, TensorProto stays a tensor."""
    kind = AttributeProto
    if isinstance(value, np.ndarray):
        return AttributeProto(name=name, type=kind.INTS, ints=value.astype(np.int64).tolist())
    if isinstance(value, TensorProto):
        return AttributeProto(name=name, type=kind.TENSOR, t=value)
    made: AttributeProto = helper.make_attribute(name, value)
    return made


def element_type(dtype: np.dtype[Any]) -> int:
    """The ONNX element type of a NumPy dtype."""
    return int(_ELEMENT["O" if dtype.kind in "UO" else dtype.str[1:]])


def tensor(values: npt.NDArray[Any]) -> TensorProto:
    """A nameless tensor, for attributes."""
    made: TensorProto = numpy_helper.from_array(values, "")
    return made
