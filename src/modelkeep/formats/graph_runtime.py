"""Any ONNX graph, whoever exported it, in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime

from modelkeep.core.errors import Damaged, Invalid
from modelkeep.formats.batch import Layout
from modelkeep.formats.feed import Feed, Feeder, Part, failed, named
from modelkeep.formats.onnx_runtime import options
from modelkeep.formats.outputs import Form, formed
from modelkeep.formats.signature import Field, Signature
from modelkeep.formats.tensors import column_names, size_of, type_of

_DTYPES = {
    "float16": "float16",
    "float": "float32",
    "double": "float64",
    "bool": "bool",
    "string": "str",
    **{f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


class GraphModel:
    """A graph with inputs and outputs of its own. Safe to call from several threads: a session's ``run`` is.

    Args:
        graph: The file, whose external weights are mapped into memory and shared; or its bytes.
        signature: Of the package.
        feed: Which inputs make which tensor.
        threads: Of one prediction.
        mapped: Whether its weights are in large files beside it.

    Raises:
        Damaged: ONNX Runtime cannot load it.
    """

    def __init__(
        self, graph: Path | bytes, signature: Signature, feed: Feed, *, threads: int = 1, mapped: bool = False
    ) -> None:
        self._session = session(graph, threads, mapped=mapped)
        self._outputs = [output.name for output in self._session.get_outputs()]
        self.signature = signature
        self.layout = Layout(signature)
        self._feeder = Feeder(feed, self.layout.number_at, self.layout.string_at)
        self._names = [part.name for part in feed.parts]
        self._form = Form(feed.gives, tuple(self._outputs), flat=True) if feed.gives else None

    def predict(self, columns: Mapping[str, Any]) -> Mapping[str, Any]:
        """Arrays by input name (fastest as a ``Batch``) to arrays by output name.

        Raises:
            UserCodeFailed: The graph refuses these rows.
        """
        batch = self.layout.pack(columns)
        try:
            given = dict(zip(self._names, self._feeder.tensors(batch), strict=True))
            found = self._session.run(self._outputs, given)
            return formed(named(tuple(found), batch.rows, self._outputs), self._form)
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise failed("the graph", error) from error


def session(graph: Path | bytes, threads: int = 1, *, mapped: bool = False) -> Any:
    """An inference session. Raises ``Damaged`` when ONNX Runtime cannot load the graph."""
    try:
        return onnxruntime.InferenceSession(
            graph if isinstance(graph, bytes) else str(graph),
            options(threads, mapped=mapped),
            providers=["CPUExecutionProvider"],
        )
    except Exception as error:  # its exceptions share no base class
        raise Damaged(f"ONNX Runtime cannot load the graph: {error}") from error


def inputs_of(graph: Path | bytes, said: Sequence[Field]) -> tuple[tuple[Field, ...], Feed]:
    """The columns that a graph takes and how they become its tensors.

    Args:
        said: The columns as its author declared them; empty when he did not.

    Raises:
        Invalid: An input has a type or shape that columns cannot make, or the columns do not fit the graph.
    """
    tensors = [(one.name, _dtype(one), _shape(one)) for one in session(graph).get_inputs()]
    if not said:
        parts = tuple(
            Part(name=name, dtype=dtype, shape=shape, columns=tuple(column_names(name, shape)))
            for name, dtype, shape in tensors
        )
        fields = [Field(name=name, type=type_of(part.dtype)) for part in parts for name in part.columns]
        return tuple(fields), Feed(kind="tensors", parts=parts)
    names = [field.name for field in said]
    if len(tensors) == 1:
        name, dtype, shape = tensors[0]
        if size_of(shape) != len(names):
            raise Invalid(f"the graph takes {size_of(shape)} values a row, the signature names {len(names)}")
        return tuple(said), Feed(
            kind="tensors", parts=(Part(name=name, dtype=dtype, shape=shape, columns=tuple(names)),)
        )
    if {name for name, _, _ in tensors} != set(names):
        raise Invalid(
            f"the graph takes {', '.join(name for name, _, _ in tensors)}; the signature names {', '.join(names)}"
        )
    parts = tuple(Part(name=name, dtype=dtype, shape=shape, columns=(name,)) for name, dtype, shape in tensors)
    return tuple(said), Feed(kind="tensors", parts=parts)


def _dtype(one: Any) -> str:
    kind = str(one.type).removeprefix("tensor(").removesuffix(")")
    if kind not in _DTYPES:
        raise Invalid(f"input {one.name!r} of the graph is a {one.type}, which columns cannot make")
    return _DTYPES[kind]


def _shape(one: Any) -> tuple[int, ...]:
    shape = one.shape[1:]
    if not one.shape or not all(isinstance(length, int) and length > 0 for length in shape):
        raise Invalid(
            f"input {one.name!r} of the graph has shape {one.shape}; expected rows first and the rest fixed",
            hint="log the model with a signature, or export it with fixed dimensions",
        )
    return tuple(shape)
