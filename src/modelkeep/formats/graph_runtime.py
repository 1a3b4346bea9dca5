"""Any ONNX graph, whoever exported it, in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from modelkeep.core.errors import Damaged, Invalid
from modelkeep.formats.batch import Layout
from modelkeep.formats.feed import Feed, Feeder, Part, as_inputs, failed, named
from modelkeep.formats.onnx_runtime import options
from modelkeep.formats.outputs import Form, formed
from modelkeep.formats.signature import Field, Signature
from modelkeep.formats.tensors import size_of

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
        self._singly = any(one.shape and one.shape[0] == 1 for one in self._session.get_inputs())
        self._form = Form(feed.gives, tuple(self._outputs), flat=True) if feed.gives else None

    def predict(self, columns: Mapping[str, Any]) -> Mapping[str, Any]:
        """Arrays by input name (fastest as a ``Batch``) to arrays by output name.

        Raises:
            UserCodeFailed: ONNX Runtime cannot run it on these rows.
        """
        batch = self.layout.pack(columns)
        try:
            arrays = self._feeder.tensors(batch)
            if self._singly and batch.rows != 1:  # exported for one row, and no other number
                each = [self._run([array[row : row + 1] for array in arrays]) for row in range(batch.rows)]
                found = tuple(np.concatenate(column) for column in zip(*each, strict=True))
            else:
                found = self._run(arrays)
            return formed(named(found, batch.rows, self._outputs), self._form)
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise failed("the graph", error) from error

    def _run(self, arrays: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(self._session.run(self._outputs, dict(zip(self._names, arrays, strict=True))))


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


def inputs_of(
    graph: Path | bytes, said: Sequence[Field], feed: Feed | None
) -> tuple[tuple[Field, ...], Feed] | str:
    """The inputs that a graph takes and how they become its tensors; or why it cannot be run on inputs here.

    A dimension that the graph leaves open is as long as the signature says.

    Args:
        said: The inputs as its author declared them; empty when he did not.
        feed: How these become what the model was logged with.

    Raises:
        Invalid: The inputs do not fit the graph.
    """
    tensors = [_Tensor(one) for one in session(graph).get_inputs()]
    strange = [tensor.strange() for tensor in tensors if tensor.strange()]
    if strange:
        return strange[0]
    if feed is None:
        open_ones = [tensor for tensor in tensors if not tensor.fixed]
        if open_ones:
            return open_ones[0].unfixed("it has no signature that says how long the rest is")
        return as_inputs([(tensor.name, tensor.dtype, tensor.filled()) for tensor in tensors])
    if len(tensors) == 1 and (feed.kind == "frame" or len(feed.parts) == 1):
        given = {tensors[0].name: tuple(field.name for field in said)}
    else:
        given = {part.name: part.columns for part in feed.parts} or {field.name: (field.name,) for field in said}
    takes = [tensor.name for tensor in tensors]
    if set(takes) != set(given):
        raise Invalid(f"the graph takes {', '.join(takes)}; the signature names {', '.join(given)}")
    shapes = {part.columns: part.shape for part in feed.parts}
    parts = []
    for tensor in tensors:
        columns = given[tensor.name]
        wanted = shapes.get(columns, (len(columns),))
        shape = tensor.shape_for(wanted)
        if shape is None and not tensor.fixed:
            return tensor.unfixed(f"the signature gives it rows of shape {list(wanted)}")
        if shape is None:
            size = size_of(tensor.filled())
            raise Invalid(f"the graph takes {size} values a row, the signature names {size_of(wanted)}")
        parts.append(Part(name=tensor.name, dtype=tensor.dtype, shape=shape, columns=columns))
    return tuple(said), Feed(kind="tensors", parts=tuple(parts))


class _Tensor:
    """An input of a graph.

    Attributes:
        dtype: NumPy's name of its type; empty when it has none.
        rest: Its dimensions but the first; 0 for one that is left open.
    """

    def __init__(self, one: Any) -> None:
        self.name = str(one.name)
        self.kind = str(one.type)
        self.dtype = _DTYPES.get(self.kind.removeprefix("tensor(").removesuffix(")"), "")
        self.shape = list(one.shape or ())
        self.rest = [length if isinstance(length, int) and length > 0 else 0 for length in self.shape[1:]]
        self.fixed = 0 not in self.rest

    def strange(self) -> str:
        """Why no input can be it; empty when some can."""
        if not self.dtype:
            return f"input {self.name!r} of the graph is a {self.kind}"
        if not self.shape:
            return f"input {self.name!r} of the graph has no dimension for rows"
        return ""

    def unfixed(self, why: str) -> str:
        return f"input {self.name!r} of the graph has shape {self.shape}, and {why}"

    def filled(self) -> tuple[int, ...]:
        """The shape of a row when no dimension is left open."""
        return tuple(self.rest)

    def shape_for(self, wanted: Sequence[int]) -> tuple[int, ...] | None:
        """The shape of a row that is said to have shape ``wanted``; None when it does not fit."""
        if len(wanted) == len(self.rest) and all(
            mine in (0, length) for mine, length in zip(self.rest, wanted, strict=True)
        ):
            return tuple(wanted)
        if self.fixed:
            return self.filled() if size_of(self.rest) == size_of(wanted) else None
        left = size_of(wanted) // size_of([length or 1 for length in self.rest])
        open_ones = self.rest.count(0)
        if size_of(wanted) == 1 or open_ones == 1:
            made = tuple(length or left for length in self.rest)
            return made if size_of(made) == size_of(wanted) else None
        return None
