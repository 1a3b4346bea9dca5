"""The frames of HTTP/2 (RFC 9113, 4 and 6)."""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD: Final = Struct(">HBBBI")
"""Length (the upper two bytes, then the lowest), type, flags, stream."""

HEAD_SIZE: Final = 9
MOST: Final = 2**31 - 1
"""The largest window and the largest stream."""

DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
WEIGHED: Final = 0x20
"""A HEADERS frame begins with a priority."""


class Setting(IntEnum):
    """What SETTINGS can set."""

    HEADER_TABLE_SIZE = 1
    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6


class ErrorCode(IntEnum):
    """Why a stream or connection ends."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11


class ProtocolError(Exception):
    """The peer broke the protocol in a way that ends the connection."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A whole frame."""
    size = len(payload)
    return HEAD.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


def number(kind: int, stream: int, value: int) -> bytes:
    """A WINDOW_UPDATE or RST_STREAM frame."""
    return HEAD.pack(0, 4, kind, 0, stream) + value.to_bytes(4, "big")


def settings(values: dict[Setting, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(Struct(">HI").pack(*pair) for pair in values.items()))


def bare(payload: bytes, flags: int) -> bytes:
    """What a DATA or HEADERS frame holds beside padding and priority.

    Raises:
        ProtocolError: It is shorter than they are.
    """
    start, end = 0, len(payload)
    if flags & PADDED:
        if not payload:
            raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "a padded frame without a length of padding")
        start, end = 1, end - payload[0]
    if flags & WEIGHED:
        start += 5
    if start > end:
        raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "a frame shorter than its padding and priority")
    return payload[start:end]
