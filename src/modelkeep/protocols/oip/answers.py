"""From batches to responses: JSON, raw tensors after a JSON head, or classifications.

https://github.com/triton-inference-server/server/tree/main/docs/protocol (extension_binary_data,
extension_classification).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from modelkeep.core.errors import Invalid, Problem
from modelkeep.protocols.oip import tensors
from modelkeep.protocols.oip.codec import DATATYPE_OF, Requested
from modelkeep.serve.batching import Lane
from modelkeep.serve.calls import Batch, Call
from modelkeep.serve.columns import Array, shorten
from modelkeep.serve.http import JSON

OCTETS: Final = b"application/octet-stream"
_MOST_KEPT: Final = 1024
_encode: Final = msgspec.json.Encoder().encode


class Wish(NamedTuple):
    """One output as its client wants it.

    Attributes:
        place: In the signature.
        binary: Whether as raw bytes after the JSON head.
        classes: How many classes with the highest values, as texts ``value:index[:label]``; 0 for the values.
    """

    place: int
    name: str
    binary: bool
    classes: int = 0


def wishes(
    lane: Lane, outputs: Sequence[Requested] | None, parameters: Mapping[str, Any] | None, binary: bool = False
) -> tuple[Wish, ...] | None:
    """The outputs a request asks for; None for every output as JSON, which is answered fastest.

    Args:
        outputs: As requested; none for all.
        parameters: Of the request: ``binary_data_output``.
        binary: Whether outputs are raw when neither says.

    Raises:
        Invalid: An output that the version does not have, or a parameter of a wrong type.
    """
    problems: list[Problem] = []
    binary = _flag(parameters, "binary_data_output", "parameters", binary, problems)
    names = [output.name for output in lane.loaded.signature.outputs]
    found = []
    for at, one in enumerate(outputs or ()):
        path = f"outputs[{at}]"
        if one.name not in names:
            known = ", ".join(names)
            problems.append(Problem(f"{path}.name", f"{one.name[:60]!r} is not one of {known}"))
            continue
        raw = _flag(one.parameters, "binary_data", f"{path}.parameters", binary, problems)
        classes = (one.parameters or {}).get("classification", 0)
        if type(classes) is not int or classes < 0:
            problems.append(
                Problem(f"{path}.parameters.classification", f"{shorten(classes)} is not a number of classes")
            )
        elif classes and lane.loaded.signature.outputs[names.index(one.name)].type == "string":
            problems.append(Problem(f"{path}.parameters.classification", "the output holds texts, not values"))
        else:
            found.append(Wish(names.index(one.name), one.name, raw, classes))
        if "shared_memory_region" in (one.parameters or {}):
            problems.append(Problem(f"{path}.parameters.shared_memory_region", "shared memory is not supported"))
    if problems:
        raise Invalid(problems[:20])
    if outputs:
        return tuple(found)
    return tuple(Wish(place, name, binary) for place, name in enumerate(names)) if binary else None


def _flag(given: Mapping[str, Any] | None, name: str, path: str, default: bool, problems: list[Problem]) -> bool:
    value = (given or {}).get(name, default)
    if type(value) is not bool:
        problems.append(Problem(f"{path}.{name}", f"{shorten(value)} is not true or false"))
    return value is True


class _Frame:
    """What every answer of one version has in common."""

    __slots__ = ("head", "names", "row")

    def __init__(self, lane: Lane) -> None:
        about = {"model_name": lane.channel.endpoint, "model_version": str(lane.channel.version)}
        self.head = _encode(about)[:-1] + b',"id":'
        self.names = [output.name for output in lane.loaded.signature.outputs]
        tensors = [_opening(lane, place, 1).replace(b"%", b"%%") for place in range(len(self.names))]
        # what follows the id in an answer of one row, but for the outputs' values
        self.row = b',"outputs":[' + b",".join(b'%s,"data":[%%s]}' % one for one in tensors) + b"]}"


def _opening(lane: Lane, place: int, count: int) -> bytes:
    output = lane.loaded.signature.outputs[place]
    tensor = {"name": output.name, "datatype": DATATYPE_OF[output.type], "shape": [count, *output.shape]}
    return _encode(tensor)[:-1]


def _frame(lane: Lane) -> _Frame:
    frame: _Frame | None = lane.memo.get("oip")
    if frame is None:
        frame = lane.memo["oip"] = _Frame(lane)
    return frame


def answer(call: Call, batch: Batch) -> bytes:
    """The response's JSON for the call's rows, with every output."""
    count = call.rows.count
    if count == 1:
        head, rows = batch.rendered.get("oip rows") or _rows(batch)
        return b"%s%s%s" % (head, _encode(call.id), rows[call.start])
    frame, start = _frame(batch.lane), call.start
    parts = [frame.head, _encode(call.id)]
    for place, name in enumerate(frame.names):
        parts += (b"]}," if place else b',"outputs":[', _opening(batch.lane, place, count), b',"data":[')
        parts.append(b",".join(rendered(batch, name)[start : start + count]))
    parts.append(b"]}]}")
    return b"".join(parts)


def _rows(batch: Batch) -> tuple[bytes, list[bytes]]:
    """What answers of one row begin with, and how each ends behind its id; made once for the batch."""
    frame = _frame(batch.lane)
    texts = zip(*(rendered(batch, name) for name in frame.names), strict=True)
    made = batch.rendered["oip rows"] = frame.head, [frame.row % row for row in texts]
    return made


def rendered(batch: Batch, name: str) -> list[bytes]:
    """Each row's values as JSON, flat, made with one call of the encoder for the whole batch."""
    found: list[bytes] | None = batch.rendered.get(name)
    if found is None:
        column = batch.outputs[name]
        if column.ndim > 2:
            column = column.reshape(len(column), -1)
        values = column.tolist()
        if column.ndim == 2 and column.dtype.kind in "OU":
            found = [_encode(row)[1:-1] for row in values]
        elif column.ndim == 2:
            found = _encode(values)[2:-2].split(b"],[")
        elif column.dtype.kind in "OU":
            found = [_encode(value) for value in values]
        else:
            found = _encode(values)[1:-1].split(b",")
        batch.rendered[name] = found
    return found


