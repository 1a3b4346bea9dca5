"""Spans of OpenTelemetry's protocol, binary and JSON, as the registry keeps them.

A span is kept in protobuf's JSON: what answers ask for, and what searches look into. Binary and JSON requests are
read into the same form, so the rest of the program knows one.

Source: opentelemetry.io/docs/specs/otlp (1.5.0), "OTLP/HTTP", "JSON Protobuf Encoding".
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from modelkeep.core.errors import Invalid
from modelkeep.protocols.mlflow import traces_meaning as meaning
from modelkeep.registry.traces_spans import Span, Spans

_STATUS = ("UNSET", "OK", "ERROR")
_CODES = tuple(f"STATUS_CODE_{name}" for name in _STATUS)
_KINDS = tuple(
    f"SPAN_KIND_{name}" for name in ("UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER")
)
_LARGEST = 2**63 - 1
_DEEPEST = 40
"""Levels of values inside values: far beyond what programs log, and just below what protobuf itself reads."""

_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")
_b64 = base64.b64encode
_encode = msgspec.json.Encoder().encode

Pairs = dict[str, Any]
"""Attributes: by key the JSON of an ``AnyValue``, such as ``{"string_value": "a"}``."""


class Read(msgspec.Struct):
    """A decoded request: spans by trace, how many were refused, and why the last one was."""

    traces: dict[str, Spans] = msgspec.field(default_factory=dict)
    refused: int = 0
    why: str = ""


def binary(body: bytes) -> Read:
    """Decode an ``ExportTraceServiceRequest``. Raises ``Invalid``."""
    request = ExportTraceServiceRequest()
    try:
        request.ParseFromString(body)
    except (DecodeError, RecursionError, ValueError):
        raise Invalid("the body is no ExportTraceServiceRequest of OpenTelemetry's protocol") from None
    read = Read()
    for group in request.resource_spans:
        resource = _pairs(group.resource.attributes)
        for scope in group.scope_spans:
            for span in scope.spans:
                _add(read, _from_message, span, resource)
    return read


def text(body: bytes) -> Read:
    """Decode the JSON form of the same request. Raises ``Invalid``."""
    try:
        request = msgspec.json.decode(body)
        read = Read()
        for group in _listed(request, "resourceSpans", "resource_spans"):
            resource = _json_pairs(_of(_of(group, "resource") or {}, "attributes"))
            for scope in _listed(group, "scopeSpans", "scope_spans"):
                for span in _listed(scope, "spans"):
                    _add(read, _from_json, span, resource)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"the body is no JSON of OpenTelemetry's protocol: {error}") from None
    return read


def _add(read: Read, decode: Any, span: Any, resource: Pairs) -> None:
    try:
        trace_id, found, facts = decode(span)
    except Invalid as error:
        read.refused += 1
        read.why = error.message
        return
    kept = read.traces.get(trace_id)
    if kept is None:
        kept = read.traces[trace_id] = Spans(trace_id, tags=meaning.resource_tags(resource))
    kept.spans[found.span_id] = found
    facts.tell(kept, found)


def _id(value: bytes, size: int, what: str) -> bytes:
    if len(value) != size or not any(value):
        raise Invalid(f"{what}: expected {size} bytes that are not all zero, found {len(value)}")
    return value


def _ns(value: int, what: str) -> int:
    if not 0 <= value <= _LARGEST:
        raise Invalid(f"{what}: expected nanoseconds since 1970 below 2**63")
    return value


# -- binary -----------------------------------------------------------------------------------------------------


def _value(value: Any, depth: int = 0) -> dict[str, Any]:
    kind = value.WhichOneof("value")
    if kind == "string_value":
        return {"string_value": value.string_value}
    if kind is None:
        return {}
    if kind == "double_value":
        return {"double_value": _double(value.double_value)}
    if kind == "bytes_value":
        return {"bytes_value": _b64(value.bytes_value).decode()}
    if depth > _DEEPEST:
        raise Invalid(f"an attribute holds more than {_DEEPEST} values inside each other")
    if kind == "array_value":
        return {kind: {"values": [_value(each, depth + 1) for each in value.array_value.values]}}
    if kind == "kvlist_value":
        pairs = value.kvlist_value.values
        return {kind: {"values": [{"key": each.key, "value": _value(each.value, depth + 1)} for each in pairs]}}
    return {kind: getattr(value, kind)}


def _pairs(attributes: Iterable[Any]) -> Pairs:
    return {each.key: _value(each.value) for each in attributes}


def _from_message(span: Any) -> tuple[str, Span, meaning.Facts]:
    trace_id = _id(span.trace_id, 16, "trace_id")
    span_id = _id(span.span_id, 8, "span_id")
    parent = span.parent_span_id
    start, end = span.start_time_unix_nano, span.end_time_unix_nano
    content: dict[str, Any] = {"trace_id": _b64(trace_id).decode(), "span_id": _b64(span_id).decode()}
    if span.trace_state:
        content["trace_state"] = span.trace_state
    events = [
        {"time_unix_nano": e.time_unix_nano, "name": e.name, "attributes": as_list(_pairs(e.attributes))}
        for e in span.events
    ]
    links = [
        {
            "trace_id": _b64(link.trace_id).decode(),
            "span_id": _b64(link.span_id).decode(),
            "attributes": as_list(_pairs(link.attributes)),
        }
        for link in span.links
    ]
    if 0 < span.kind < len(_KINDS):
        content["kind"] = span.kind
    status = span.status
    return _finished(
        content,
        (trace_id, span_id, parent),
        (span.name, start, end),
        _pairs(span.attributes),
        (events, links),
        (status.code, status.message),
    )


# -- JSON -------------------------------------------------------------------------------------------------------


def _of(given: Any, *names: str) -> Any:
    """A field by any of its names."""
    if not isinstance(given, dict):
        raise Invalid(f"expected an object where {names[0]} is looked for")
    return next((given[name] for name in names if given.get(name) is not None), None)


def _listed(given: Any, *names: str) -> Iterator[Any]:
    found = _of(given, *names)
    if found is None:
        return
    if not isinstance(found, list):
        raise Invalid(f"{names[0]}: expected a list")
    yield from found


def _string(given: Any, *names: str) -> str:
    found = _of(given, *names)
    if found is None:
        return ""
    if not isinstance(found, str):
        raise Invalid(f"{names[0]}: expected a string")
    return found


def _integer(given: Any, *names: str) -> int:
    found = _of(given, *names)
    try:
        number = 0 if found is None else int(found)
    except (TypeError, ValueError, OverflowError):
        number = _LARGEST + 1
    if abs(number) > _LARGEST:
        raise Invalid(f"{names[0]}: expected a whole number of 64 bits")
    return number


def _enum(given: Any, name: str, values: tuple[str, ...]) -> int:
    """A number of an enumeration, or a name, as protobuf's JSON has them."""
    found = _of(given, name)
    return values.index(found) if found in values else _integer(given, name)


