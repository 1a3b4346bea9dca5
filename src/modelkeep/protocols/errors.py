"""The error tree as HTTP statuses and JSON bodies, the same for every door of the serving process."""

from __future__ import annotations

import msgspec

from modelkeep.core.errors import Conflict, Damaged, Invalid, ModelkeepError, NotFound, Refused, Unavailable

_STATUS: tuple[tuple[type[ModelkeepError], int], ...] = (
    (Invalid, 400),
    (Refused, 403),
    (NotFound, 404),
    (Conflict, 409),
    (Unavailable, 503),
    (Damaged, 503),
)
_encode = msgspec.json.Encoder().encode


def status(error: ModelkeepError) -> int:
    """The HTTP status of an error."""
    return next((code for kind, code in _STATUS if isinstance(error, kind)), 500)


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
