"""Open Inference Protocol v2, REST with JSON: requests to rows.

https://github.com/open-inference/open-inference-protocol (inference_rest). One tensor per input, of shape [n] or
[n, 1]; or one tensor of shape [n, inputs] in the order of the signature, under any name, when one datatype fits
every input. An input that is a tensor itself comes in its own shape, as [n, 28, 28]. Data is flat row-major or
nested; null is a missing value.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct

from modelkeep.core.errors import Invalid, Problem
from modelkeep.formats.signature import Field, Type
from modelkeep.formats.tensors import flattened
from modelkeep.serve.columns import Inputs, Rows, shorten

T = TypeVar("T")
_NONE: Final = type(None)
_BOUNDS: Final[dict[str, tuple[int, int]]] = {
    **{f"INT{bits}": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": (0, 2**bits - 1) for bits in (8, 16, 32, 64)},
}
_INT64: Final = _BOUNDS["INT64"]
_INTEGERS: Final = tuple(_BOUNDS)
_FLOATS: Final = ("FP16", "BF16", "FP32", "FP64")
DATATYPES: Final = ("BOOL", *_INTEGERS, *_FLOATS, "BYTES")
DATATYPE_OF: Final[dict[Type, str]] = {
    "float64": "FP64",
    "int64": "INT64",
    "bool": "BOOL",
    "string": "BYTES",
    "timestamp": "BYTES",
}
_VALUES: Final[dict[str, frozenset[type] | None]] = {
    **dict.fromkeys(_INTEGERS, frozenset((int, _NONE))),
    **dict.fromkeys(_FLOATS),  # whatever is no number is found when the batch is stacked
    "BOOL": frozenset((bool, _NONE)),
    "BYTES": frozenset((str, _NONE)),
}
_FITTING: Final[dict[Type, tuple[str, ...]]] = {
    "float64": (*_FLOATS, *_INTEGERS, "BOOL"),
    "int64": (*_INTEGERS, *_FLOATS, "BOOL"),
    "bool": ("BOOL", *_INTEGERS),
    "string": ("BYTES",),
    "timestamp": ("BYTES", "INT64", "UINT64"),
}
_NO: Final[frozenset[type]] = frozenset()
_ACCEPTS: Final = {(name, kind): _VALUES[name] for kind, names in _FITTING.items() for name in names}


class Tensor(Struct, gc=False):
    """One input tensor."""

    name: str
    shape: list[int]
    datatype: str
    data: list[Any]
    parameters: dict[str, Any] | None = None


class Requested(Struct, gc=False):
    """An output the client asks for."""

    name: str
    parameters: dict[str, Any] | None = None


class Request(Struct, gc=False):
    """An inference request."""

    inputs: list[Tensor]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[Requested] | None = None


_decoder: Final = msgspec.json.Decoder(Request)
_decode: Final = _decoder.decode


def decode(body: bytes) -> Request:
    """The request in ``body``. Raises ``Invalid`` as ``parsed`` does."""
    try:
        return _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return parsed(_decoder, body)  # which says what is wrong


def parsed(decoder: msgspec.json.Decoder[T], body: bytes | memoryview) -> T:
    """What a decoder finds in ``body``.

    Raises:
        Invalid: Nothing; the problem's path is that of the field.
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
        raise Invalid(message, path=path.rstrip("`").lstrip(".")) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Invalid(f"the body is not JSON: {error}") from None
    except RecursionError:
        raise Invalid("the body is nested too deeply") from None


def rows(inputs: Inputs, tensors: list[Tensor], *, ignore_unknown: bool = False) -> Rows:
    """The rows that tensors hold, with the types of their values checked.

    Raises:
        Invalid: Every fault found, as ``inputs[0].data[3]``.
    """
    if inputs.shaped:
        return _shaped(inputs, tensors, ignore_unknown)
    if len(tensors) == 1:
        tensor = tensors[0]
        shape, data = tensor.shape, tensor.data
        if (
            inputs.plain
            and len(shape) == 2
            and shape[1] == inputs.width > 1
            and len(data) == shape[0] * shape[1] > 0
            and type(data[0]) is not list
            and tensor.datatype in _FLOATS
        ):
            return Rows(shape[0], cells=data)
        if is_matrix(inputs, tensor.name, tensor.shape):
            return _matrix(inputs, tensor)
    single = _single(inputs, tensors)
    if single is not None:
        return single
    problems: list[Problem] = []
    index, kinds = inputs.index, inputs.types
    count = tensors[0].shape[0] if tensors and tensors[0].shape else 0
    cells: list[Any] = [None] * len(inputs.names)
    columns: dict[str, list[Any]] = {}
    for place, tensor in enumerate(tensors):
        at = index.get(tensor.name)
        if at is None:
            if not ignore_unknown:
                problems.append(_problem(place, "name", f"{tensor.name[:60]!r} {inputs.unknown()}"))
            continue
        data = tensor.data
        if len(data) != 1 or count != 1 or tensor.shape != _ONE or type(data[0]) is list:
            data = _column(place, tensor, count, problems)
        _check(place, tensor, kinds[at], data, problems)
        if count == 1 and data:
            cells[at] = data[0]
        if tensor.name in columns:
            problems.append(_problem(place, "name", f"{tensor.name!r} is given twice"))
        columns[tensor.name] = data
    if len(columns) < len(inputs.names):
        problems += inputs.missing(columns)
    if count < 1:
        problems.append(Problem("inputs", "hold no rows"))
    if problems:
        raise Invalid(problems)
    return Rows(1, cells=cells) if count == 1 else Rows(count, columns=columns)


