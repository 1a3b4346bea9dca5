"""One call as a service sees it: messages in, messages and a status out.

The length-prefixed messages, compression and deadlines of PROTOCOL-HTTP2.md (gRPC over HTTP/2).
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, NoReturn

from modelkeep.core.errors import ModelkeepError
from modelkeep.protocols.grpc import status
from modelkeep.protocols.grpc.frames import ErrorCode
from modelkeep.protocols.grpc.status import Code, RpcError
from modelkeep.serve.hot import Unwritten

if TYPE_CHECKING:
    from modelkeep.protocols.grpc.http2 import Connection

log = logging.getLogger(__name__)

PREFIX: Final = 5
_UNITS: Final = {ord("H"): 3600.0, ord("M"): 60.0, ord("S"): 1.0, ord("m"): 1e-3, ord("u"): 1e-6, ord("n"): 1e-9}
_WINDOWS: Final = {b"gzip": 31, b"deflate": 15}


@dataclass(frozen=True, slots=True)
class Method:
    """How calls of one method are taken.

    Attributes:
        message: Told each message of a call. A unary method must answer or fail the call, now or later, on the
            loop's thread.
        ended: Told that a streaming client has sent its last message; None makes the method unary.
    """

    message: Callable[[Exchange, bytes], None]
    ended: Callable[[Exchange], None] | None = None


class Head:
    """The headers of a call; one object stands for all calls of the same headers on a connection.

    Attributes:
        headers: By name; of equal names the last. Binary ones are as sent.
        timeout: Seconds the client waits; None without a limit.
        key: ``x-modelkeep-key``, which routes by its hash; None without one.
        fault: HTTP status (415, 405) of a request that is no gRPC at all, else 0.
        who: Whoever the server's ``doorman`` found it comes from.
    """

    __slots__ = ("encoding", "fault", "headers", "key", "method", "path", "timeout", "who")

    def __init__(self, headers: dict[bytes, bytes]) -> None:
        self.headers = headers
        self.path = headers.get(b":path", b"")
        self.encoding = headers.get(b"grpc-encoding", b"identity")
        key = headers.get(b"x-modelkeep-key")
        self.key = None if key is None else key.decode("latin-1")
        self.timeout = _seconds(headers.get(b"grpc-timeout"))
        self.method: Method | None = None
        self.who: Any = None
        self.fault = 0
        if headers.get(b":method") != b"POST":
            self.fault = 405
        elif not headers.get(b"content-type", b"").startswith(b"application/grpc"):
            self.fault = 415


def _seconds(text: bytes | None) -> float | None:
    """A ``grpc-timeout``: at most eight digits and a unit; what is none is no limit."""
    if not text or len(text) > 9 or text[-1] not in _UNITS or not text[:-1].isdigit():
        return None
    return int(text[:-1]) * _UNITS[text[-1]]


class Exchange:
    """One call on its way. Belongs to the event loop's thread.

    Attributes:
        head: The call's headers.
        deadline: ``time.perf_counter`` after which the client has gone; None without one.
        over: Whether the call has been answered or has been cancelled.
        state: Room for the service.
        watch: Told the code with which the call ends; None when nobody watches.
    """

    __slots__ = (
        "_begun", "_held", "_received", "connection", "deadline", "half", "head", "id", "over", "pending",
        "received", "state", "trailers", "watch", "window",
    )  # fmt: skip

    def __init__(self, connection: Connection, id: int, head: Head, window: int) -> None:
        self.connection = connection
        self.id = id
        self.head = head
        self.window = window
        self.deadline = None if head.timeout is None else perf_counter() + head.timeout
        self.over = False
        self.half = False  # the client has sent all it will
        self.received = 0  # bytes since the stream's window was last widened
        self.state: Any = None
        self.watch: Callable[[int], None] | None = None
        self.pending: list[memoryview] = []  # data that the client's windows have no room for yet
        self.trailers: bytes | None = None
        self._begun = False  # the response's headers are out
        self._held: bytearray | None = None
        self._received = 0  # messages

    @property
    def unary(self) -> bool:
        """Whether the client sends one message."""
        return self.head.method is None or self.head.method.ended is None

    @property
    def holding(self) -> int:
        """Bytes of a message that is not whole."""
        return len(self._held) if self._held else 0

    def drop(self) -> int:
        """Let go of what waits in either direction; how many bytes that were."""
        size = self.holding + sum(map(len, self.pending))
        self._held = None
        self.pending.clear()
        return size

    # in

    def receive(self, data: bytes, end: bool) -> None:
        """Bytes of the body; ``end`` says that they are the last."""
        held = self._held
        if held is None:
            if end and len(data) >= PREFIX and int.from_bytes(data[1:5], "big") == len(data) - PREFIX:
                self.half = True
                self._message(data[0], data[PREFIX:])
                self._end()
                return
            held = self._held = bytearray()
        held += data
        most = self.connection.server.max_message
        while len(held) >= PREFIX and not self.over:
            size = int.from_bytes(held[1:5], "big")
            if size > most:
                self.fail(
                    Code.RESOURCE_EXHAUSTED, f"the message has {size} bytes; at most {most} are taken at once"
                )
                return
            if len(held) < PREFIX + size:
                break
            flag, message = held[0], bytes(memoryview(held)[PREFIX : PREFIX + size])
            del held[: PREFIX + size]
            self._message(flag, message)
        if end and not self.over:
            self.half = True
            if held:
                self.fail(Code.INVALID_ARGUMENT, "the body ends within a message")
                return
            self._end()

    def _message(self, flag: int, message: bytes) -> None:
        method = self.head.method
        assert method is not None
        self._received += 1
        if method.ended is None and self._received > 1:
            self.fail(Code.INVALID_ARGUMENT, "a unary method takes one message; another came")
            return
        try:
            if flag:
                message = self._inflated(flag, message)
            self.connection.server.enter(self.head)
            method.message(self, message)
        except Exception as error:
            self.fault(error)

    def _end(self) -> None:
        method = self.head.method
        assert method is not None
        if method.ended is not None:
            try:
                self.connection.server.enter(self.head)
                method.ended(self)
            except Exception as error:
                self.fault(error)
        elif not self._received and not self.over:
            self.fail(Code.INVALID_ARGUMENT, "a unary method takes one message; none came")

    def _inflated(self, flag: int, message: bytes) -> bytes:
        """A compressed message. Raises ``RpcError`` when it is not what its header says, or too large."""
        window = _WINDOWS.get(self.head.encoding)
        if flag != 1 or window is None:
            shown = self.head.encoding[:30].decode("latin-1")
            raise RpcError(Code.UNIMPLEMENTED, f"grpc-encoding {shown!r} is not identity, deflate or gzip")
        most = self.connection.server.max_message
        made = zlib.decompressobj(window)
        try:
            found = made.decompress(message, most + 1)
        except zlib.error as error:
            raise RpcError(Code.INVALID_ARGUMENT, f"the message cannot be decompressed: {error}") from None
        if len(found) > most:
            raise RpcError(Code.RESOURCE_EXHAUSTED, f"the message inflates to more than {most} bytes")
        if not made.eof:
            raise RpcError(Code.INVALID_ARGUMENT, "the message is compressed but not whole")
        return found

    # out

    def answer(self, message: bytes, metadata: bytes = b"") -> None:
        """The one answer of a unary call, with status OK. Nothing happens when its client is gone.

        Args:
            metadata: Headers made by ``hpack.literal``.

        Raises:
            Unwritten: It could not be sent.
        """
        if self.over:
            return
        self.over = True
        try:
            self.connection.answer(self, message, metadata)
        except Exception as error:
            self._break(error)
        if self.watch is not None:
            self.watch(Code.OK)

    def send(self, message: bytes) -> None:
        """One message of a streaming answer. Raises ``Unwritten``."""
        if not self.over:
            begun, self._begun = self._begun, True
            try:
                self.connection.send(self, message, not begun)
            except Exception as error:
                self._break(error)

    def finish(self) -> None:
        """End a streaming answer with status OK."""
        self._close(Code.OK, status.trailer(Code.OK))

    def fail(self, code: Code, message: str, metadata: bytes = b"") -> None:
        """End the call with an error. Nothing happens when its client is gone."""
        self._close(code, status.trailer(code, message) + metadata)

    def fault(self, error: Exception) -> None:
        """End the call with the status that an error has."""
        if isinstance(error, ModelkeepError):
            self.fail(status.code_of(error), str(error), status.pushback(error))
        elif isinstance(error, RpcError):
            self.fail(error.code, str(error))
        else:
            log.error("%s failed", self.head.path.decode("latin-1"), exc_info=error)
            self.fail(Code.INTERNAL, "this is our fault; see the log of the serving process")

    def _close(self, code: Code, trailers: bytes) -> None:
        if self.over:
            return
        self.over = True
        try:
            self.connection.end(self, trailers, not self._begun)
        except Exception as error:
            self._break(error)
        if self.watch is not None:
            self.watch(code)

    def _break(self, error: Exception) -> NoReturn:
        """Nobody knows how much of an answer is out: the client is told that it ends here."""
        self.over = True
        self.connection.reset(self, ErrorCode.INTERNAL_ERROR)
        if self.watch is not None:
            self.watch(Code.INTERNAL)
        raise Unwritten from error

    def cancelled(self) -> None:
        """The client wants no answer any more."""
        if not self.over and self.watch is not None:
            self.watch(Code.CANCELLED)
        self.over = True
