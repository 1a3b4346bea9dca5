"""Open Inference requests over gRPC: messages to rows.

https://github.com/open-inference/open-inference-protocol (inference_grpc). Tensors are raw
(``raw_input_contents``, in the order of the inputs) or typed (``contents``); their shapes are as over REST.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from modelkeep.core.errors import Invalid, Problem
from modelkeep.protocols.grpc import messages
from modelkeep.protocols.grpc.beginnings import Beginnings
from modelkeep.protocols.oip import codec
from modelkeep.protocols.oip.raw import Plan, Raw
from modelkeep.serve.batching import Lane
from modelkeep.serve.columns import Rows

_MOST: Final = 256
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


class Asked:
    """What a request says beside the values of its tensors.

    Attributes:
        described: Its raw tensors.
        outputs: Name and parameters of each requested output.
    """

    __slots__ = ("described", "id", "name", "outputs", "parameters", "version")

    def __init__(self, message: Any) -> None:
        self.name: str = message.model_name
        self.version: str = message.model_version
        self.id: str = message.id
        self.parameters = _plain(message.parameters) if message.parameters else None
        self.outputs = [codec.Requested(one.name, _plain(one.parameters)) for one in message.outputs]
        self.described = tuple(
            Raw(one.name, one.datatype, tuple(one.shape), len(raw))
            for one, raw in zip(message.inputs, message.raw_input_contents, strict=False)
        )


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
        self._known: Beginnings[Asked] = Beginnings()

    def read(self, data: bytes) -> tuple[Asked, Any, int]:
        """A request.

        Returns:
            What it asks; the message, or None when it was not parsed; where the bytes of its one tensor begin.

        Raises:
            Invalid: It is no request.
        """
        known = self._known.find(data)
        if known is not None:
            return known[0], None, known[1]
        message = messages.decode(self._kind, data)
        asked = Asked(message)
        raw = message.raw_input_contents
        if len(raw) == len(message.inputs) == 1 and not asked.id:
            self._known.keep(data, _RAW, raw[0], asked)
        return asked, message, 0


def rows(lane: Lane, asked: Asked, message: Any, data: bytes, start: int) -> Rows:
    """The rows of a request that ``Requests.read`` has read.

    Raises:
        Invalid: Every fault found, as ``inputs[0].contents``.
    """
    if message is None:
        return _plan(lane, asked).rows(data, start)
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
    return _plan(lane, asked).rows(raw[0] if len(raw) == 1 else b"".join(raw))


def _plan(lane: Lane, asked: Asked) -> Plan:
    plans: dict[tuple[Raw, ...], Plan] = lane.memo.setdefault("oip grpc plans", {})
    found = plans.get(asked.described)
    if found is None:
        found = Plan(lane.inputs, asked.described, ignore_unknown=lane.ignore_unknown)
        if len(plans) >= _MOST:
            plans.clear()
        plans[asked.described] = found
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