def _shaped(inputs: Inputs, tensors: list[Tensor], ignore_unknown: bool) -> Rows:
    """Rows of inputs some of which are tensors."""
    problems: list[Problem] = []
    columns: dict[str, Any] = {}
    count = tensors[0].shape[0] if tensors and tensors[0].shape else 0
    for place, tensor in enumerate(tensors):
        at = place_of(inputs, tensor.name, len(tensors))
        if at < 0:
            if not ignore_unknown:
                problems.append(_problem(place, "name", f"{tensor.name[:60]!r} {inputs.unknown()}"))
            continue
        field = inputs.signature.inputs[at]
        if field.name in columns:
            problems.append(_problem(place, "name", f"{tensor.name!r} is given twice"))
        columns[field.name] = []
        if not has_shape(field, tensor.shape, count):
            wanted = f"[{', '.join(map(str, ('n', *field.shape)))}]{'' if field.shape else ' or [n, 1]'}"
            said = f"{shorten(tensor.shape)} is not {wanted}, with the same n for all"
            problems.append(_problem(place, "shape", said))
            continue
        data = tensor.data
        if data and type(data[0]) is list and len(data) == count:
            data = flattened(data, field.shape or tensor.shape[1:], f"inputs[{place}].data")
        if len(data) != count * field.size:
            _short(place, len(data), count * field.size, problems)
        _check(place, tensor, field.type, data, problems)
        columns[field.name] = data
    if count < 1 and not problems:
        problems.append(Problem("inputs", "hold no rows"))
    if problems := problems + inputs.missing(columns):
        raise Invalid(problems[:20])
    if len(inputs.names) == 1:
        return Rows(count, cells=columns[inputs.names[0]])
    return Rows(count, columns={name: split(inputs, name, values) for name, values in columns.items()})


def place_of(inputs: Inputs, name: str, tensors: int) -> int:
    """Which input a tensor is, -1 for none. Where an input keeps its shape, the only one may have any name."""
    return inputs.index.get(name, 0 if inputs.shaped and tensors == len(inputs.names) == 1 else -1)


def has_shape(field: Field, shape: Sequence[int], count: int) -> bool:
    """Whether a tensor of this shape holds ``count`` rows of an input."""
    return tuple(shape) == (count, *field.shape) or (not field.shape and tuple(shape) == (count, 1))


def split(inputs: Inputs, name: str, values: list[Any]) -> list[Any]:
    """The values of an input row by row, when it is a tensor."""
    field = inputs.signature.inputs[inputs.index[name]]
    size = field.size
    return [values[at : at + size] for at in range(0, len(values), size)] if field.shape else values


def is_matrix(inputs: Inputs, name: str, shape: Sequence[int]) -> bool:
    """Whether a request's only tensor holds all inputs at once.

    Under a name that is no input's it can mean nothing else; under an input's name, only if its width is that of
    all inputs, since one input alone would be of shape [n, 1].
    """
    return len(shape) == 2 and (name not in inputs.index or shape[1] == len(inputs.names) > 1)


def fits(datatype: str, kind: Type) -> bool:
    """Whether an input of this type takes tensors of this datatype."""
    return datatype in _FITTING[kind]


_ONE: Final = [1]
_GAP: Final = object()


def _single(inputs: Inputs, tensors: list[Tensor]) -> Rows | None:
    """One row in which every input is given once as it should be; None sends all else the long way."""
    places = _places(inputs)
    cells: list[Any] = [_GAP] * len(inputs.names)
    if len(tensors) != len(cells):
        return None
    for tensor in tensors:
        place = places.get((tensor.name, tensor.datatype))
        if place is None or tensor.shape != _ONE or len(tensor.data) != 1:
            return None
        at, accepted = place
        value = tensor.data[0]
        if accepted is not None and (
            type(value) not in accepted or (type(value) is int and not _INT64[0] <= value <= _INT64[1])
        ):
            return None
        cells[at] = value
    return None if _GAP in cells else Rows(1, cells=cells)  # a gap: some other input came twice


