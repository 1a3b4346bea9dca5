"""MLflow's REST conventions as values: an operation, its decoding, its errors.

Requests are protobuf's JSON: whole numbers may be strings, ``NaN`` and infinities are strings, null means unset,
unknown fields are ignored. Source: the service definitions MLflow publishes (mlflow.org/docs, "REST API").
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Literal
from urllib.parse import parse_qs

import msgspec
from msgspec import Struct

from modelkeep.core.errors import (
    Conflict,
    Damaged,
    Invalid,
    ModelkeepError,
    NotFound,
    Refused,
    Unavailable,
)

Work = Callable[[Any], Any]
"""What is done in a transaction, given its ``Connection``; a task is given the ``Database``.

Gives the answer's content, to be encoded as JSON; None is an empty object.
"""


class Operation(Struct, frozen=True):
    """One operation of the protocol.

    Attributes:
        method: HTTP method.
        path: Below ``/api/2.0/mlflow/``; ``{name}`` stands for one segment.
        takes: Struct of the request's fields.
        run: Checks the request and gives the work; takes the request and the time in milliseconds.
        kind: Whether the work reads or writes, in a transaction; or is a task that is given the ``Database``.
        conflict: The error code of a ``Conflict``.
        shape: Makes the answer's content of the work's result and the work; None when the result is the content.
    """

    method: str
    path: str
    takes: Any
    run: Callable[[Any, int], Work]
    kind: Literal["read", "write", "task"] = "read"
    conflict: str = "RESOURCE_ALREADY_EXISTS"
    shape: Callable[[Any, Any], Any] | None = None

    @property
    def name(self) -> str:
        """Method and path."""
        return f"{self.method} {self.path}"


class NotOffered(ModelkeepError):
    """A part of MLflow's API that is not built."""


_CODES: tuple[tuple[type[ModelkeepError], str], ...] = (
    (Invalid, "INVALID_PARAMETER_VALUE"),
    (NotFound, "RESOURCE_DOES_NOT_EXIST"),
    (Refused, "PERMISSION_DENIED"),
    (NotOffered, "NOT_IMPLEMENTED"),
    (Unavailable, "TEMPORARILY_UNAVAILABLE"),
    (Damaged, "DATA_LOSS"),
)
_STATUS = {
    "INVALID_PARAMETER_VALUE": 400,
    "RESOURCE_ALREADY_EXISTS": 400,
    "PERMISSION_DENIED": 403,
    "RESOURCE_DOES_NOT_EXIST": 404,
    "ENDPOINT_NOT_FOUND": 404,
    "NOT_IMPLEMENTED": 501,
    "TEMPORARILY_UNAVAILABLE": 503,
}
MAX_BODY = 32 * 1024 * 1024
"""Bytes of the largest request that is not an artifact."""
encode = msgspec.json.Encoder().encode


def as_error(error: ModelkeepError, conflict: str = "RESOURCE_ALREADY_EXISTS") -> tuple[int, bytes]:
    """HTTP status and ``{"error_code", "message"}`` of an error."""
    if isinstance(error, Conflict):
        code = conflict
    else:
        code = next((name for kind, name in _CODES if isinstance(error, kind)), "INTERNAL_ERROR")
    return error_body(code, str(error))


def error_body(code: str, message: str) -> tuple[int, bytes]:
    """HTTP status and body of an error code."""
    clean = message.encode("utf-8", "replace").decode()  # a lone surrogate of the request's own text
    return _STATUS.get(code, 500), encode({"error_code": code, "message": clean})


def decode(takes: Any, path: Mapping[str, str], query: bytes, body: bytes) -> Any:
    """The request of an operation, from its path, its query or its body. Raises ``Invalid``."""
    if not body or body.isspace():
        given: dict[str, Any] = _query(takes, query)
        given.update(path)
        return _convert(given, takes)
    if not path:
        try:
            return msgspec.json.decode(body, type=takes, strict=False)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass  # nulls, bare NaN, a wrong type: looked at again below, where time does not matter
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Invalid(f"Invalid JSON in the request: {error}") from None
    if not isinstance(parsed, dict):
        raise Invalid("Expected a JSON object in the request")
    try:
        json.dumps(parsed, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise Invalid("A text in the request is no Unicode: it holds half of a surrogate pair") from None
    return _convert({**_without_nulls(parsed), **path}, takes)


def _query(takes: Any, query: bytes) -> dict[str, Any]:
    given: dict[str, Any] = {}
    try:
        pairs = parse_qs(query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=10_000)
    except ValueError:
        raise Invalid("Invalid query string") from None
    listed = _listed(takes)
    for name, values in pairs.items():
        given[name] = values if name in listed else values[-1]
    return given


@lru_cache(maxsize=256)
def _listed(takes: Any) -> frozenset[str]:
    """The fields that may be given several times."""
    fields = msgspec.structs.fields(takes)
    return frozenset(each.encode_name for each in fields if getattr(each.type, "__origin__", None) is list)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _convert(given: dict[str, Any], takes: Any) -> Any:
    try:
        return msgspec.convert(given, type=takes, strict=False)
    except msgspec.ValidationError as error:
        message, _, where = str(error).partition(" - at ")
        if message.startswith("Object missing required field"):
            name = message.split("`")[1]
            raise missing(name) from None
        field = where.strip("`").removeprefix("$.")
        raise Invalid(f"Invalid value for parameter '{field}' supplied: {message}") from None


def missing(name: str) -> Invalid:
    """A required field that was not given."""
    return Invalid(
        f"Missing value for required parameter '{name}'. See the API docs for more information about request"
        " parameters."
    )


def number(value: float | None) -> float | str:
    """A double as protobuf's JSON has it; None is NaN."""
    if value is None or math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value
