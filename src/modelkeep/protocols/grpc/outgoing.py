"""The sending half of a connection: answers within what the client's windows have room for (RFC 9113, 5.2)."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from modelkeep.protocols.grpc import frames, status
from modelkeep.protocols.grpc.exchange import PREFIX, Exchange, Head
from modelkeep.protocols.grpc.frames import ErrorCode, frame, number
from modelkeep.protocols.grpc.hpack import literal
from modelkeep.protocols.grpc.status import Code

MAX_HELD: Final = 256 * 1024 * 1024
DEFAULT_WINDOW: Final = 65_535

_OPENING: Final = b"\x88" + literal(b"content-type", b"application/grpc")  # 0x88: ":status 200"
_OK: Final = status.trailer(Code.OK)


def _before(size: int) -> bytes:
    """The first bytes of a frame with headers of this size, up to its stream."""
    return frames.HEAD.pack(size >> 8, size & 0xFF, frames.HEADERS, frames.END_HEADERS, 0)[:5]


_BEFORE: Final = _before(len(_OPENING))
_AFTER: Final = frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, 0, _OK)[:5]


class Outgoing:
    """What goes out on one connection.

    Attributes:
        streams: Calls under way, by the number of their stream.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.streams: dict[int, Exchange] = {}
        self.transport: asyncio.Transport = None  # type: ignore[assignment] # set before anything else happens
        self._state = "greeting"
        self._window = self._initial = DEFAULT_WINDOW
        self._frame_size = 16_384
        self._held = 0  # bytes of messages that are not whole, and of answers that wait for room
        self._blocked: dict[int, Exchange] = {}
        self._last = 0  # the latest stream that the client opened
        self._out: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Send bytes at the end of this turn of the loop, all that there are in one system call."""
        if not self._out:
            self.loop.call_soon(self._send)
        self._out.append(data)

    def _send(self) -> None:
        if self._out:
            data = b"".join(self._out)
            self._out.clear()
            self.transport.write(data)

    def _close(self) -> None:
        self._send()
        self.transport.close()

    def answer(self, exchange: Exchange, message: bytes, metadata: bytes) -> None:
        """Headers, one message, trailers: in one write when the client's windows have room."""
        size = len(message) + PREFIX
        opening = _BEFORE if not metadata else _before(len(_OPENING) + len(metadata))
        id = exchange.id.to_bytes(4, "big")
        if size > self._window or size > exchange.window or size > self._frame_size or self._blocked:
            self.write(b"".join((opening, id, _OPENING, metadata)))
            self._queue(exchange, message)
            exchange.trailers = _OK
            self._pump()
            return
        self._window -= size
        self.write(
            b"".join(
                (
                    opening, id, _OPENING, metadata,
                    size.to_bytes(3, "big"), b"\0\0", id, (size - PREFIX).to_bytes(PREFIX, "big"), message,
                    _AFTER, id, _OK,
                )
            )
        )  # fmt: skip
        self._leave(exchange)

    def send(self, exchange: Exchange, message: bytes, first: bool) -> None:
        """One message of several; headers go before the first."""
        if first:
            self.write(frame(frames.HEADERS, frames.END_HEADERS, exchange.id, _OPENING))
        self._queue(exchange, message)
        self._pump()

    def end(self, exchange: Exchange, trailers: bytes, first: bool) -> None:
        """Trailers after what is queued; ``first``: there were no headers, so these are both."""
        if first:
            flags = frames.END_HEADERS | frames.END_STREAM
            self.write(frame(frames.HEADERS, flags, exchange.id, _opening(exchange.head) + trailers))
            self._leave(exchange)
            return
        exchange.trailers = trailers
        self._blocked[exchange.id] = exchange
        self._pump()

    def _queue(self, exchange: Exchange, message: bytes) -> None:
        data = len(message).to_bytes(PREFIX, "big") + message
        exchange.pending.append(memoryview(data))
        self._held += len(data)
        self._blocked[exchange.id] = exchange
        if self._held > MAX_HELD:
            self.close(ErrorCode.ENHANCE_YOUR_CALM, "the answers are not taken")

    def _pump(self) -> None:
        """Send what waits for room, oldest stream first."""
        out: list[Any] = []
        done = []
        for id, exchange in self._blocked.items():
            pending = exchange.pending
            while pending:
                data = pending[0]
                room = min(self._window, exchange.window, self._frame_size)
                if room <= 0:
                    break
                size = min(room, len(data))
                out += (frames.HEAD.pack(size >> 8, size & 0xFF, frames.DATA, 0, id), data[:size])
                self._window -= size
                exchange.window -= size
                self._held -= size
                if size == len(data):
                    pending.pop(0)
                else:
                    pending[0] = data[size:]
            if not pending:
                done.append(exchange)
                if exchange.trailers is not None:
                    out.append(
                        frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, id, exchange.trailers)
                    )
        if out:
            self.write(b"".join(out))
        for exchange in done:
            del self._blocked[exchange.id]
            if exchange.trailers is not None:
                self._leave(exchange)

    def _leave(self, exchange: Exchange) -> None:
        """An answered call is over; a client that still sends is told to stop (RFC 9113, 8.1)."""
        self.streams.pop(exchange.id, None)
        if not exchange.half:
            self._held -= exchange.drop()
            self.write(number(frames.RST_STREAM, exchange.id, ErrorCode.NO_ERROR))
        if self._state == "draining" and not self.streams:
            self._close()

    def _forget(self, exchange: Exchange) -> None:
        self._blocked.pop(exchange.id, None)
        self._held -= exchange.drop()

    def close(self, code: ErrorCode, message: str) -> None:
        """End the connection because of an error."""
        self._goaway(code, message)
        self._state = "closed"
        self._close()

    def _goaway(self, code: ErrorCode, message: str) -> None:
        payload = self._last.to_bytes(4, "big") + code.to_bytes(4, "big") + message.encode()[:200]
        self.write(frame(frames.GOAWAY, 0, 0, payload))


def _opening(head: Head) -> bytes:
    """The first headers of an answer that is an error; what is no gRPC gets an HTTP status too."""
    if head.fault <= 0:
        return _OPENING
    return literal(b":status", b"%d" % head.fault) + literal(b"content-type", b"application/grpc")
