"""Open Inference answers over gRPC: batches to messages, every output raw.

Written by hand: what is the same for all answers of a version with as many rows is made once, and each output is
turned into bytes once per batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from modelkeep.protocols.grpc import encode
from modelkeep.protocols.oip import answers, tensors
from modelkeep.protocols.oip.answers import Wish
from modelkeep.protocols.oip.codec import DATATYPE_OF
from modelkeep.serve.batching import Lane
from modelkeep.serve.calls import Batch, Call

_MOST: Final = 256


class _Output(NamedTuple):
    """An output in answers of one number of rows.

    Attributes:
        stride: Bytes of one row's value; 0 for texts.
        opening: What stands before its bytes; empty for texts.
    """

    name: str
    datatype: str
    stride: int
    opening: bytes


class _Frame(NamedTuple):
    """What all answers of a version with as many rows have in common."""

    head: bytes
    described: bytes
    outputs: tuple[_Output, ...]


def answer(call: Call, batch: Batch, wanted: Sequence[Wish] | None = None) -> bytes:
    """The ``ModelInferResponse`` of a call's rows, serialized."""
    if wanted is not None and any(wish.classes for wish in wanted):
        return _chosen(call, batch, wanted)
    lane = batch.lane
    frames: dict[Any, _Frame] = lane.memo.setdefault("oip grpc", {})
    start, count = call.start, call.rows.count
    names = None if wanted is None else tuple(wish.name for wish in wanted)
    frame = frames.get((count, names))
    if frame is None:
        if len(frames) >= _MOST:
            frames.clear()
        frame = frames[count, names] = _frame(lane, count, names)
    parts = [frame.head, encode.text(3, call.id), frame.described]
    for name, datatype, stride, opening in frame.outputs:
        if stride:
            whole = _whole(batch, name, datatype)
            parts += (opening, whole[start * stride : (start + count) * stride])
        else:
            texts = _elements(batch, name)
            width = len(texts) // len(batch.outputs[name])
            parts.append(encode.sized(6, b"".join(texts[start * width : (start + count) * width])))
    return b"".join(parts)


def _frame(lane: Lane, count: int, names: tuple[str, ...] | None) -> _Frame:
    by_name = {field.name: field for field in lane.loaded.signature.outputs}
    described = b""
    outputs = []
    for name in by_name if names is None else names:
        field = by_name[name]
        datatype = DATATYPE_OF[field.type]
        described += _described(name, datatype, [count, *field.shape])
        stride = 0
        if datatype != "BYTES":
            stride = tensors.volume(field.shape, "outputs") * tensors.DTYPES[datatype].itemsize
        outputs.append(_Output(name, datatype, stride, encode.opening(6, stride * count) if stride else b""))
    return _Frame(_head(lane), described, tuple(outputs))


def _head(lane: Lane) -> bytes:
    return encode.text(1, lane.channel.endpoint) + encode.text(2, str(lane.channel.version))


def _described(name: str, datatype: str, shape: Sequence[int]) -> bytes:
    return encode.sized(5, encode.text(1, name) + encode.text(2, datatype) + encode.packed(3, shape))


def _whole(batch: Batch, name: str, datatype: str) -> bytes:
    key = f"{name} whole"
    found: bytes | None = batch.rendered.get(key)
    if found is None:
        found = batch.rendered[key] = tensors.write(datatype, batch.outputs[name])
    return found


def _elements(batch: Batch, name: str) -> list[bytes]:
    key = f"{name} raw"
    found: list[bytes] | None = batch.rendered.get(key)
    if found is None:
        found = batch.rendered[key] = tensors.elements(batch.outputs[name].reshape(-1).tolist())
    return found


def _chosen(call: Call, batch: Batch, wanted: Sequence[Wish]) -> bytes:
    """Some outputs as classes (classification extension)."""
    start, stop = call.start, call.start + call.rows.count
    described, raw = [], []
    for wish in wanted:
        if wish.classes:
            values = answers.classified(batch, wish, start, stop)
            described.append(_described(wish.name, "BYTES", list(values.shape)))
            raw.append(encode.sized(6, tensors.write("BYTES", values)))
        else:
            field = batch.lane.loaded.signature.outputs[wish.place]
            datatype = DATATYPE_OF[field.type]
            described.append(_described(wish.name, datatype, [stop - start, *field.shape]))
            raw.append(encode.sized(6, tensors.write(datatype, batch.outputs[wish.name][start:stop])))
    return b"".join((_head(batch.lane), encode.text(3, call.id), *described, *raw))
