"""One HTTP/2 connection of the gRPC server (RFC 9113): frames, flow control, streams.

Clients repeat themselves: once their headers are in the compression table, every call of a method has the same
header block, so blocks are remembered as long as the table does not change. A call whose message is one DATA frame
and whose answer fits the client's windows costs one look-up, one handler and one write.

What a hostile client can make us hold is bounded: headers by ``MAX_HEADERS``, streams by ``MAX_STREAMS``, messages
that are not whole and answers that are not taken by ``MAX_HELD`` for the whole connection, and whoever does not
read is not read from. The answer to a reset stream is dropped, so resetting at once costs no more than asking.
"""

from __future__ import annotations

import asyncio
from struct import iter_unpack
from typing import TYPE_CHECKING, Final

from modelkeep.protocols.grpc import frames
from modelkeep.protocols.grpc.exchange import Exchange, Head
from modelkeep.protocols.grpc.frames import ErrorCode, ProtocolError, Setting, frame, number
from modelkeep.protocols.grpc.hpack import Decoder, HeaderError
from modelkeep.protocols.grpc.outgoing import DEFAULT_WINDOW, MAX_HELD, Outgoing
from modelkeep.protocols.grpc.status import Code

if TYPE_CHECKING:
    from modelkeep.protocols.grpc.server import GrpcServer

MAX_HEADERS: Final = 16_384
MAX_BLOCK: Final = 65_536
MAX_STREAMS: Final = 1_024
FRAME: Final = 1 << 20
WINDOW: Final = 4 << 20
CONNECTION_WINDOW: Final = 16 << 20
_MAX_HEADS: Final = 512
_LONGEST_KEPT: Final = 2_048

_GREETING: Final = frames.settings(
    {
        Setting.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
        Setting.INITIAL_WINDOW_SIZE: WINDOW,
        Setting.MAX_FRAME_SIZE: FRAME,
        Setting.MAX_HEADER_LIST_SIZE: MAX_HEADERS,
    }
) + number(frames.WINDOW_UPDATE, 0, CONNECTION_WINDOW - DEFAULT_WINDOW)
_FORBIDDEN: Final = {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}


