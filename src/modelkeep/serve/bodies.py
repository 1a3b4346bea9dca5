"""Bodies of requests, which come in pieces."""

from __future__ import annotations

_SMALL = 8192


class Body:
    """The body of a request that comes in pieces: each is copied once, when all are here."""

    __slots__ = ("_pieces",)

    def __init__(self) -> None:
        self._pieces: list[bytes | bytearray | memoryview] = []

    def add(self, piece: bytes | memoryview) -> None:
        """A further piece. Small ones are put together at once: each would cost more than its bytes."""
        last = self._pieces[-1] if self._pieces else None
        if len(piece) >= _SMALL:
            self._pieces.append(piece)
        elif isinstance(last, bytearray):
            last += piece
        else:
            self._pieces.append(bytearray(piece))

    def take(self) -> bytes:
        """All of it; the next one begins empty."""
        whole = b"".join(self._pieces)
        self._pieces.clear()
        return whole

    def clear(self) -> None:
        """Forget what came."""
        self._pieces.clear()
