"""Open Inference requests over gRPC: messages to rows.

https://github.com/open-inference/open-inference-protocol (inference_grpc). Tensors are raw
(``raw_input_contents``, in the order of the inputs) or typed (``contents``); their shapes are as over REST.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Any, Final, NamedTuple

from modelkeep.core.errors import Invalid, Problem
from modelkeep.protocols.grpc import encode, forms, messages
from modelkeep.protocols.grpc.forms import Forms, Span
from modelkeep.protocols.oip import codec
from modelkeep.protocols.oip.raw import Plan, Raw
from modelkeep.serve.batching import Lane
from modelkeep.serve.columns import Rows

_MOST: Final = 256
_ID: Final = 3
_RAW: Final = 7
_DATA: Final = re.compile(r"(inputs\[\d+\])\.data")
_CONTENTS: Final = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


class Asked(NamedTuple):
    """What a request says beside its id and the values of its tensors.

    Attributes:
        parameters: None without any.
        outputs: Name and parameters of each requested output.
        described: Its raw tensors.
        serial: Names the form of the request, if that is known; else 0.
    """

    name: str
    version: str
    parameters: dict[str, Any] | None
    outputs: tuple[codec.Requested, ...]
    described: tuple[Raw, ...]
    serial: int = 0


class Read(NamedTuple):
    """A request.

    Attributes:
        message: As parsed; None when its form was known.
        data: What holds its raw tensors, one after the other, from ``start`` on; empty when ``message`` does.
    """

    asked: Asked
    id: str
    message: Any
    data: bytes = b""
    start: int = 0


def _asked(message: Any) -> Asked:
    described = tuple(
        Raw(one.name, one.datatype, tuple(one.shape), len(raw))
        for one, raw in zip(message.inputs, message.raw_input_contents, strict=False)
    )
    outputs = tuple(codec.Requested(one.name, _plain(one.parameters)) for one in message.outputs)
    parameters = _plain(message.parameters) if message.parameters else None
    return Asked(message.model_name, message.model_version, parameters, outputs, described)


def _plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as JSON types."""
    found = {}
    for name, value in parameters.items():
        which = value.WhichOneof("parameter_choice")
        found[name] = None if which is None else getattr(value, which)
    return found


class Requests:
    """Reads requests."""

    def __init__(self) -> None:
        self._kind = messages.message("inference.ModelInferRequest")
        self._forms: Forms[tuple[Asked, bool]] = Forms()  # and whether the first hole is an id
        self._serials = count(1)

    def read(self, data: bytes) -> Read:
        """The request in ``data``.

        Raises:
            Invalid: There is none.
        """
        known = self._forms.find(data)
        if known is not None:
            return _known(data, *known)
        message = messages.decode(self._kind, data)
        asked = _asked(message)
        raw = message.raw_input_contents
        if raw and len(raw) == len(message.inputs) and not any(one.HasField("contents") for one in message.inputs):
            self._keep(data, asked, message.id, raw)
        return Read(asked, message.id, message)

    def _keep(self, data: bytes, asked: Asked, id: str, raw: Sequence[bytes]) -> None:
        """Remember a request whose fields are where clients put them."""
        holes = forms.at_end(data, _RAW, raw)
        if holes is None:
            return
        if id:
            coded = id.encode()
            before = encode.text(1, asked.name) + encode.text(2, asked.version) + encode.opening(_ID, len(coded))
            if not data.startswith(before + coded):
                return
            holes.insert(0, (len(before), len(before) + len(coded)))
        self._forms.keep(data, holes, (asked._replace(serial=next(self._serials)), bool(id)))


def _known(data: bytes, said: tuple[Asked, bool], holes: tuple[Span, ...]) -> Read:
    """A request whose form was known. Raises ``Invalid`` for an id that is not UTF-8."""
    asked, named = said
    id = ""
    if named:
        (start, stop), *holes_left = holes
        holes = tuple(holes_left)
        try:
            id = data[start:stop].decode()
        except UnicodeDecodeError:
            raise Invalid("is not UTF-8", path="id") from None
    if len(holes) == 1:
        return Read(asked, id, None, data, holes[0][0])
    return Read(asked, id, None, b"".join([data[start:stop] for start, stop in holes]))


def rows(lane: Lane, read: Read) -> Rows:
    """The rows of a request.

    Raises:
        Invalid: Every fault found, as ``inputs[0].contents``.
    """
    message = read.message
    if message is None:
        return _plan(lane, read.asked).rows(read.data, read.start)
    raw = message.raw_input_contents
    if not raw:
        return _typed(lane, message.inputs)
    if len(raw) != len(message.inputs):
        wrong = f"has {len(raw)} tensors where inputs have {len(message.inputs)}; all are raw or none is"
        raise Invalid(wrong, path="raw_input_contents")
    problems = [
        Problem(f"inputs[{place}].contents", "must not be given beside raw_input_contents")
        for place, one in enumerate(message.inputs)
        if one.HasField("contents")
    ]
    if problems:
        raise Invalid(problems[:20])
    return _plan(lane, read.asked).rows(b"".join(raw))


def _plan(lane: Lane, asked: Asked) -> Plan:
    plans: dict[Any, Plan] = lane.memo.setdefault("oip grpc plans", {})
    key = asked.serial or asked.described
    found = plans.get(key)
    if found is None:
        found = Plan(lane.inputs, asked.described, ignore_unknown=lane.ignore_unknown)
        if len(plans) >= _MOST:
            plans.clear()
        plans[key] = found
    return found


def _typed(lane: Lane, inputs: Sequence[Any]) -> Rows:
    """Tensors whose values are in lists of their type."""
    problems: list[Problem] = []
    made = []
    for place, one in enumerate(inputs):
        if "shared_memory_region" in one.parameters:
            path = f"inputs[{place}].parameters.shared_memory_region"
            problems.append(Problem(path, "shared memory is not supported; send the tensor in the request"))
            continue
        field = _CONTENTS.get(one.datatype)
        strangers = [f.name for f, _ in one.contents.ListFields() if f.name != field]
        path = f"inputs[{place}].contents"
        if field is None:
            known = ", ".join(_CONTENTS)
            detail = "FP16 and BF16 can only be raw; " if one.datatype in ("FP16", "BF16") else ""
            problems.append(
                Problem(f"inputs[{place}].datatype", f"{one.datatype[:20]!r}: {detail}expected one of {known}")
            )
        elif strangers:
            problems.append(Problem(f"{path}.{strangers[0]}", f"{one.datatype} belongs in {field}"))
        else:
            values = list(getattr(one.contents, field))
            if field == "bytes_contents":
                values = _texts(values, path, problems)
            made.append(codec.Tensor(one.name, list(one.shape), one.datatype, values))
    if problems:
        raise Invalid(problems[:20])
    try:
        return codec.rows(lane.inputs, made, ignore_unknown=lane.ignore_unknown)
    except Invalid as error:  # what REST calls data
        raise Invalid([replace(one, path=_DATA.sub(r"\1.contents", one.path)) for one in error.problems]) from None


def _texts(values: list[bytes], path: str, problems: list[Problem]) -> list[str]:
    try:
        return [value.decode() for value in values]
    except UnicodeDecodeError:
        for place, value in enumerate(values):
            if not value.isascii() and "\ufffd" in value.decode(errors="replace"):
                problems.append(Problem(f"{path}.bytes_contents[{place}]", "is not UTF-8"))
                break
        return []