class Connection(Outgoing, asyncio.Protocol):
    """One client's connection."""

    def __init__(self, server: GrpcServer) -> None:
        super().__init__(server.loop)
        self.server = server
        self.heard = self.born = server.loop.time()
        self._decoder = Decoder(MAX_HEADERS)
        self._heads: dict[bytes, Head] = {}
        self._changes = 0
        self._block: tuple[int, int, bytearray] | None = None  # headers that go on in CONTINUATION frames
        self._parts: list[bytes] = []  # of a frame that is not whole
        self._have = 0
        self._need = len(frames.PREFACE)
        self._got = 0  # bytes since the connection's window was last widened
        self._others = {
            frames.PRIORITY: self._priority,
            frames.RST_STREAM: self._rst_stream,
            frames.SETTINGS: self._settings,
            frames.PUSH_PROMISE: self._push_promise,
            frames.PING: self._ping,
            frames.WINDOW_UPDATE: self._window_update,
            frames.CONTINUATION: self._continuation,
        }

    # the transport's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment] # uvloop's is none by inheritance
        self.server.connections.add(self)
        self.write(_GREETING)

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.connections.discard(self)
        self._state = "closed"
        for exchange in list(self.streams.values()):
            exchange.cancelled()
        self.streams.clear()
        self._blocked.clear()

    def pause_writing(self) -> None:
        """A client that does not read is not read from."""
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        self.heard = self.server.loop.time()
        if self.server.turns.over:
            self.server.turns.begin()
        if self._parts:
            self._parts.append(data)
            self._have += len(data)
            if self._have < self._need and self._state != "greeting":
                return
            data = b"".join(self._parts)
            self._parts = []
        try:
            at = self._parse(data)
        except ProtocolError as error:
            self.close(error.code, str(error))
            return
        if at < len(data):
            self._parts.append(data[at:] if at else data)
            self._have = len(data) - at

    def _parse(self, data: bytes) -> int:
        """Take the whole frames; where the rest begins. Sets how many bytes it needs to be whole."""
        at, end = 0, len(data)
        if self._state == "greeting":
            at = self._greet(data)
            if not at:
                return 0
        unpack = frames.HEAD.unpack_from
        while end - at >= frames.HEAD_SIZE:
            high, low, kind, flags, id = unpack(data, at)
            start = at + frames.HEAD_SIZE
            size = high << 8 | low
            stop = start + size
            if size > FRAME:
                raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, f"a frame of more than {FRAME} bytes")
            if stop > end:
                self._need = stop - at
                return at
            payload = data[start:stop]
            at = stop
            id &= frames.MOST
            if self._block is not None and kind != frames.CONTINUATION:
                raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "headers are not continued")
            if kind == frames.DATA:
                self._data(id, flags, payload)
            elif kind == frames.HEADERS:
                self._headers(id, flags, payload)
            elif kind in self._others:
                self._others[kind](id, flags, payload)
            if self._state == "closed":
                return end
        self._need = frames.HEAD_SIZE
        return at

    def _greet(self, data: bytes) -> int:
        size = len(frames.PREFACE)
        if data[:size] != frames.PREFACE[: len(data)]:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "this is no HTTP/2 client; gRPC needs HTTP/2")
        if len(data) < size:
            return 0
        if len(data) >= size + 4 and data[size + 3] != frames.SETTINGS:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "the first frame must be SETTINGS")
        if len(data) < size + 4:
            return 0
        self._state = "open"
        return size

    # what the client asks

    def _headers(self, id: int, flags: int, payload: bytes) -> None:
        if flags & (frames.PADDED | frames.WEIGHED):
            payload = frames.bare(payload, flags)
        if flags & frames.END_HEADERS:
            self._open(id, flags, payload)
        else:
            self._block = (id, flags, bytearray(payload))

    def _continuation(self, id: int, flags: int, payload: bytes) -> None:
        if self._block is None or self._block[0] != id:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without headers before it")
        _, before, block = self._block
        block += payload
        if len(block) > MAX_BLOCK or not payload:
            raise ProtocolError(ErrorCode.ENHANCE_YOUR_CALM, "the headers are too large")
        if flags & frames.END_HEADERS:
            self._block = None
            self._open(id, before, bytes(block))

    def _open(self, id: int, flags: int, block: bytes) -> None:
        """A new call; or the end of one whose client sends trailers, which gRPC clients do not."""
        head = self._heads.get(block) or self._decode(block)
        if id <= self._last or not id & 1:
            exchange = self.streams.get(id)
            if exchange is None:
                if not id & 1:
                    raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "a client's streams have odd numbers")
                if flags & frames.END_STREAM:  # what was on its way when we answered early
                    return
                raise ProtocolError(ErrorCode.STREAM_CLOSED, f"headers on stream {id}, which is closed")
            if not flags & frames.END_STREAM or exchange.half:
                self.reset(exchange, ErrorCode.PROTOCOL_ERROR)
            else:
                exchange.receive(b"", True)
            return
        self._last = id
        if head.fault < 0:
            self.write(number(frames.RST_STREAM, id, ErrorCode.PROTOCOL_ERROR))
            return
        if len(self.streams) >= MAX_STREAMS or self._state == "draining":
            self.write(number(frames.RST_STREAM, id, ErrorCode.REFUSED_STREAM))
            return
        exchange = self.streams[id] = Exchange(self, id, head, self._initial)
        exchange.half = bool(flags & frames.END_STREAM)
        if self.server.watch is not None:
            self.server.watch(exchange)
        refusal = self.server.refusal(head)
        if refusal is not None:
            exchange.fail(*refusal)
        elif exchange.half:
            exchange.receive(b"", True)

    def _decode(self, block: bytes) -> Head:
        try:
            pairs = self._decoder.decode(block)
        except HeaderError as error:
            raise ProtocolError(ErrorCode.COMPRESSION_ERROR, str(error)) from None
        head = Head(dict(pairs))
        names = [name for name, _ in pairs]
        if any(name in _FORBIDDEN or name != name.lower() for name in names) or b":path" not in names:
            head.fault = -1
        head.method = self.server.methods.get(head.path)
        if self._decoder.changes != self._changes:  # this block too means something else the next time
            self._changes = self._decoder.changes
            self._heads.clear()
        elif len(block) <= _LONGEST_KEPT:
            if len(self._heads) >= _MAX_HEADS:
                self._heads.clear()
            self._heads[block] = head
        return head

    def _data(self, id: int, flags: int, data: bytes) -> None:
        size = len(data)
        self._got += size
        if self._got > CONNECTION_WINDOW // 2:
            self.write(number(frames.WINDOW_UPDATE, 0, self._got))
            self._got = 0
        exchange = self.streams.get(id)
        if exchange is None:
            if id > self._last or not id & 1:
                raise ProtocolError(ErrorCode.PROTOCOL_ERROR, f"data on stream {id}, which was never opened")
            return  # what was on its way when we answered early
        if exchange.half:
            self.reset(exchange, ErrorCode.STREAM_CLOSED)
            return
        if flags & frames.PADDED:
            data = frames.bare(data, flags & frames.PADDED)
        if flags & frames.END_STREAM:
            self._held -= exchange.holding
            exchange.receive(data, True)
            return
        exchange.received += size
        if exchange.received > WINDOW // 2:
            self.write(number(frames.WINDOW_UPDATE, id, exchange.received))
            exchange.received = 0
        before = exchange.holding
        exchange.receive(data, False)
        self._held += exchange.holding - before
        if self._held > MAX_HELD:
            exchange.fail(Code.RESOURCE_EXHAUSTED, "too much is held of messages that are not whole")

    @property
    def halting(self) -> bool:
        """Whether the client has begun to say something and has not ended it."""
        return (
            self._state == "greeting"
            or bool(self._parts)
            or self._block is not None
            or any(not one.half and one.unary for one in self.streams.values())
        )

    def _rst_stream(self, id: int, flags: int, payload: bytes) -> None:
        _sized(payload, 4)
        if id == 0 or id > self._last:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, f"RST_STREAM on stream {id}, which was never opened")
        exchange = self.streams.pop(id, None)
        if exchange is not None:
            self._forget(exchange)
            exchange.cancelled()

    def _priority(self, id: int, flags: int, payload: bytes) -> None:
        _sized(payload, 5)  # a hint that nothing is made of (RFC 9113, 5.3.2)

    def _push_promise(self, id: int, flags: int, payload: bytes) -> None:
        raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "clients do not push")

    def _ping(self, id: int, flags: int, payload: bytes) -> None:
        _sized(payload, 8)
        _whole(id)
        if not flags & frames.ACK:
            self.write(frame(frames.PING, frames.ACK, 0, payload))

    def _settings(self, id: int, flags: int, payload: bytes) -> None:
        _whole(id)
        if flags & frames.ACK:
            _sized(payload, 0)
            return
        if len(payload) % 6:
            raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS that are not whole")
        for name, value in iter_unpack(">HI", payload):
            if name == Setting.INITIAL_WINDOW_SIZE:
                if value > frames.MOST:
                    raise ProtocolError(ErrorCode.FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE is too large")
                for exchange in self.streams.values():
                    exchange.window += value - self._initial
                self._initial = value
            elif name == Setting.MAX_FRAME_SIZE:
                if not 16_384 <= value < 1 << 24:
                    raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "MAX_FRAME_SIZE is out of range")
                self._frame_size = value
        self.write(frame(frames.SETTINGS, frames.ACK, 0))
        self._pump()

    def _window_update(self, id: int, flags: int, payload: bytes) -> None:
        _sized(payload, 4)
        more = int.from_bytes(payload, "big") & frames.MOST
        if id == 0:
            self._window += more
            if not more or self._window > frames.MOST:
                raise ProtocolError(ErrorCode.FLOW_CONTROL_ERROR, "the connection's window is out of range")
        elif id > self._last:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, f"WINDOW_UPDATE on stream {id}, which was never opened")
        else:
            exchange = self.streams.get(id)
            if exchange is None:
                return
            exchange.window += more
            if not more or exchange.window > frames.MOST:
                self.reset(exchange, ErrorCode.FLOW_CONTROL_ERROR)
        if self._blocked:
            self._pump()

    # ends

    def reset(self, exchange: Exchange, code: ErrorCode) -> None:
        """End a call whose client broke the protocol, or that we cannot answer whole."""
        self.streams.pop(exchange.id, None)
        self._forget(exchange)
        exchange.cancelled()
        self.write(number(frames.RST_STREAM, exchange.id, code))
        if self._state == "draining" and not self.streams:
            self._close()

    def drain(self) -> None:
        """Take no further calls; close once those under way are answered."""
        if self._state == "open":
            self._state = "draining"
            self._goaway(ErrorCode.NO_ERROR, "shutting down")
        if not self.streams:
            self._close()

    def announce(self) -> None:
        """Say that the connection will end, before calls are refused (RFC 9113, 6.8)."""
        if self._state == "open":
            self.write(frame(frames.GOAWAY, 0, 0, frames.MOST.to_bytes(4, "big") + bytes(4)))


def _sized(payload: bytes, size: int) -> None:
    if len(payload) != size:
        raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {len(payload)} bytes where {size} belong")


def _whole(id: int) -> None:
    if id:
        raise ProtocolError(ErrorCode.PROTOCOL_ERROR, f"a frame about the connection on stream {id}")
