"""Header compression for HTTP/2 (RFC 7541): a decoder, and literals to send.

Answers are few and fixed, so nothing that is sent is compressed: literals without indexing need no state.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from typing import Final

TABLE_SIZE: Final = 4096
"""Bytes of the dynamic table: the protocol's default, which is never changed here."""

_STATIC: Final = tuple(
    (name.encode(), value.encode())
    for line in """\
:authority|:method GET|:method POST|:path /|:path /index.html|:scheme http|:scheme https|:status 200|:status 204
:status 206|:status 304|:status 400|:status 404|:status 500|accept-charset|accept-encoding gzip, deflate
accept-language|accept-ranges|accept|access-control-allow-origin|age|allow|authorization|cache-control
content-disposition|content-encoding|content-language|content-length|content-location|content-range|content-type
cookie|date|etag|expect|expires|from|host|if-match|if-modified-since|if-none-match|if-range|if-unmodified-since
last-modified|link|location|max-forwards|proxy-authenticate|proxy-authorization|range|referer|refresh|retry-after
server|set-cookie|strict-transport-security|transfer-encoding|user-agent|vary|via|www-authenticate""".splitlines()
    for name, _, value in [entry.partition(" ") for entry in line.split("|")]
)

# The Huffman code is canonical, so the lengths of its codes are all there is to it (RFC 7541, appendix B).
_LENGTHS: Final = [
    *(13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28),
    *(28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7),
    *(8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19),
    *(13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13),
    *(28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21),
    *(22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23),
    *(22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25),
    *(19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25),
    *(25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30),
]
_END: Final = 256
_WIDEST: Final = 30


def _canonical() -> tuple[list[int], list[int], list[int], list[int]]:
    """Symbols by code, and for each length in use: the end of its codes (left-aligned), the length, the offset
    from code to place among the symbols."""
    symbols = sorted(range(len(_LENGTHS)), key=lambda symbol: (_LENGTHS[symbol], symbol))
    ends: list[int] = []
    widths: list[int] = []
    offsets: list[int] = []
    code = width = 0
    for place, symbol in enumerate(symbols):
        if _LENGTHS[symbol] != width:
            code <<= _LENGTHS[symbol] - width
            width = _LENGTHS[symbol]
            widths.append(width)
            offsets.append(place - code)
            ends.append(0)
        code += 1
        ends[-1] = code << (_WIDEST - width)
    return symbols, ends, widths, offsets


_SYMBOLS, _ENDS, _WIDTHS, _OFFSETS = _canonical()


class HeaderError(Exception):
    """A header block cannot be decoded; the connection's state is lost with it."""


def huffman(data: bytes) -> bytes:
    """The text that Huffman-coded ``data`` stands for.

    Raises:
        HeaderError: It holds the end symbol, or its padding is not that of RFC 7541, 5.2.
    """
    found = bytearray()
    held = bits = at = 0
    size = len(data)
    while True:
        while bits < _WIDEST and at < size:
            held = (held << 8) | data[at]
            bits += 8
            at += 1
        if bits < 8 and held == (1 << bits) - 1:
            return bytes(found)
        # what is missing at the end is read as ones, as padding is
        window = held >> (bits - _WIDEST) if bits >= _WIDEST else ((held + 1) << (_WIDEST - bits)) - 1
        row = bisect_right(_ENDS, window)
        if row == len(_WIDTHS) or _WIDTHS[row] > bits:
            raise HeaderError("bad padding of a Huffman code")
        width = _WIDTHS[row]
        symbol = _SYMBOLS[(window >> (_WIDEST - width)) + _OFFSETS[row]]
        if symbol == _END:
            raise HeaderError("the end symbol within a Huffman code")
        found.append(symbol)
        bits -= width
        held &= (1 << bits) - 1


class Decoder:
    """Decodes the header blocks of one connection, in their order.

    Args:
        most: Bytes of names and values that one block may hold, 32 more counted for each.

    Attributes:
        changes: Grows whenever the dynamic table changes: equal blocks mean equal headers while it does not.
    """

    def __init__(self, most: int) -> None:
        self.changes = 0
        self._most = most
        self._limit = TABLE_SIZE
        self._size = 0
        self._table: deque[tuple[bytes, bytes]] = deque()

    def decode(self, block: bytes) -> list[tuple[bytes, bytes]]:
        """Names and values in order.

        Raises:
            HeaderError: The block is malformed or too large.
        """
        found: list[tuple[bytes, bytes]] = []
        at = total = 0
        while at < len(block):
            first = block[at]
            if first & 0x80:
                place, at = _integer(block, at, 7)
                pair = self._entry(place)
            elif first & 0x60 == 0x20:
                limit, at = _integer(block, at, 5)
                if limit > TABLE_SIZE or found:
                    raise HeaderError("a change of the table's size that is not allowed")
                self._limit = limit
                self._shrink()
                continue
            else:
                pair, at = self._literal(block, at, 6 if first & 0x40 else 4)
                if first & 0x40:
                    self._add(pair)
            found.append(pair)
            total += len(pair[0]) + len(pair[1]) + 32
            if total > self._most:
                raise HeaderError("the headers are too large")
        return found

    def _entry(self, place: int) -> tuple[bytes, bytes]:
        if 0 < place <= len(_STATIC):
            return _STATIC[place - 1]
        if not 0 <= place - len(_STATIC) - 1 < len(self._table):
            raise HeaderError(f"no header has the index {place}")
        return self._table[place - len(_STATIC) - 1]

    def _literal(self, block: bytes, at: int, bits: int) -> tuple[tuple[bytes, bytes], int]:
        place, at = _integer(block, at, bits)
        if place:
            name = self._entry(place)[0]
        else:
            name, at = _string(block, at)
        value, at = _string(block, at)
        return (name, value), at

    def _add(self, pair: tuple[bytes, bytes]) -> None:
        self._table.appendleft(pair)
        self._size += len(pair[0]) + len(pair[1]) + 32
        self._shrink()

    def _shrink(self) -> None:
        self.changes += 1
        while self._size > self._limit:
            name, value = self._table.pop()
            self._size -= len(name) + len(value) + 32


def _integer(block: bytes, at: int, bits: int) -> tuple[int, int]:
    """RFC 7541, 5.1; at most 28 bits beyond the prefix."""
    try:
        most = (1 << bits) - 1
        value = block[at] & most
        at += 1
        if value < most:
            return value, at
        for shift in range(0, 28, 7):
            byte = block[at]
            at += 1
            value += (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
    except IndexError:
        raise HeaderError("the block ends within a number") from None
    raise HeaderError("a number is too large")


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    if at >= len(block):
        raise HeaderError("the block ends within a header")
    coded = block[at] & 0x80
    size, at = _integer(block, at, 7)
    text = block[at : at + size]
    if len(text) != size:
        raise HeaderError("the block ends within a string")
    return (huffman(text) if coded else text), at + size


def literal(name: bytes, value: bytes) -> bytes:
    """A header to send, not indexed and not compressed."""
    return b"\x00" + _sized(name) + _sized(value)


def _sized(text: bytes) -> bytes:
    size = len(text)
    if size < 127:
        return bytes((size,)) + text
    head = bytearray((127,))
    size -= 127
    while size >= 128:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    head.append(size)
    return bytes(head) + text