def _bytes(text: str) -> str:
    try:
        base64.b64decode(text, validate=True)
    except binascii.Error:
        raise Invalid("attributes[].value.bytesValue: expected base64") from None
    return text


def _hexadecimal(given: Any, *names: str) -> bytes:
    found = _string(given, *names)
    try:
        return bytes.fromhex(found)
    except ValueError:
        raise Invalid(f"{names[0]}: expected hexadecimal digits, found {found[:40]!r}") from None


def _json_pairs(given: Any, depth: int = 0) -> Pairs:
    if given is None:
        return {}
    if not isinstance(given, list):
        raise Invalid("attributes: expected a list")
    return {_string(each, "key"): _json_value(_of(each, "value"), depth) for each in given}


def _json_value(given: Any, depth: int) -> dict[str, Any]:
    if given is None:
        return {}
    if depth > _DEEPEST:
        raise Invalid(f"an attribute holds more than {_DEEPEST} values inside each other")
    if not isinstance(given, dict):
        raise Invalid("attributes[].value: expected an object such as {'stringValue': 'a'}")
    for name, value in given.items():
        if name in ("stringValue", "string_value") and isinstance(value, str):
            return {"string_value": value}
        if name in ("bytesValue", "bytes_value") and isinstance(value, str):
            return {"bytes_value": _bytes(value)}
        if name in ("intValue", "int_value"):
            return {"int_value": _integer(given, name)}
        if name in ("boolValue", "bool_value") and isinstance(value, bool):
            return {"bool_value": value}
        if name in ("doubleValue", "double_value") and isinstance(value, int | float | str):
            return {"double_value": _double(value)}
        if name in ("arrayValue", "array_value"):
            return {"array_value": {"values": [_json_value(v, depth + 1) for v in _listed(value, "values")]}}
        if name in ("kvlistValue", "kvlist_value"):
            return {"kvlist_value": {"values": as_list(_json_pairs(_of(value, "values"), depth + 1))}}
        raise Invalid(f"attributes[].value: {name} is no kind of value, or holds another kind")
    return {}


