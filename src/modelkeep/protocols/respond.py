"""Answers of hot handlers, for requests that came through ASGI."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from starlette.responses import Response

from modelkeep.serve.http import JSON


class Later:
    """A sink whose answer is awaited."""

    def __init__(self) -> None:
        self._answer: asyncio.Future[Response] = asyncio.get_running_loop().create_future()

    def write(self, status: int, body: bytes, headers: bytes = b"", kind: bytes = JSON) -> None:
        """Complete the response; no error when its client is gone."""
        if self._answer.done():
            return
        lines = [line.split(b": ", 1) for line in headers.split(b"\r\n") if line]
        response = Response(body, status, media_type=kind.decode("latin-1"))
        response.raw_headers.extend((name, value) for name, value in lines)
        self._answer.set_result(response)

    async def response(self) -> Response:
        """The answer, once it is written."""
        return await self._answer


def json_response(content: Any, status: int = 200) -> Response:
    """A JSON response."""
    return Response(msgspec.json.encode(content), status, media_type="application/json")
