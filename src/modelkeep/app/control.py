"""The control server: MLflow's operations before ASGI; its own API, artifacts and the pages through it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import uvicorn
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
from modelkeep.protocols.mlflow import wire
from modelkeep.protocols.mlflow.tracking import Door
from modelkeep.serve.http import Handler, Head, protocol
from modelkeep.web import pages

_LOCAL = {"127.0.0.1", "localhost", "[::1]", "::1"}


class Admission:
    """Whether a request is let in: the one place that decides, for the lean protocol and for ASGI alike.

    Refuses what a browser was tricked into sending: a foreign Host (DNS rebinding) or Origin (cross-site posts).
    """

    def refusal(self, method: str, path: str, headers: Mapping[bytes, bytes]) -> ModelkeepError | None:
        """Why the request is not let in; None when it is.

        Args:
            headers: By lower-case name.
        """
        host = urlsplit(f"//{headers.get(b'host', b'').decode('latin-1')}").hostname or ""
        said = headers.get(b"origin")
        origin = None if said is None else said.decode("latin-1")
        if host in _LOCAL and (origin is None or (urlsplit(origin).hostname or "") in _LOCAL):
            return None
        return Refused(f"requests for host {host!r} from origin {origin!r} are not answered here")


class Admitted:
    """ASGI's side of the admission."""

    def __init__(self, app: ASGIApp, admission: Admission) -> None:
        self.app = app
        self.admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that is not let in."""
        if scope["type"] == "http":
            refusal = self.admission.refusal(scope["method"], scope["path"], dict(scope["headers"]))
            if refusal is not None:
                await as_error(refusal)(scope, receive, send)
                return
        await self.app(scope, receive, send)


class Hot:
    """The lean protocol's side: MLflow's operations, and the admission to them.

    Heads of equal bytes are one object, so what was decided about one is remembered in it.
    """

    stamp = object()
    max_body = Door.max_body

    def __init__(self, door: Door, admission: Admission) -> None:
        self._door = door
        self._admission = admission

    def find(self, head: Head) -> Handler | None:
        """The handler of a request; None to leave it to the application."""
        return self._door.find(head)

    def admit(self, head: Head) -> tuple[int, bytes] | None:
        """Status and body of a refusal."""
        if head.who is not self._admission:
            path = head.target.partition(b"?")[0].decode("latin-1")
            refusal = self._admission.refusal(head.method.decode("latin-1"), path, head.headers)
            if refusal is not None:
                return wire.as_error(refusal)
            head.who = self._admission
        return None


def config(keep: Keep, loop_status: Callable[[], dict[str, Any]], serving: str, **options: Any) -> uvicorn.Config:
    """The control server, for ``uvicorn.Server``.

    Args:
        keep: The home it speaks for.
        loop_status: What the loop says of itself.
        serving: Address of the serving process; empty without one.
        options: Of ``uvicorn.Config``.
    """
    door, admission = Door(keep), Admission()
    app = Starlette(
        routes=[
            *door.routes(),
            *routes.routes(keep, loop_status, serving),
            *pages.routes(keep.db.read),
        ],
        middleware=[Middleware(Admitted, admission=admission)],
        exception_handlers={HTTPException: _unrouted, ModelkeepError: _known},
    )
    hot = protocol(Hot(door, admission))
    return uvicorn.Config(app, http=hot, log_level="warning", lifespan="off", **options)


async def _unrouted(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 404
    if status == 405:
        response = as_error(Invalid(f"{request.method} is not offered on {request.url.path}"))
        response.status_code = 405
        return response
    return as_error(NotFound(f"there is nothing at {request.url.path}"))


async def _known(_: Request, error: Exception) -> Response:
    return as_error(error if isinstance(error, ModelkeepError) else ModelkeepError(str(error)))
