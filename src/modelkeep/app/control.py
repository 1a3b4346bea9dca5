"""The control server: its own API, and the pages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from modelkeep.core.errors import Invalid, ModelkeepError, NotFound, Refused
from modelkeep.lifecycle.keep import Keep
from modelkeep.protocols.control import routes
from modelkeep.protocols.control.http import as_error
from modelkeep.protocols.mlflow import tracking
from modelkeep.web import pages

_LOCAL = {"127.0.0.1", "localhost", "[::1]", "::1"}


class LocalOnly:
    """Refuses requests that a browser was tricked into sending: a foreign Host (DNS rebinding) or Origin."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
            host = urlsplit(f"//{headers.get(b'host', '')}").hostname or ""
            origin = headers.get(b"origin")
            foreign = origin is not None and (urlsplit(origin).hostname or "") not in _LOCAL
            if host not in _LOCAL or foreign:
                refusal = Refused(f"requests for host {host!r} from origin {origin!r} are not answered here")
                await as_error(refusal)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def application(keep: Keep, loop_status: Callable[[], dict[str, Any]], serving: str) -> Starlette:
    """The control server's ASGI application.

    Args:
        keep: The home it speaks for.
        loop_status: What the loop says of itself.
        serving: Address of the serving process; empty without one.
    """
    return Starlette(
        routes=[
            *tracking.routes(keep),  # first: routes are tried in order, and these are the busy ones
            *routes.routes(keep, loop_status, serving),
            *pages.routes(keep.db.read),
        ],
        middleware=[Middleware(LocalOnly)],
        exception_handlers={HTTPException: _unrouted, ModelkeepError: _known},
    )


async def _unrouted(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 404
    if status == 405:
        response = as_error(Invalid(f"{request.method} is not offered on {request.url.path}"))
        response.status_code = 405
        return response
    return as_error(NotFound(f"there is nothing at {request.url.path}"))


async def _known(_: Request, error: Exception) -> Response:
    return as_error(error if isinstance(error, ModelkeepError) else ModelkeepError(str(error)))
