"""Hot requests: what answers them sees of them, and of whom it is asked."""

from __future__ import annotations

import math
from collections.abc import Callable
from time import perf_counter
from typing import Any, Protocol

from modelkeep.core.errors import Invalid

JSON = b"application/json"
_KEY = b"x-modelkeep-key"
TIMEOUT = b"x-modelkeep-timeout-ms"
_NEVER = object()


class Unwritten(Exception):
    """An answer could not be written whole: its connection or stream is ended, and takes nothing more."""


class Head:
    """The head of a request. One object stands for all requests of the same bytes and carries what they share.

    Attributes:
        method: As sent: ``b"POST"``.
        target: Path and query, as sent.
        headers: By lower-case name; of equal names the last.
        key: The ``x-modelkeep-key`` header, which routes by its hash; None without one.
        who: Whoever ``HotRoutes.admit`` found it comes from.
        free: Whether ``HotRoutes.admit`` need not be asked.
        early: Asked before the body is read, or while it comes: whether it has answered already, because there is
            no room. Set with the handler; None for no such question.
    """

    __slots__ = (
        "early",
        "free",
        "handler",
        "headers",
        "keep_alive",
        "key",
        "length",
        "method",
        "stamp",
        "target",
        "who",
    )

    def __init__(self, method: bytes, target: bytes, headers: dict[bytes, bytes]) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        key = headers.get(_KEY)
        self.key = None if key is None else key.decode("latin-1")
        self.who: Any = None
        self.length = 0
        self.keep_alive = True
        self.free = False
        self.early: Callable[[Sink], bool] | None = None
        self.handler: Handler | None = None
        self.stamp: object = _NEVER

    @property
    def raw(self) -> bytes:
        """The head as bytes again."""
        version = b"1.1" if self.keep_alive else b"1.0"
        lines = b"".join(b"%s: %s\r\n" % pair for pair in self.headers.items())
        return b"%s %s HTTP/%s\r\n%s\r\n" % (self.method, self.target, version, lines)

    @property
    def deadline(self) -> float | None:
        """When the answer is of no use any more, by the header ``x-modelkeep-timeout-ms``; None without one.

        Raises:
            Invalid: It is no number of milliseconds.
        """
        return deadline(self.headers.get(TIMEOUT))

    @property
    def is_json(self) -> bool:
        """Whether the body says that it is JSON, or says nothing."""
        return self.headers.get(b"content-type", JSON).lower().startswith(JSON)


def deadline(milliseconds: bytes | str | None) -> float | None:
    """``time.perf_counter`` after so many milliseconds, as the header ``x-modelkeep-timeout-ms`` gives them.

    Raises:
        Invalid: It is no number from 0 up.
    """
    if milliseconds is None:
        return None
    try:
        found = float(milliseconds)
    except ValueError:
        found = -1.0
    if not 0 <= found < math.inf:
        text = milliseconds if isinstance(milliseconds, str) else milliseconds.decode("latin-1")
        raise Invalid(f"{text[:60]!r} is no number of milliseconds from 0 up", path="x-modelkeep-timeout-ms")
    return perf_counter() + found / 1e3


Handler = Callable[["Sink", bytes, Head], None]
"""Takes one request: where to write the answer, the body and the head. May answer later."""


class Sink(Protocol):
    """Where one answer goes."""

    def write(self, status: int, body: bytes, headers: bytes = b"", kind: bytes = JSON) -> None:
        """Send the answer; ``headers`` are whole lines, each ending in CRLF. Once per request.

        After ``Unwritten`` nothing more can be said; any other error left nothing written.
        """
        ...


class Passing(Sink, Protocol):
    """A sink that can still leave its request to the application."""

    def pass_on(self, head: Head) -> None:
        """Let the application answer, in place of ``write``. For requests without a body."""
        ...


class HotRoutes(Protocol):
    """What the lean protocol may answer by itself.

    Attributes:
        max_body: Bytes of the largest body of a hot request.
        stamp: Another object whenever ``find`` would answer otherwise than before; asked once a turn of the loop.
    """

    max_body: int

    @property
    def stamp(self) -> object: ...

    def find(self, head: Head) -> Handler | None:
        """The handler of requests with this head, or None to let the application answer."""
        ...

    def admit(self, head: Head) -> tuple[int, bytes] | tuple[int, bytes, bytes] | None:
        """Asked before each request: None to let it in, or status, JSON body and header lines of the refusal."""
        ...
