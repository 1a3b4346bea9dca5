"""The forms of the latest messages, so that the next ones need not be parsed.

Clients repeat themselves: two requests for a model differ in their id and the raw bytes of their tensors, and in
nothing else. So of a message that was parsed everything else is remembered, and where the id and the tensors were.
When a message of the same length has the same bytes outside of those places, it says the same, but for what stands
there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, Generic, NamedTuple, TypeVar

from modelkeep.protocols.grpc import encode

T = TypeVar("T")
Span = tuple[int, int]
_MOST: Final = 256
_ALIKE: Final = 4
_VARINT, _SIZED = 0, 2
_FIXED: Final = {1: 8, 5: 4}
_LARGEST: Final = 16_384


class _Form(NamedTuple, Generic[T]):
    """A message with holes.

    Attributes:
        fixed: The bytes between the holes and where they begin.
        holes: From and to.
        said: What the message said beside what the holes hold.
    """

    fixed: tuple[tuple[int, bytes], ...]
    holes: tuple[Span, ...]
    said: T


class Forms(Generic[T]):
    """What messages said, by their length."""

    def __init__(self) -> None:
        self._known: dict[int, list[_Form[T]]] = {}

    def find(self, data: bytes) -> tuple[T, tuple[Span, ...]] | None:
        """What a message says and where its holes are, if one of its form was kept."""
        for form in self._known.get(len(data), ()):
            for at, piece in form.fixed:
                if not data.startswith(piece, at):
                    break
            else:
                return form.said, form.holes
        return None

    def keep(self, data: bytes, holes: Sequence[Span], said: T) -> None:
        """Remember what a message said beside what stands in ``holes``, which are in order."""
        starts = [0, *(stop for _, stop in holes)]
        stops = [*(start for start, _ in holes), len(data)]
        fixed = tuple((start, data[start:stop]) for start, stop in zip(starts, stops, strict=True) if start < stop)
        if sum(len(piece) for _, piece in fixed) > _LARGEST:
            return
        if len(self._known) >= _MOST:
            self._known.clear()
        alike = self._known.setdefault(len(data), [])
        alike.insert(0, _Form(fixed, tuple(holes), said))
        del alike[_ALIKE:]


def fields(data: bytes, start: int, stop: int) -> Iterator[tuple[int, int, Span]]:
    """The fields of a message that stands in ``data``: number, wire type and where the value is.

    The message must be one that protobuf has parsed; groups, which nobody uses, end it.
    """
    at = start
    while at < stop:
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == _VARINT:
            _, end = _varint(data, at)
        elif kind == _SIZED:
            size, at = _varint(data, at)
            end = at + size
        elif kind in _FIXED:
            end = at + _FIXED[kind]
        else:
            return
        yield tag >> 3, kind, (at, end)
        at = end


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def at_end(data: bytes, field: int, values: Sequence[bytes]) -> list[Span] | None:
    """Where the values of a field stand with which a message ends; None when it does not end so."""
    spans: list[Span] = []
    at = len(data)
    for value in reversed(values):
        opening = encode.opening(field, len(value))
        start = at - len(value)
        if not data.startswith(value, start) or not data.startswith(opening, start - len(opening)):
            return None
        spans.append((start, at))
        at = start - len(opening)
    return spans[::-1]
