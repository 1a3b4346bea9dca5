"""Bodies of requests that came through ASGI, without their content coding (RFC 9110, 8.4)."""

from __future__ import annotations

import zlib

from starlette.exceptions import HTTPException
from starlette.requests import Request

from modelkeep.core.errors import Invalid

_FORMATS = {
    "gzip": (zlib.MAX_WBITS | 16,),
    "x-gzip": (zlib.MAX_WBITS | 16,),
    "deflate": (zlib.MAX_WBITS, -zlib.MAX_WBITS),
}


async def unpacked(request: Request, limit: int) -> bytes:
    """The body as it was before ``Content-Encoding``.

    Args:
        limit: Bytes it may unpack to.

    Raises:
        Invalid: It is not in the coding it names.
        HTTPException: 413 when it is larger than ``limit``, 415 for a coding that is not known here.
    """
    body = await request.body()
    for coding in reversed(
        [name.strip().lower() for name in request.headers.get("content-encoding", "").split(",")]
    ):
        if coding not in ("", "identity"):
            body = inflate(body, coding, limit)
    return body


def inflate(data: bytes, coding: str, limit: int) -> bytes:
    """``data`` without one coding; stops at ``limit`` bytes, however small the bomb. Raises as ``unpacked``."""
    windows = _FORMATS.get(coding)
    if windows is None:
        raise HTTPException(415, f"content coding {coding[:40]!r} is not known here; send gzip, deflate or none")
    for window in windows:  # many senders of "deflate" leave out zlib's wrapper
        unpacker = zlib.decompressobj(window)
        try:
            found = unpacker.decompress(data, limit + 1)
        except zlib.error:
            continue
        if len(found) > limit:
            raise HTTPException(413, f"the body is larger than {limit} bytes once unpacked")
        if unpacker.eof and not unpacker.unused_data:
            return found
    raise Invalid(f"the body is not {coding}, or not all of it", path="Content-Encoding")
