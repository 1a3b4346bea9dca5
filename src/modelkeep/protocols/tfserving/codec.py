"""TensorFlow Serving's JSON: requests to rows, batches to bytes.

https://www.tensorflow.org/tfx/serving/api_rest
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, Final

import msgspec
from msgspec import Struct

from modelkeep.core.errors import Invalid
from modelkeep.protocols.mlflow import scoring
from modelkeep.protocols.oip.answers import rendered
from modelkeep.protocols.oip.codec import parsed
from modelkeep.serve.batching import Lane
from modelkeep.serve.calls import Batch, Call
from modelkeep.serve.columns import Rows


class Predict(Struct, gc=False):
    """A request to predict: either ``instances`` or ``inputs``."""

    instances: list[Any] | None = None
    inputs: Any = None
    signature_name: str | None = None


class Examples(Struct, gc=False):
    """A request to classify or regress.

    Attributes:
        context: Features that all examples share.
    """

    examples: list[dict[str, Any]]
    context: dict[str, Any] | None = None
    signature_name: str | None = None


_predict: Final = msgspec.json.Decoder(Predict)
_examples: Final = msgspec.json.Decoder(Examples)
_encode: Final = msgspec.json.Encoder().encode


def decode_predict(body: bytes) -> Predict:
    """The request in ``body``.

    Raises:
        Invalid: It is none; the problem's path is that of the field.
    """
    found = parsed(_predict, body)
    if (found.instances is None) == (found.inputs is None):
        given = "Missing" if found.instances is None else "Found both"
        raise Invalid(f"{given} 'inputs' or 'instances' key; expected exactly one of them")
    return found


def decode_examples(body: bytes) -> Examples:
    """The request in ``body``. Raises ``Invalid``."""
    return parsed(_examples, body)


def rows(lane: Lane, request: Predict, body: bytes) -> Rows:
    """The rows of a request to predict.

    A row is an object of values by input, or a list of all of them in the order of the signature; a column is a
    list. A value may stand in a list of its own, as inputs of shape [n, 1] have it; a tensor's is nested lists.

    Raises:
        Invalid: Every fault found.
    """
    given = request.inputs if request.instances is None else request.instances
    path = "inputs" if request.instances is None else "instances"
    if b'"b64"' in body:
        given = _unpacked(given, path)
    if request.instances is None:
        asked = scoring.Invocation(inputs=given if isinstance(given, dict | list) else [given])
    else:
        asked = scoring.Invocation(instances=given if lane.inputs.shaped else _bare(given))
    return scoring.rows(lane.inputs, asked, ignore_unknown=lane.ignore_unknown)


def example_rows(lane: Lane, request: Examples, body: bytes) -> Rows:
    """The rows of a request to classify or regress. Raises ``Invalid``."""
    examples = request.examples
    if request.context:
        examples = [{**request.context, **example} for example in examples]
    if b'"b64"' in body:
        examples = _unpacked(examples, "examples")
    if not examples:
        raise Invalid("hold no rows", path="examples")
    asked = scoring.Invocation(dataframe_records=examples if lane.inputs.shaped else _bare(examples))
    return scoring.rows(lane.inputs, asked, ignore_unknown=lane.ignore_unknown)


def _bare(given: list[Any]) -> list[Any]:
    """Rows as objects without the lists around single values."""
    first = given[0] if given else None
    if not isinstance(first, dict) or list not in set(map(type, first.values())):
        return given
    return [
        {name: _single(value) for name, value in row.items()} if isinstance(row, dict) else row for row in given
    ]


def _single(value: Any) -> Any:
    return value[0] if type(value) is list and len(value) == 1 else value


def _unpacked(value: Any, path: str) -> Any:
    """``{"b64": ...}`` as the text it stands for, wherever it is.

    Raises:
        Invalid: It is no base64 of UTF-8.
    """
    if type(value) is list:
        return [_unpacked(item, f"{path}[{place}]") for place, item in enumerate(value)]
    if type(value) is not dict:
        return value
    if value.keys() != {"b64"}:
        return {name: _unpacked(item, f"{path}.{name}") for name, item in value.items()}
    try:
        return base64.b64decode(value["b64"], validate=True).decode()
    except (TypeError, binascii.Error, UnicodeDecodeError, ValueError) as error:
        raise Invalid(f"is no base64 of UTF-8: {error}", path=f"{path}.b64") from None


# answers


def predictions(call: Call, batch: Batch) -> bytes:
    """The row format: values, or objects by name when there are several outputs."""
    start, stop = call.start, call.start + call.rows.count
    rows: list[bytes] | None = batch.rendered.get("tf rows")
    if rows is None:
        names = [field.name for field in batch.lane.loaded.signature.outputs]
        columns = [_values(batch, name) for name in names]
        if len(names) == 1:
            rows = columns[0]
        else:
            keys = [_encode(name) + b":" for name in names]
            rows = [
                b"{%b}" % b",".join([key + value for key, value in zip(keys, values, strict=True)])
                for values in zip(*columns, strict=True)
            ]
        batch.rendered["tf rows"] = rows
    return b'{"predictions":[%b]}' % b",".join(rows[start:stop])


def outputs(call: Call, batch: Batch) -> bytes:
    """The column format: a list, or lists by name when there are several outputs."""
    start, stop = call.start, call.start + call.rows.count
    names = [field.name for field in batch.lane.loaded.signature.outputs]
    columns = [b"[%b]" % b",".join(_values(batch, name)[start:stop]) for name in names]
    if len(names) == 1:
        return b'{"outputs":%b}' % columns[0]
    pairs = [_encode(name) + b":" + column for name, column in zip(names, columns, strict=True)]
    return b'{"outputs":{%b}}' % b",".join(pairs)


def _values(batch: Batch, name: str) -> list[bytes]:
    """Each row's value of an output as JSON."""
    if batch.outputs[name].ndim > 2:
        return [_encode(row) for row in batch.outputs[name].tolist()]
    found = rendered(batch, name)
    return [b"[%b]" % text for text in found] if batch.outputs[name].ndim > 1 else found


def classes(call: Call, batch: Batch) -> bytes:
    """``[label, score]`` of every class, in the order of the model's classes."""
    start, stop = call.start, call.start + call.rows.count
    labels = class_labels(batch.lane)
    scores = batch.outputs["probability"][start:stop].tolist()
    return _encode({"result": [list(zip(labels, row, strict=True)) for row in scores]})


def class_labels(lane: Lane) -> list[str]:
    """The model's classes as texts, which is all that this protocol has for them."""
    found: list[str] | None = lane.memo.get("tf labels")
    if found is None:
        found = lane.memo["tf labels"] = [str(label) for label in lane.loaded.signature.classes]
    return found


def values(call: Call, batch: Batch) -> bytes:
    """A regression's value of each row."""
    start, stop = call.start, call.start + call.rows.count
    return b'{"result":[%b]}' % b",".join(rendered(batch, "prediction")[start:stop])