def chosen(call: Call, batch: Batch, wanted: Sequence[Wish]) -> tuple[bytes, bytes, bytes]:
    """The response with the outputs a request asks for, as it wants them.

    Returns:
        Body, header lines and content type, as ``serve.http.Sink.write`` takes them.
    """
    lane, count = batch.lane, call.rows.count
    start, stop = call.start, call.start + count
    known: dict[tuple[Sequence[Wish], int], bytes] = lane.memo.setdefault("oip descriptions", {})
    described = known.get((wanted, count))
    if described is not None:
        raw = [_raw(batch, wish, start, stop) for wish in wanted]
    else:
        described, raw = _described(batch, wanted, start, stop)
        if _is_fixed(lane, wanted):
            if len(known) >= _MOST_KEPT:
                known.clear()
            known[wanted, count] = described
    head = b"".join((_frame(lane).head, _encode(call.id), described))
    if not raw:
        return head, b"", JSON
    return b"".join((head, *raw)), b"Inference-Header-Content-Length: %d\r\n" % len(head), OCTETS


def _is_fixed(lane: Lane, wanted: Sequence[Wish]) -> bool:
    """Whether what describes the outputs depends on nothing but the number of rows: raw numbers, all of them."""
    outputs = lane.loaded.signature.outputs
    return all(
        wish.binary and not wish.classes and DATATYPE_OF[outputs[wish.place].type] != "BYTES" for wish in wanted
    )


def _described(batch: Batch, wanted: Sequence[Wish], start: int, stop: int) -> tuple[bytes, list[bytes]]:
    """The outputs in JSON, and the raw tensors that follow it."""
    parts: list[bytes] = [b',"outputs":[']
    raw: list[bytes] = []
    for at, wish in enumerate(wanted):
        opening, data = _tensor(batch, wish, start, stop)
        parts += (b"," if at else b"", opening)
        if wish.binary:
            parts.append(b',"parameters":{"binary_data_size":%d}}' % len(data))
            raw.append(data)
        else:
            parts += (b',"data":[', data, b"]}")
    parts.append(b"]}")
    return b"".join(parts), raw


def _tensor(batch: Batch, wish: Wish, start: int, stop: int) -> tuple[bytes, bytes]:
    """An output's description, and its values raw or as JSON."""
    if wish.classes:
        values = classified(batch, wish, start, stop)
        opening = _encode({"name": wish.name, "datatype": "BYTES", "shape": list(values.shape)})[:-1]
        raw = tensors.write("BYTES", values) if wish.binary else b""
        return opening, raw or _encode(values.reshape(-1).tolist())[1:-1]
    opening = _opening(batch.lane, wish.place, stop - start)
    if wish.binary:
        return opening, _raw(batch, wish, start, stop)
    return opening, b",".join(rendered(batch, wish.name)[start:stop])


def _raw(batch: Batch, wish: Wish, start: int, stop: int) -> bytes:
    """Rows of an output as a raw tensor; the whole batch becomes one at once."""
    key = f"{wish.name} raw"
    made: bytes | list[bytes] | None = batch.rendered.get(key)
    if made is None:
        datatype = DATATYPE_OF[batch.lane.loaded.signature.outputs[wish.place].type]
        column = batch.outputs[wish.name]
        texts = datatype == "BYTES"
        made = tensors.elements(column.reshape(-1).tolist()) if texts else tensors.write(datatype, column)
        batch.rendered[key] = made
    width = len(made) // len(batch.outputs[wish.name])
    if isinstance(made, list):
        return b"".join(made[start * width : stop * width])
    return made[start * width : stop * width]


def classified(batch: Batch, wish: Wish, start: int, stop: int) -> Array:
    """``value:index[:label]`` of the classes with the highest values, highest first: (n, classes) texts."""
    column = batch.outputs[wish.name][start:stop]
    values = column.reshape(len(column), -1).astype(np.float64)
    count = min(wish.classes, values.shape[1])
    order = np.argsort(-values, axis=1, kind="stable")[:, :count]
    top = np.take_along_axis(values, order, axis=1)
    labels = batch.lane.loaded.signature.classes
    names = [f":{label}" for label in labels] if len(labels) == values.shape[1] else [""] * values.shape[1]
    texts = [
        [f"{value:f}:{index}{names[index]}" for value, index in zip(row, places, strict=True)]
        for row, places in zip(top.tolist(), order.tolist(), strict=True)
    ]
    return np.array(texts, dtype=object).reshape(len(column), count)
