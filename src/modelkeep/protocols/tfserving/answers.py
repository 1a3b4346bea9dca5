"""TensorFlow Serving's answers: batches to messages, written by hand where that spares a step per row.

Tensors hold their values in the field of their type, as TensorFlow Serving's own do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from modelkeep.formats.signature import Type
from modelkeep.protocols.grpc import encode
from modelkeep.protocols.tfserving.codec import class_labels
from modelkeep.protocols.tfserving.signatures import DEFAULT
from modelkeep.serve.batching import Lane
from modelkeep.serve.calls import Batch, Call
from modelkeep.serve.columns import Array

_DOUBLE, _STRING, _INT64, _BOOL = 2, 7, 9, 10
_DTYPE: Final[dict[Type, int]] = {
    "float64": _DOUBLE,
    "int64": _INT64,
    "bool": _BOOL,
    "string": _STRING,
    "timestamp": _STRING,
}
_FIELD: Final = {_DOUBLE: 6, _STRING: 8, _INT64: 10, _BOOL: 11}
_FLOAT_VALUE: Final = {"score": b"\x15", "value": b"\x0d"}  # fields 2 and 1, 32 bits


def prediction(call: Call, batch: Batch, wanted: Sequence[str] = ()) -> bytes:
    """The ``PredictResponse`` of a call's rows, serialized."""
    start, stop = call.start, call.start + call.rows.count
    parts = []
    for field in batch.lane.loaded.signature.outputs:
        if wanted and field.name not in wanted:
            continue
        dtype = _DTYPE[field.type]
        shape = b"".join(encode.sized(2, encode.number(1, size)) for size in (stop - start, *field.shape))
        tensor = encode.number(1, dtype) + encode.sized(2, shape) + _values(batch, field.name, dtype, start, stop)
        parts.append(encode.sized(1, encode.text(1, field.name) + encode.sized(2, tensor)))
    parts.append(encode.sized(2, model_spec(batch.lane)))
    return b"".join(parts)


def model_spec(lane: Lane, signature: str = DEFAULT) -> bytes:
    """The ``ModelSpec`` of who answered."""
    version = encode.sized(2, encode.number(1, lane.channel.version))
    return encode.text(1, lane.channel.endpoint) + version + encode.text(3, signature)


def _values(batch: Batch, name: str, dtype: int, start: int, stop: int) -> bytes:
    """An output's values in the field of their type."""
    column = batch.outputs[name]
    key = f"tf {name}"
    if dtype == _DOUBLE:
        whole: bytes | None = batch.rendered.get(key)
        if whole is None:
            whole = batch.rendered[key] = column.astype("<f8", copy=False).tobytes()
        stride = 8 * (column.size // len(column))
        return encode.sized(_FIELD[dtype], whole[start * stride : stop * stride])
    pieces: list[bytes] | None = batch.rendered.get(key)
    if pieces is None:
        pieces = batch.rendered[key] = _pieces(column.reshape(-1).tolist(), dtype)
    width = column.size // len(column)
    joined = b"".join(pieces[start * width : stop * width])
    return joined if dtype == _STRING else encode.sized(_FIELD[dtype], joined)


def _pieces(values: list[Any], dtype: int) -> list[bytes]:
    """Each value as it stands in its field; the same few labels come again and again."""
    made: dict[Any, bytes] = {}
    for value in set(values):
        if dtype == _STRING:
            made[value] = encode.sized(_FIELD[dtype], str(value).encode("utf-8", "replace"))
        else:
            made[value] = encode.varint(int(value) & 0xFFFF_FFFF_FFFF_FFFF)
    return [made[value] for value in values]


def classification(call: Call, batch: Batch) -> bytes:
    """The ``ClassificationResult`` of a call's rows, serialized: every class with its probability."""
    labels = [encode.text(1, label) for label in class_labels(batch.lane)]
    return _scored(call, batch, "probability", labels, _FLOAT_VALUE["score"])


def regression(call: Call, batch: Batch) -> bytes:
    """The ``RegressionResult`` of a call's rows, serialized."""
    return _scored(call, batch, "prediction", [], _FLOAT_VALUE["value"])


def _scored(call: Call, batch: Batch, output: str, labels: list[bytes], tag: bytes) -> bytes:
    """Messages that differ between rows only in their numbers: one is written, copied, its numbers filled in."""
    key = f"tf scored {output}"
    found: tuple[int, bytes] | None = batch.rendered.get(key)
    if found is None:
        column = batch.outputs[output]
        numbers = column.reshape(len(column), -1).astype("<f4")
        zero = bytes(4)
        row, places = b"", []
        for label in labels:
            row += encode.sized(1, label + tag + zero)
            places.append(len(row))
        if not labels:
            row = tag + zero
            places = [len(row)]
        opened = encode.sized(1, row)
        shift = len(opened) - len(row)
        filled = _filled(opened, [place + shift - 4 for place in places], numbers)
        found = batch.rendered[key] = (len(opened), filled.tobytes())
    stride, whole = found
    return whole[call.start * stride : (call.start + call.rows.count) * stride]


def _filled(row: bytes, places: list[int], numbers: Array) -> Array:
    """(rows, bytes of one) with the bytes of each number at its place."""
    made = np.tile(np.frombuffer(row, np.uint8), (len(numbers), 1))
    for at, place in enumerate(places):
        made[:, place : place + 4] = np.ascontiguousarray(numbers[:, at : at + 1]).view(np.uint8)
    return made
