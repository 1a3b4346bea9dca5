"""The error tree as HTTP statuses and JSON bodies, the same for every door of the serving process."""

from __future__ import annotations

import math

import msgspec

from modelkeep.core.errors import (
    Conflict,
    Damaged,
    Invalid,
    ModelkeepError,
    NotFound,
    Overloaded,
    Refused,
    TooLate,
    Unavailable,
)
from modelkeep.serve.http import Sink

_STATUS: tuple[tuple[type[ModelkeepError], int], ...] = (
    (Invalid, 400),
    (Refused, 403),
    (NotFound, 404),
    (Conflict, 409),
    (Overloaded, 429),
    (TooLate, 504),
    (Unavailable, 503),
    (Damaged, 503),
)
_encode = msgspec.json.Encoder().encode


def status(error: ModelkeepError) -> int:
    """The HTTP status of an error."""
    return next((code for kind, code in _STATUS if isinstance(error, kind)), 500)


def headers(error: ModelkeepError) -> bytes:
    """Header lines that go with an error: ``retry-after`` in whole seconds (RFC 9110, 10.2.3) when overloaded."""
    return b"retry-after: %d\r\n" % math.ceil(error.retry_after) if isinstance(error, Overloaded) else b""


def refuse(sink: Sink, error: ModelkeepError) -> None:
    """Write an error as the answer of a request."""
    sink.write(status(error), body(error), headers(error))


def body(error: ModelkeepError) -> bytes:
    """``{"error": "...", "problems": [{"path", "message"}]}``; ``problems`` only for what was given wrong."""
    content: dict[str, object] = {"error": str(error)}
    if isinstance(error, Invalid):
        content["problems"] = [{"path": p.path, "message": p.message} for p in error.problems]
    try:
        return _encode(content)
    except UnicodeEncodeError:  # a lone surrogate from the request's own text
        return _encode(
            {"error": str(error).encode("utf-8", "replace").decode(), "problems": []},
        )
