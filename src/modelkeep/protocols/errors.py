"""The error tree as HTTP statuses and JSON bodies, the same for every door of the serving process."""

from __future__ import annotations

import math
from collections.abc import Callable

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
    Unfit,
)
from modelkeep.serve.endpoint import Endpoint
from modelkeep.serve.http import Sink

_STATUS: tuple[tuple[type[ModelkeepError], int], ...] = (
    (Invalid, 400),
    (Unfit, 400),
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


def early(endpoint: Endpoint) -> Callable[[Sink], bool] | None:
    """What ``Head.early`` may ask of an endpoint: refuses while there is no room.

    None where it depends on the request who answers.
    """
    lane = endpoint.only
    if lane is None:
        return None
    surely, unread, overloaded = lane.surely, lane.unread, lane.overloaded
    made: dict[int, tuple[int, bytes, bytes]] = {}

    def asked(sink: Sink) -> bool:
        if surely(1):
            return False
        after = unread()
        if after is None:
            return False
        seconds = math.ceil(after)
        if seconds not in made:  # refusals cost what they cost in the worst of times
            error = overloaded(seconds)
            made[seconds] = status(error), body(error), headers(error)
        sink.write(*made[seconds])
        return True

    return asked


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
