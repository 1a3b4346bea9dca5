"""What the latest messages of each form began with, so that the next ones need not be parsed.

A request of one tensor in raw bytes ends with them (fields are written in the order of their numbers), and clients
repeat all that stands before. When as long a message begins with the same bytes, it says the same, and what
follows is the tensor.
"""

from __future__ import annotations

from typing import Final, Generic, TypeVar

from modelkeep.protocols.grpc import encode

T = TypeVar("T")
_MOST: Final = 256


class Beginnings(Generic[T]):
    """What messages said whose last bytes are one tensor's, by their length."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[bytes, T]] = {}

    def find(self, data: bytes) -> tuple[T, int] | None:
        """What a message says and where its tensor begins, if one like it was kept."""
        known = self._known.get(len(data))
        if known is None or not data.startswith(known[0]):
            return None
        return known[1], len(known[0])

    def keep(self, data: bytes, field: int, tensor: bytes, said: T) -> None:
        """Remember what a message said, if it ends with ``field`` holding ``tensor``; it may hold no other."""
        opening = encode.opening(field, len(tensor))
        start = len(data) - len(tensor)
        if data.startswith(opening, start - len(opening)) and data.endswith(tensor):
            if len(self._known) >= _MOST:
                self._known.clear()
            self._known[len(data)] = (data[:start], said)
