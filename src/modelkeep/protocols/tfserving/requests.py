"""TensorFlow Serving's messages: tensors and examples to rows.

https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/framework/tensor.proto
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import count
from typing import Any, Final, NamedTuple

import numpy as np

from modelkeep.core.errors import Invalid, Problem
from modelkeep.protocols.grpc import forms, messages
from modelkeep.protocols.grpc.forms import Forms
from modelkeep.protocols.oip import codec, tensors
from modelkeep.protocols.oip.raw import Plan, Raw
from modelkeep.serve.batching import Lane
from modelkeep.serve.columns import Rows, shorten

_INPUTS: Final = 2
_VERSION: Final = 3
_CONTENT: Final = 4
_PACKED: Final = {1: 5, 2: 6}
_SIZED: Final = 2
_MOST: Final = 256
_MOST_FILLED: Final = 1 << 20
_PLACE: Final = re.compile(r"inputs\[(\d+)\](\.data)?")


class _Kind(NamedTuple):
    """A TensorFlow type: how Open Inference calls it, and the field of its values."""

    datatype: str
    field: str


_KINDS: Final = {
    1: _Kind("FP32", "float_val"),
    2: _Kind("FP64", "double_val"),
    3: _Kind("INT32", "int_val"),
    4: _Kind("UINT8", "int_val"),
    5: _Kind("INT16", "int_val"),
    6: _Kind("INT8", "int_val"),
    7: _Kind("BYTES", "string_val"),
    9: _Kind("INT64", "int64_val"),
    10: _Kind("BOOL", "bool_val"),
    14: _Kind("BF16", "half_val"),
    17: _Kind("UINT16", "int_val"),
    19: _Kind("FP16", "half_val"),
    22: _Kind("UINT32", "uint32_val"),
    23: _Kind("UINT64", "uint64_val"),
}


class Spec(NamedTuple):
    """Which model a request means. A version of -1 is none."""

    name: str
    version: str
    label: str
    signature: str


def spec(message: Any) -> Spec:
    """What a ``ModelSpec`` says."""
    which = message.WhichOneof("version_choice")
    version = str(message.version.value) if which == "version" else ""
    return Spec(message.name, version, message.version_label, message.signature_name)


class Asked(NamedTuple):
    """What a request to predict says beside the values of its tensors.

    Attributes:
        wanted: Names of the outputs it asks for; none for all.
        described: Its tensors, if the form of the request is known.
        serial: Names the form; 0 if it is not known.
    """

    spec: Spec
    wanted: tuple[str, ...]
    described: tuple[Raw, ...] = ()
    serial: int = 0


class Requests:
    """Reads requests to predict."""

    def __init__(self) -> None:
        self._kind = messages.message("tensorflow.serving.PredictRequest")
        self._forms: Forms[Asked] = Forms()
        self._serials = count(1)

    def read(self, data: bytes) -> tuple[Asked, Any, bytes, int]:
        """A request.

        Returns:
            What it asks; the message, or None when its form was known; then what holds its tensors, one after the
            other, and where they begin there.

        Raises:
            Invalid: It is no request.
        """
        known = self._forms.find(data)
        if known is not None:
            asked, holes = known
            if len(holes) == 1:
                return asked, None, data, holes[0][0]
            return asked, None, b"".join([data[start:stop] for start, stop in holes]), 0
        message = messages.decode(self._kind, data)
        asked = Asked(spec(message.model_spec), tuple(message.output_filter))
        found = _spans(data, message.inputs)
        if found is not None:
            described, spans = found
            self._forms.keep(data, spans, asked._replace(described=described, serial=next(self._serials)))
        return asked, message, b"", 0


def _spans(data: bytes, inputs: Mapping[str, Any]) -> tuple[tuple[Raw, ...], list[forms.Span]] | None:
    """What the tensors are and where their numbers stand, if all stand there as they lie in memory.

    So do those in ``tensor_content``, and, packed, floats and doubles in the field of their type.
    """
    described: list[Raw] = []
    spans: list[forms.Span] = []
    for number, _, (start, stop) in forms.fields(data, 0, len(data)):
        if number != _INPUTS:
            continue
        entry = [(field, span) for field, _, span in forms.fields(data, start, stop)]
        if [field for field, _ in entry] != [1, 2]:
            return None
        name = data[slice(*entry[0][1])].decode()
        found = [one for one in forms.fields(data, *entry[1][1]) if one[0] > _VERSION]
        tensor = inputs[name]
        kind = _KINDS.get(tensor.dtype)
        if len(found) != 1 or kind is None or tensor.tensor_shape.unknown_rank:
            return None
        field, wire, span = found[0]
        if wire != _SIZED or kind.datatype == "BYTES" or field not in (_CONTENT, _PACKED.get(tensor.dtype)):
            return None
        described.append(Raw(name, kind.datatype, _shape(name, tensor), span[1] - span[0]))
        spans.append(span)
    whole = spans and len({one.name for one in described}) == len(described)
    return (tuple(described), spans) if whole and _lie_well(described) else None


def _lie_well(described: list[Raw]) -> bool:
    """Whether each tensor has a value for each element: what lacks is filled in when the message is parsed."""
    try:
        return all(
            one.size == tensors.volume(one.shape, "") * tensors.DTYPES[one.datatype].itemsize for one in described
        )
    except Invalid:
        return False


def rows(lane: Lane, asked: Asked, message: Any, raw: bytes, start: int) -> Rows:
    """The rows of a request that ``Requests.read`` has read.

    Raises:
        Invalid: Every fault found, as ``inputs.distance``.
    """
    try:
        if message is None:
            return _plan(lane, asked.serial, asked.described).rows(raw, start)
        inputs: Mapping[str, Any] = message.inputs
        names = list(inputs)
        kinds = [_kind(name, inputs[name]) for name in names]
        contents = [inputs[name].tensor_content for name in names]
        if names and all(contents) and not any(kind.datatype == "BYTES" for kind in kinds):
            described = tuple(
                Raw(name, kind.datatype, _shape(name, inputs[name]), len(content))
                for name, kind, content in zip(names, kinds, contents, strict=True)
            )
            return _plan(lane, described, described).rows(b"".join(contents))
        return codec.rows(
            lane.inputs,
            [_listed(name, kind, inputs[name]) for name, kind in zip(names, kinds, strict=True)],
            ignore_unknown=lane.ignore_unknown,
        )
    except Invalid as error:  # tensors have names here, not places
        known = [one.name for one in asked.described] if message is None else list(message.inputs)

        def named(found: re.Match[str]) -> str:
            return f"inputs.{known[int(found[1])]}"

        raise Invalid([replace(one, path=_PLACE.sub(named, one.path)) for one in error.problems]) from None


def _plan(lane: Lane, key: Any, described: tuple[Raw, ...]) -> Plan:
    plans: dict[Any, Plan] = lane.memo.setdefault("tf plans", {})
    found = plans.get(key)
    if found is None:
        if len(plans) >= _MOST:
            plans.clear()
        found = plans[key] = Plan(lane.inputs, described, ignore_unknown=lane.ignore_unknown)
    return found


def _kind(name: str, tensor: Any) -> _Kind:
    found = _KINDS.get(tensor.dtype)
    if found is None:
        raise Invalid(f"tensors of the type {tensor.dtype} are not taken", path=f"inputs.{name}.dtype")
    return found


def _shape(name: str, tensor: Any) -> tuple[int, ...]:
    shape = tensor.tensor_shape
    if shape.unknown_rank:
        raise Invalid("the rank is unknown; expected [n] or [n, 1]", path=f"inputs.{name}.tensor_shape")
    return tuple(dim.size for dim in shape.dim)


def _listed(name: str, kind: _Kind, tensor: Any) -> codec.Tensor:
    """A tensor with its values in a list."""
    path = f"inputs.{name}"
    shape = _shape(name, tensor)
    count = tensors.volume(shape, f"{path}.tensor_shape")
    if tensor.tensor_content:
        if kind.datatype == "BYTES":
            raise Invalid("texts go into string_val", path=f"{path}.tensor_content")
        found = tensors.read(kind.datatype, tensor.tensor_content, count, f"{path}.tensor_content")
        values: list[Any] = found if isinstance(found, list) else found.tolist()
    else:
        values = _filled(list(getattr(tensor, kind.field)), count, f"{path}.{kind.field}")
        if kind.datatype == "BYTES":
            values = _texts(values, f"{path}.string_val")
        elif kind.field == "half_val":
            values = _halves(values, kind.datatype)
    datatype = "FP32" if kind.datatype in ("FP16", "BF16") else kind.datatype
    return codec.Tensor(name, list(shape), datatype, values)


def _filled(values: list[Any], count: int, path: str) -> list[Any]:
    """As many values as there are elements: what lacks at the end equals the last one, as TensorFlow has it."""
    if len(values) == count:
        return values
    if not values or len(values) > count or count > _MOST_FILLED:
        raise Invalid(f"holds {len(values)} values where the shape says {count}", path=path)
    return values + values[-1:] * (count - len(values))


def _halves(values: list[int], datatype: str) -> list[float]:
    """Half-precision numbers, each given as the bits of one."""
    bits = np.array(values, np.uint32)
    if datatype == "FP16":
        return bits.astype(np.uint16).view(np.float16).astype(np.float64).tolist()  # type: ignore[no-any-return]
    return (bits << np.uint32(16)).view(np.float32).astype(np.float64).tolist()  # type: ignore[no-any-return]


def _texts(values: list[bytes], path: str) -> list[str]:
    try:
        return list(map(bytes.decode, values))
    except UnicodeDecodeError as error:
        raise Invalid(f"{shorten(error.object)} is not UTF-8", path=path) from None


def example_rows(lane: Lane, given: Any) -> Rows:
    """The rows of an ``Input``: examples, each a map of features, with what they share as context.

    Raises:
        Invalid: Every fault found; at ``input.examples[3].hour`` where a feature has several values.
    """
    which = given.WhichOneof("kind")
    if which is None:
        raise Invalid("is missing", path="input")
    listed = getattr(given, which)
    shared = dict(listed.context.features.feature) if which == "example_list_with_context" else {}
    found = [{**shared, **example.features.feature} for example in listed.examples]
    if not found:
        raise Invalid("hold no rows", path="input.examples")
    problems: list[Problem] = []
    names = dict.fromkeys(name for features in found for name in features)
    columns = {
        name: [_value(features.get(name), row, name, problems) for row, features in enumerate(found)]
        for name in names
    }
    if problems:
        raise Invalid(problems[:20])
    return lane.inputs.named(columns, ignore_unknown=lane.ignore_unknown)


def _value(feature: Any, row: int, name: str, problems: list[Problem]) -> Any:
    """The one value of a feature; None when there is none."""
    which = None if feature is None else feature.WhichOneof("kind")
    if which is None:
        return None
    values = getattr(feature, which).value
    if len(values) > 1:
        problems.append(Problem(f"input.examples[{row}].{name}", f"has {len(values)} values, expected one"))
    if len(values) != 1:
        return None
    value = values[0]
    if which == "bytes_list":
        try:
            return value.decode()
        except UnicodeDecodeError:
            problems.append(Problem(f"input.examples[{row}].{name}", f"{shorten(value)} is not UTF-8"))
    return value
