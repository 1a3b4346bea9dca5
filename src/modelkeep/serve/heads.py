"""What the lean protocol keeps of heads and of connections."""

from __future__ import annotations

import select
from typing import Any

from modelkeep.serve.hot import JSON, Head

_MAX_HEADS = 4096
_LONGEST_KEPT = 4096
_COLD = (b"expect", b"content-encoding", b"upgrade")


class Heads(dict[bytes, Head]):
    """Heads that were parsed, by their bytes."""

    def keep(self, first: bytes, head: Head, size: int) -> None:
        """Keep the head of a message that came alone: ``first`` is its first piece, ``size`` its body's bytes."""
        if head.key is not None or b"?" in head.target:  # those hardly come twice
            return
        at = first.find(b"\r\n\r\n") + 4
        said = head.headers.get(b"content-length", b"0")
        if 4 <= at <= _LONGEST_KEPT and said == b"%d" % size and len(first) - at <= size:
            if len(self) >= _MAX_HEADS:
                self.clear()
            head.length = size
            self[first[:at]] = head


class Exchange:
    """A hot request as uvicorn's own code sees it: a cycle that is complete or not."""

    __slots__ = ("disconnected", "keep_alive", "message_event", "response_complete")

    def __init__(self) -> None:
        self.response_complete = True
        self.disconnected = False
        self.keep_alive = True
        self.message_event = self

    def set(self) -> None:
        """Nobody waits for a hot request's messages."""


def plain(head: Head, most: int) -> bool:
    """Whether nothing in a head asks for more than the hot path does, with a body of at most so many bytes."""
    headers = head.headers
    length = headers.get(b"content-length", b"0")
    # of a larger body the application says 413
    return not any(name in headers for name in _COLD) and (not length.isdigit() or int(length) <= most)


def unread(transport: Any) -> bool:
    """Whether something lies in a transport's socket that nobody has read yet."""
    waiting = select.poll()
    waiting.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
    return bool(waiting.poll(0))


_opened: tuple[Any, tuple[bytes, bytes]] = (None, (b"", b""))


def opening(headers: list[tuple[bytes, bytes]]) -> tuple[bytes, bytes]:
    """How an answer of JSON begins, and uvicorn's default headers as lines; the list is another each second."""
    global _opened
    if _opened[0] is not headers:
        lines = b"".join(b"%s: %s\r\n" % pair for pair in headers)
        _opened = (headers, (b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\n%s" % (JSON, lines), lines))
    return _opened[1]
