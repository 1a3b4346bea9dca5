"""Requests whose tensors follow their JSON head as raw bytes (binary tensor data extension).

The header ``Inference-Header-Content-Length`` says where the head ends; a tensor's parameter ``binary_data_size``,
how many of the bytes after it are its own, in the order of the inputs. A head of length 0 is no head: the body is
the one input of a model that has only one.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

import re
from itertools import count
from typing import Any, Final

import msgspec
from msgspec import Struct

from modelkeep.core.errors import Invalid, Problem
from modelkeep.protocols.oip import answers, codec, tensors
from modelkeep.protocols.oip.raw import Plan, Raw
from modelkeep.serve.batching import Lane
from modelkeep.serve.columns import Inputs, Rows, shorten

HEADER: Final = "Inference-Header-Content-Length"
_MOST_HEADS: Final = 512
_LONGEST_HEAD: Final = 16_384


class Tensor(Struct, gc=False):
    """One input tensor, its data in the head or after it."""

    name: str
    shape: list[int]
    datatype: str
    data: list[Any] | None = None
    parameters: dict[str, Any] | None = None


class Request(Struct, gc=False):
    """The head of an inference request.

    Attributes:
        serial: Names the head among those that are kept; 0 for one that is not.
    """

    inputs: list[Tensor]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[codec.Requested] | None = None
    serial: int = 0


_decoder: Final = msgspec.json.Decoder(Request)


_ID: Final = re.compile(rb'\{"id": ?"([ !#-\[\]-~]*)"')


class Heads:
    """Decodes heads. But for the id in front they come again and again: each is decoded once."""

    def __init__(self) -> None:
        self._kept: dict[bytes, Request] = {}
        self._serials = count(1)

    def decode(self, head: bytes) -> tuple[Request, str]:
        """The request that a head describes, and its id, empty without one. Raises ``Invalid``."""
        id, rest = "", head
        if head.startswith(b'{"id":'):
            found = _ID.match(head)
            if found is not None:
                id, rest = found[1].decode("ascii"), head[found.end() :]
        kept = self._kept.get(rest)
        if kept is not None:
            return kept, id
        request = codec.parsed(_decoder, head)
        request.serial = 0
        # what follows the id must not name another, in whatever spelling, which would count instead
        alone = not id or not (b'"id"' in rest or b"\\" in rest)
        if (request.id or "") == id and alone and len(rest) <= _LONGEST_HEAD:
            if len(self._kept) >= _MOST_HEADS:
                self._kept.clear()
            request.serial = next(self._serials)
            self._kept[rest] = request
        return request, request.id or ""


def head_length(text: str) -> int:
    """The value of the header.

    Raises:
        Invalid: It is no length.
    """
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise Invalid(f"{text[:60]!r} is not a number of bytes", path=HEADER)
    return int(text)


def wishes(lane: Lane, request: Request) -> tuple[answers.Wish, ...] | None:
    """The outputs that a request asks for, as ``answers.wishes``; found once for each head that is kept."""
    known: dict[int, tuple[answers.Wish, ...] | None] = lane.memo.setdefault("oip wishes", {})
    serial = request.serial
    if serial in known:
        return known[serial]
    found = answers.wishes(lane, request.outputs, request.parameters)
    if serial:
        if len(known) >= _MOST_HEADS:
            known.clear()
        known[serial] = found
    return found


def rows(lane: Lane, request: Request, body: bytes, start: int) -> Rows:
    """The rows of a request whose raw tensors begin at ``start`` of its body.

    Raises:
        Invalid: Every fault found, as ``inputs[0]``.
    """
    if all(tensor.data is None for tensor in request.inputs):
        return _plan(lane, request).rows(body, start)
    return _mixed(lane, request, body, start)


def _plan(lane: Lane, request: Request) -> Plan:
    plans: dict[int, Plan] = lane.memo.setdefault("oip plans", {})
    found = plans.get(request.serial)
    if found is None:
        described = [
            Raw(one.name, one.datatype, one.shape, _size(place, one)) for place, one in enumerate(request.inputs)
        ]
        found = Plan(lane.inputs, described, ignore_unknown=lane.ignore_unknown)
        if request.serial:
            if len(plans) >= _MOST_HEADS:
                plans.clear()
            plans[request.serial] = found
    return found


def _size(place: int, tensor: Tensor) -> int:
    parameters = tensor.parameters or {}
    path = f"inputs[{place}].parameters"
    if "shared_memory_region" in parameters:
        message = "shared memory is not supported; send the tensor in the body"
        raise Invalid(message, path=f"{path}.shared_memory_region")
    if "binary_data_size" not in parameters:
        raise Invalid("has neither data nor the parameter binary_data_size", path=f"inputs[{place}]")
    size = parameters["binary_data_size"]
    if type(size) is not int or size < 0:
        raise Invalid(f"{shorten(size)} is not a number of bytes", path=f"{path}.binary_data_size")
    return size


def _mixed(lane: Lane, request: Request, body: bytes, start: int) -> Rows:
    """Some tensors in the head, some after it: all as lists."""
    made, view = [], memoryview(body)
    for place, one in enumerate(request.inputs):
        data = one.data
        if data is None:
            size = _size(place, one)
            if start + size > len(body):
                raise Invalid(
                    f"ends {start + size - len(body)} bytes after the body does", path=f"inputs[{place}]"
                )
            path = f"inputs[{place}]"
            elements = tensors.volume(one.shape, f"{path}.shape")
            values = tensors.read(one.datatype, view[start : start + size], elements, path)
            data = values if isinstance(values, list) else values.tolist()
            start += size
        elif one.parameters and "binary_data_size" in one.parameters:
            raise Invalid("has both data and the parameter binary_data_size", path=f"inputs[{place}]")
        made.append(codec.Tensor(one.name, one.shape, one.datatype, data))
    if start != len(body):
        raise Invalid([Problem("inputs", f"{len(body) - start} bytes of the body belong to none of them")])
    return codec.rows(lane.inputs, made, ignore_unknown=lane.ignore_unknown)


def bare(inputs: Inputs, body: bytes) -> Rows:
    """The rows of a body without a head: the elements of the model's one input; one text, when it is of texts.

    Raises:
        Invalid: The model has several inputs, or the bytes are no elements of its datatype.
    """
    if len(inputs.names) != 1:
        message = f"a body without a head needs a model of one input; this one has {len(inputs.names)}"
        raise Invalid(message, path=HEADER, hint="send a JSON head that names the tensors")
    datatype = codec.DATATYPE_OF[inputs.types[0]]
    if datatype == "BYTES" and inputs.shaped:
        raise Invalid(f"a body without a head is one text; a row of {inputs.names[0]!r} has more", path=HEADER)
    if datatype == "BYTES":  # without its length, as the protocol has it
        described = tensors.elements([body])[0]
        return Plan(inputs, [Raw(inputs.names[0], datatype, [1], len(described))]).rows(described)
    shape = inputs.signature.inputs[0].shape
    size = tensors.DTYPES[datatype].itemsize * inputs.width
    if not body or len(body) % size:
        each = f" for rows of shape {list(shape)}" if shape else ""
        raise Invalid(f"{len(body)} bytes are not one or more elements of {datatype}{each}", path="inputs[0]")
    return Plan(inputs, [Raw(inputs.names[0], datatype, [len(body) // size, *shape], len(body))]).rows(body)
