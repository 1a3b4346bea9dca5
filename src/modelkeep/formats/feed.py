"""From checked columns to what a model of another framework takes, and from what it gives to columns again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from modelkeep.core.errors import ModelkeepError, Unfit, UserCodeFailed
from modelkeep.formats.batch import Batch
from modelkeep.formats.signature import Field, Type
from modelkeep.formats.tensors import as_columns, fields_of

if TYPE_CHECKING:
    import pandas as pd

Array = npt.NDArray[Any]
_REFUSALS = (ValueError, TypeError, KeyError)


class Part(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One tensor that a model takes.

    Attributes:
        name: As the model knows it; empty when it takes it by position.
        dtype: NumPy's name of its type.
        shape: Of one row's value, row-major; empty for a scalar.
        columns: The inputs it is made of, one for each of its values; or the one input of this shape.
    """

    name: str = ""
    dtype: str
    shape: tuple[int, ...] = ()
    columns: tuple[str, ...]


class Feed(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How columns become what a model takes.

    Attributes:
        kind: ``frame`` a DataFrame; ``tensors`` arrays.
        casts: Of a frame: NumPy types by column, where they are not those of the signature.
        parts: Of tensors.
        gives: How MLflow's server writes what a graph gives: as records when the graph was logged for a
            DataFrame, as columns when for tensors; empty for a graph that MLflow does not know.
    """

    kind: Literal["frame", "tensors"] = "frame"
    casts: dict[str, str] = {}
    parts: tuple[Part, ...] = ()
    gives: Literal["", "records", "columns"] = ""


def as_inputs(tensors: Sequence[tuple[str, str, tuple[int, ...]]]) -> tuple[tuple[Field, ...], Feed]:
    """The inputs that tensors are, given by name, NumPy's type and shape of a row; and how they become them again.

    Raises:
        Invalid: A row has more values than any request can carry.
    """
    columns = as_columns([shape for _, _, shape in tensors])
    fields = [fields_of(name or "x", dtype, shape, columns=columns) for name, dtype, shape in tensors]
    parts = [
        Part(name=name, dtype=dtype, shape=shape, columns=tuple(field.name for field in mine))
        for (name, dtype, shape), mine in zip(tensors, fields, strict=True)
    ]
    return tuple(chain.from_iterable(fields)), Feed(kind="tensors", parts=tuple(parts))


class Feeder:
    """A feed over the columns of one signature. Made once per model."""

    def __init__(self, feed: Feed, number_at: Mapping[str, int], string_at: Mapping[str, int]) -> None:
        self.feed = feed
        self._plans = [_Plan(part, number_at, string_at) for part in feed.parts]

    def frame(self, batch: Batch) -> pd.DataFrame:
        """The batch as a DataFrame."""
        from modelkeep.formats.frames import frame_of

        made = frame_of(batch)
        return made.astype(self.feed.casts) if self.feed.casts else made

    def tensors(self, batch: Batch) -> list[Array]:
        """Each part as a C-contiguous array (n, *shape)."""
        return [plan.array(batch) for plan in self._plans]

    def given(self, batch: Batch) -> Any:
        """What a Python function takes: a DataFrame, one array, or arrays by name."""
        if self.feed.kind == "frame":
            return self.frame(batch)
        arrays = self.tensors(batch)
        if len(arrays) == 1 and not self.feed.parts[0].name:
            return arrays[0]
        return {part.name: array for part, array in zip(self.feed.parts, arrays, strict=True)}


class _Plan:
    """Where a part's columns lie in a batch."""

    def __init__(self, part: Part, number_at: Mapping[str, int], string_at: Mapping[str, int]) -> None:
        self.texts = part.columns[0] in string_at
        at = string_at if self.texts else number_at
        self.places = [at[name] for name in part.columns]
        whole = len(part.columns) == 1 and math.prod(part.shape) > 1
        self.span = slice(self.places[0], self.places[0] + math.prod(part.shape)) if whole else None
        self.dtype = np.dtype(object if self.texts else part.dtype)
        self.shape = part.shape

    def array(self, batch: Batch) -> Array:
        block: Array
        if self.span is not None:
            block = batch.texts(self.span) if self.texts else np.ascontiguousarray(batch.numbers[self.span].T)
        else:
            block = batch.texts(self.places) if self.texts else batch.matrix(self.places)
        return block.astype(self.dtype, copy=False).reshape(len(block), *self.shape)


def named(found: Any, rows: int, names: Sequence[str] = ()) -> dict[str, Array]:
    """What a model gave, as arrays (rows, ...) by name.

    Takes an array, a DataFrame or Series, arrays by name, or a sequence of arrays; what has no name is called
    ``prediction``, or ``output_0``, ``output_1`` when there are several.

    Args:
        names: What to call the arrays of a sequence.

    Raises:
        ModelkeepError: It gave another number of rows than it got, or what is no array.
    """
    if hasattr(found, "to_dict") and hasattr(found, "columns"):
        found = {str(name): found[name].to_numpy() for name in found.columns}
    elif hasattr(found, "to_numpy"):
        found = found.to_numpy()
    if isinstance(found, Mapping):
        pairs = [(str(name), values) for name, values in found.items()]
    elif isinstance(found, tuple) or (isinstance(found, list) and names):
        pairs = list(zip(names or [f"output_{place}" for place in range(len(found))], found, strict=True))
    else:
        pairs = [(names[0] if names else "prediction", found)]
    if not pairs:
        raise ModelkeepError(f"the model gave nothing for {rows} rows")
    return {name: _array(name, values, rows) for name, values in pairs}


def _array(name: str, values: Any, rows: int) -> Array:
    values = values.to_numpy() if hasattr(values, "to_numpy") else values
    if isinstance(values, list) and values and isinstance(values[0], Mapping):  # ONNX's sequence of maps
        values = np.array([[row[key] for key in sorted(values[0])] for row in values])
    try:
        array = np.asarray(values)
    except ValueError:
        raise ModelkeepError(f"the model gave {name!r} as lists of unequal length for {rows} rows") from None
    if array.shape[:1] != (rows,):
        raise ModelkeepError(f"the model gave {name!r} of shape {array.shape} for {rows} rows")
    kind = array.dtype.kind
    if kind == "f":
        return array.astype(np.float64, copy=False)
    if kind in "iu":
        return array.astype(np.int64, copy=False)
    if kind == "b":
        return array
    if kind == "M":
        return np.datetime_as_string(array, timezone="UTC").astype(object)
    made = array.astype(object)
    kinds = set(map(type, made.ravel().tolist()))
    if kinds and kinds <= {bool, np.bool_}:
        return made.astype(np.bool_)
    if kinds and kinds <= {int}:
        return made.astype(np.int64)
    if kinds and kinds <= {float, int, type(None)}:
        return made.astype(np.float64)
    if not kinds <= {str, type(None)}:
        made.ravel()[:] = [_text(value) for value in made.ravel()]
    return made


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def field_of(name: str, array: Array) -> Field:
    """The output that such an array is."""
    kinds: dict[str, Type] = {"f": "float64", "i": "int64", "b": "bool"}
    return Field(name=name, type=kinds.get(array.dtype.kind, "string"), shape=tuple(array.shape[1:]))


T = TypeVar("T")


def asked(what: str, predict: Callable[[], T]) -> T:
    """What a model's own code gives.

    Raises:
        Unfit: It raised what code raises on input that it cannot take.
        UserCodeFailed: It raised something else.
    """
    try:
        return predict()
    except Exception as error:  # whatever the code raises
        raise failed(what, error, given=True) from error


def refuses(error: BaseException) -> bool:
    """Whether code raises such an error on input that it cannot take; MLflow's own says so by an HTTP status."""
    status = getattr(error, "get_http_status_code", None)
    return isinstance(error, _REFUSALS) or (callable(status) and 400 <= status() < 500)


def failed(what: str, error: BaseException, *, given: bool = False) -> ModelkeepError:
    """What a model raised while it predicted, as our error.

    Args:
        given: Whether its own code raised it, over what it was given.
    """
    if isinstance(error, ModelkeepError):
        return error
    if isinstance(error, MemoryError):
        return ModelkeepError(f"{what} ran out of memory", hint="raise deploy.memory, or send fewer rows at once")
    kind = Unfit if given and refuses(error) else UserCodeFailed
    return kind(f"{what} could not predict these rows", traceback=f"{type(error).__name__}: {error}")