def _from_json(span: Any) -> tuple[str, Span, meaning.Facts]:
    trace_id = _id(_hexadecimal(span, "traceId", "trace_id"), 16, "traceId")
    span_id = _id(_hexadecimal(span, "spanId", "span_id"), 8, "spanId")
    parent = _hexadecimal(span, "parentSpanId", "parent_span_id")
    content: dict[str, Any] = {"trace_id": _b64(trace_id).decode(), "span_id": _b64(span_id).decode()}
    state, kind = _string(span, "traceState", "trace_state"), _enum(span, "kind", _KINDS)
    if state:
        content["trace_state"] = state
    events = [
        {
            "time_unix_nano": _ns(_integer(each, "timeUnixNano", "time_unix_nano"), "timeUnixNano"),
            "name": _string(each, "name"),
            "attributes": as_list(_json_pairs(_of(each, "attributes"))),
        }
        for each in _listed(span, "events")
    ]
    links = [
        {
            "trace_id": _b64(_hexadecimal(each, "traceId", "trace_id")).decode(),
            "span_id": _b64(_hexadecimal(each, "spanId", "span_id")).decode(),
            "attributes": as_list(_json_pairs(_of(each, "attributes"))),
        }
        for each in _listed(span, "links")
    ]
    if 0 < kind < len(_KINDS):
        content["kind"] = kind
    status = _of(span, "status") or {}
    start = _integer(span, "startTimeUnixNano", "start_time_unix_nano")
    end = _integer(span, "endTimeUnixNano", "end_time_unix_nano")
    return _finished(
        content,
        (trace_id, span_id, parent),
        (_string(span, "name"), start, end),
        _json_pairs(_of(span, "attributes")),
        (events, links),
        (_enum(status, "code", _CODES), _string(status, "message")),
    )


# -- both -------------------------------------------------------------------------------------------------------


def as_list(pairs: Pairs) -> list[dict[str, Any]]:
    """Attributes as a list of keys and values."""
    return [{"key": key, "value": value} for key, value in pairs.items()]


def _double(value: float | str) -> float | str:
    try:
        found = float(value)
    except (ValueError, OverflowError):
        raise Invalid(f"attributes[].value.doubleValue: {str(value)[:40]!r} is no number") from None
    if math.isfinite(found):
        return found
    return "NaN" if math.isnan(found) else ("Infinity" if found > 0 else "-Infinity")


def _finished(
    content: dict[str, Any],
    ids: tuple[bytes, bytes, bytes],
    named: tuple[str, int, int],
    attributes: Pairs,
    parts: tuple[list[Any], list[Any]],
    status: tuple[int, str],
) -> tuple[str, Span, meaning.Facts]:
    trace_id, span_id, parent = ids
    name, start, end = named
    code = status[0] if 0 <= status[0] < len(_STATUS) else 0
    if parent and any(parent):
        content["parent_span_id"] = _b64(_id(parent, 8, "parent_span_id")).decode()
    else:
        parent = b""
    facts = meaning.Facts(attributes, parts[0])
    content |= {
        "name": name,
        "start_time_unix_nano": _ns(start, "start_time_unix_nano"),
        "end_time_unix_nano": _ns(end, "end_time_unix_nano"),
        "attributes": as_list(attributes),
        "events": parts[0],
        "links": parts[1],
        "status": {"code": code, "message": status[1]},
    }
    try:
        written = _encode(content).decode()
    except UnicodeEncodeError:
        raise Invalid("a text of the span is no Unicode") from None
    if "\\u0000" in written:  # which PostgreSQL could not look into
        written = _NUL.sub(r"\1\\ufffd", written)
    span = Span(
        span_id=span_id.hex(),
        parent_id=parent.hex() or None,
        name=name.replace("\0", "\ufffd"),
        type=facts.type,
        status=_STATUS[code],
        start_ns=start,
        end_ns=end or None,
        content=written,
        model=facts.model,
        provider=facts.provider,
        usage=facts.usage,
        cost=facts.cost,
    )
    return f"tr-{trace_id.hex()}", span, facts
