"""Messages written by hand where they are written often (Protocol Buffers encoding).

https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterable


def varint(value: int) -> bytes:
    """A number below 2**64, not negative."""
    if value < 0x80:
        return bytes((value,))
    made = bytearray()
    while value >= 0x80:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)


def opening(field: int, size: int) -> bytes:
    """What stands before ``size`` bytes of a string, message or packed list."""
    return varint(field << 3 | 2) + varint(size)


def sized(field: int, content: bytes) -> bytes:
    """A string, message or packed list."""
    return opening(field, len(content)) + content


def text(field: int, value: str) -> bytes:
    """A string; the empty one is not written. Lone surrogates, which UTF-8 has not, become question marks."""
    return sized(field, value.encode("utf-8", "replace")) if value else b""


def number(field: int, value: int) -> bytes:
    """A whole number or enumeration, not negative; 0 is not written."""
    return varint(field << 3) + varint(value) if value else b""


def packed(field: int, values: Iterable[int]) -> bytes:
    """A list of whole numbers, none negative."""
    return sized(field, b"".join(map(varint, values)))
