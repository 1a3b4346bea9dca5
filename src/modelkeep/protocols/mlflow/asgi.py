"""Through ASGI: a request's body read whole, an answer's sent whole, the address that was asked."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.types import Receive, Scope, Send

from modelkeep.core.errors import Invalid

_JSON = (b"content-type", b"application/json")


async def read(receive: Receive, limit: int) -> bytes:
    """A request's body. Raises ``Invalid`` when it is larger than ``limit`` bytes."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Invalid("the client went away")
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise Invalid(f"The request is larger than {limit} bytes")
        if not message.get("more_body", False):
            return part if not parts else b"".join([*parts, part])
        parts.append(part)


async def send(to: Send, status: int, body: bytes, headers: Sequence[tuple[bytes, bytes]] = (_JSON,)) -> None:
    """Send an answer."""
    length = (b"content-length", str(len(body)).encode())
    await to({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await to({"type": "http.response.body", "body": body})


def root(scope: Scope) -> str:
    """The server's address as the client knows it."""
    host = next((value for name, value in scope["headers"] if name == b"host"), b"").decode("latin-1")
    return f"{scope['scheme']}://{host}"
