"""The canonical status codes, and what of our errors becomes which.

https://grpc.io/docs/guides/status-codes/ ; how a status travels: PROTOCOL-HTTP2.md of the gRPC repository.
"""

from __future__ import annotations

import re
from enum import IntEnum
from typing import Final

from modelkeep.core.errors import (
    Conflict,
    Damaged,
    Invalid,
    MissingExtra,
    ModelkeepError,
    NotFound,
    Overloaded,
    Refused,
    TooLate,
    Unavailable,
    Unfit,
)
from modelkeep.protocols.grpc.hpack import literal


class Code(IntEnum):
    """A canonical status code."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


_CODES: Final[tuple[tuple[type[ModelkeepError], Code], ...]] = (
    (Invalid, Code.INVALID_ARGUMENT),
    (Unfit, Code.INVALID_ARGUMENT),
    (NotFound, Code.NOT_FOUND),
    (Overloaded, Code.RESOURCE_EXHAUSTED),
    (TooLate, Code.DEADLINE_EXCEEDED),
    (Unavailable, Code.UNAVAILABLE),
    (Refused, Code.PERMISSION_DENIED),
    (Conflict, Code.ABORTED),
    (Damaged, Code.DATA_LOSS),
    (MissingExtra, Code.FAILED_PRECONDITION),
)
_LONGEST: Final = 2048
_ESCAPED: Final = re.compile(rb"[^ -$&-~]")


class RpcError(Exception):
    """A call that ends with a status of its own rather than with one of our errors."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


def code_of(error: ModelkeepError) -> Code:
    """The code of one of our errors."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), Code.INTERNAL)


def pushback(error: ModelkeepError) -> bytes:
    """The trailer that tells a client's retry policy how long to wait, in milliseconds; none if not overloaded.

    https://github.com/grpc/proposal/blob/master/A6-client-retries.md
    """
    if not isinstance(error, Overloaded):
        return b""
    return literal(b"grpc-retry-pushback-ms", b"%d" % max(1, round(error.retry_after * 1e3)))


def trailer(code: Code, message: str = "") -> bytes:
    """``grpc-status`` and, percent-encoded and never long, ``grpc-message``."""
    made = literal(b"grpc-status", b"%d" % code)
    if message:
        text = message.encode("utf-8", "replace")
        if len(text) > _LONGEST:
            text = text[: _LONGEST - 3].decode("utf-8", "ignore").encode() + b"..."
        made += literal(b"grpc-message", _ESCAPED.sub(lambda found: b"%%%02X" % found[0][0], text))
    return made