def _places(inputs: Inputs) -> dict[tuple[str, str], tuple[int, frozenset[type] | None]]:
    """Position and accepted values by name and datatype; made once per version."""
    found: dict[tuple[str, str], tuple[int, frozenset[type] | None]] | None = inputs.memo.get("oip")
    if found is None:
        found = inputs.memo["oip"] = {
            (name, datatype): (at, _VALUES[datatype])
            for at, (name, kind) in enumerate(zip(inputs.names, inputs.types, strict=True))
            for datatype in _FITTING[kind]
            if datatype not in _BOUNDS or datatype == "INT64"
        }
    return found


def _column(place: int, tensor: Tensor, count: int, problems: list[Problem]) -> list[Any]:
    """The values of a tensor of shape [n] or [n, 1], flat."""
    shape, data = tensor.shape, tensor.data
    if shape not in ([count], [count, 1]):
        wanted = "[n] or [n, 1]" if not shape or len(shape) > 2 or shape[1:] not in ([], [1]) else f"[{count}]"
        problems.append(_problem(place, "shape", f"{shorten(shape)} is not {wanted}, with the same n for all"))
        return []
    return _flat(place, tensor, count, problems) if data else _short(place, 0, count, problems)


def _flat(place: int, tensor: Tensor, size: int, problems: list[Problem]) -> list[Any]:
    data = tensor.data
    if type(data[0]) is list and all(type(row) is list for row in data):
        data = list(chain.from_iterable(data))
    return data if len(data) == size else _short(place, len(data), size, problems)


def _short(place: int, found: int, size: int, problems: list[Problem]) -> list[Any]:
    problems.append(_problem(place, "data", f"holds {found} values where the shape says {size}"))
    return []


def _matrix(inputs: Inputs, tensor: Tensor) -> Rows:
    """All inputs in one tensor of shape [n, inputs]."""
    count, width = tensor.shape
    problems: list[Problem] = []
    if width != len(inputs.names) or count < 1:
        shape = f"and its shape {shorten(tensor.shape)} is not [n, {len(inputs.names)}] of all inputs"
        raise Invalid([_problem(0, "name", f"{tensor.name[:60]!r} {inputs.unknown()}; {shape}")])
    data = _flat(0, tensor, count * width, problems) if tensor.data else _short(0, 0, count * width, problems)
    if not problems:
        for kind in set(inputs.types):
            _check(0, tensor, kind, data, problems)
    if problems:
        raise Invalid(problems)
    return Rows(count, cells=data)


def _check(place: int, tensor: Tensor, kind: Type, data: list[Any], problems: list[Problem]) -> None:
    """Whether the datatype fits the input and the values fit the datatype."""
    accepted = _ACCEPTS.get((tensor.datatype, kind), _NO)
    if accepted is None:
        return
    if accepted is _NO:
        problems.append(_unfit(place, tensor.datatype, kind))
    elif not accepted.issuperset(map(type, data)) or not _within(tensor.datatype, data):
        problems += _strangers(place, tensor, data, accepted)


def _within(datatype: str, data: list[Any]) -> bool:
    """Whether integers (and nulls) fit their datatype."""
    bounds = _BOUNDS.get(datatype)
    if bounds is None:
        return True
    values = [value for value in data if value is not None] if None in data else data
    return not values or (bounds[0] <= min(values) and max(values) <= bounds[1])


def _strangers(place: int, tensor: Tensor, data: Iterable[Any], accepted: frozenset[type]) -> list[Problem]:
    low, high = _BOUNDS.get(tensor.datatype, (-math.inf, math.inf))
    return [
        _problem(place, f"data[{row}]", f"{shorten(value)} is not {tensor.datatype}")
        for row, value in enumerate(data)
        if type(value) not in accepted or (type(value) is int and not low <= value <= high)
    ][:20]


def _unfit(place: int, datatype: str, kind: Type) -> Problem:
    if datatype not in DATATYPES:
        return unknown_datatype(place, datatype)
    expected = ", ".join(_FITTING[kind])
    return _problem(place, "datatype", f"{datatype} does not fit an input of type {kind}; expected {expected}")


def unknown_datatype(place: int, datatype: str) -> Problem:
    """What to say of a datatype that the protocol does not have."""
    return _problem(place, "datatype", f"{datatype[:20]!r} is not one of {', '.join(DATATYPES)}")


def _problem(place: int, field: str, message: str) -> Problem:
    return Problem(f"inputs[{place}].{field}", message)
