"""The control server: MLflow's operations before ASGI; its own API, artifacts and the pages through it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import uvicorn

from modelkeep.app.protection import Protection, noting
from modelkeep.core.errors import Invalid, ModelkeepError, NotFound
from modelkeep.lifecycle.keep import Keep
from modelkeep.protocols.access.accounts import Read
from modelkeep.protocols.access.guard import Guard, Pass
from modelkeep.protocols.access.refusals import too_often
from modelkeep.protocols.mlflow import wire
from modelkeep.serve.http import Handler, Head, Sink, protocol

if TYPE_CHECKING:  # large, and not needed to answer /health
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import BaseRoute
    from starlette.types import Receive, Scope, Send

    from modelkeep.protocols.mlflow.tracking import Door

T = TypeVar("T")
_LOCAL = Protection()
IDLE = 75
"""Seconds a connection may be idle: training logs once an epoch, and need not connect each time."""


class Hot:
    """The lean protocol's side: MLflow's operations, and the admission to them.

    Heads of equal bytes are one object, so what was decided about one is remembered in it.
    """

    max_body = wire.MAX_BODY

    def __init__(self, door: Made[Door], guard: Guard) -> None:
        self.door = door
        self._guard = guard

    @property
    def stamp(self) -> object:
        """Another object when the accounts have changed."""
        return self._guard.current()

    def find(self, head: Head) -> Handler | None:
        """The handler of a request; None to leave it to the application, which has time to verify a password."""
        if head.method == b"GET" and head.target == b"/health" and not self._guard.on:
            return _healthy
        found = self.door().find(head)
        if found is None:
            return None
        let_in = self._guard.judge(head.method.decode("latin-1"), head.headers)
        head.who = let_in if isinstance(let_in, Pass) else None
        return None if let_in is None else found

    def admit(self, head: Head) -> tuple[int, bytes, bytes] | None:
        """The refusal of a request."""
        let_in: Pass | None = head.who
        if let_in is None or let_in.epoch is not self._guard.current():
            found = self._guard.judge(head.method.decode("latin-1"), head.headers)
            if not isinstance(found, Pass):
                return (found or too_often(1, "passwords are verified anew")).lean()
            head.who = let_in = found
        refusal = let_in.turn()
        return None if refusal is None else refusal.lean()


def _healthy(sink: Sink, _: bytes, __: Head) -> None:
    sink.write(200, b"OK", kind=b"text/plain; charset=utf-8")


class Made(Generic[T]):
    """Made when it is first asked for: what it imports takes longer than to start the server.

    Args:
        make: Makes it.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self.made: T | None = None
        self._making = threading.Lock()

    def __call__(self) -> T:
        """It, once."""
        if self.made is None:
            with self._making:
                if self.made is None:
                    self.made = self._make()
        return self.made


class Cold:
    """The ASGI application, made when something is first asked of it.

    Args:
        app: Makes it.
    """

    def __init__(self, app: Made[Starlette]) -> None:
        self._app = app

    @property
    def routes(self) -> list[BaseRoute]:
        """Every route, for who checks them."""
        return self._app().routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        app = self._app.made if self._app.made is not None else await asyncio.to_thread(self._app)
        await app(scope, receive, send)


def warm(made: uvicorn.Config) -> None:
    """Import what the first request of an MLflow client needs."""
    hot: Hot = cast(Any, made.http).routes
    hot.door()


def config(
    keep: Keep,
    loop_status: Callable[[], dict[str, Any]],
    serving: Callable[[], str],
    *,
    host: str = "127.0.0.1",
    protection: Protection = _LOCAL,
    **options: Any,
) -> uvicorn.Config:
    """The control server, for ``uvicorn.Server``.

    Args:
        keep: The home it speaks for.
        loop_status: What the loop says of itself.
        serving: Says where serving processes answer; empty without any.
        host: Address it is bound to.
        protection: Who must say who they are, and over what.
        options: Of ``uvicorn.Config``.
    """
    accounts = Read(keep.db)
    guard = protection.guard(accounts, keep.clock, host, note=noting(keep))

    def opened() -> Door:
        from modelkeep.protocols.mlflow.tracking import Door

        return Door(keep, guard)

    door = Made(opened)

    def application() -> Starlette:
        from starlette.applications import Starlette
        from starlette.exceptions import HTTPException
        from starlette.middleware import Middleware

        from modelkeep.protocols.access.asgi import Guarded
        from modelkeep.protocols.access.needs import CONTROL
        from modelkeep.protocols.control import routes
        from modelkeep.web import pages, signin

        return Starlette(
            routes=[
                *door().routes(),
                *routes.routes(keep, loop_status, serving, door().described()),
                *signin.routes(guard, keep.db.write, accounts.fresh, keep.clock),
                *pages.routes(keep.db.read),
            ],
            middleware=[Middleware(Guarded, guard=guard, needs=CONTROL, pages=True)],
            exception_handlers={HTTPException: _unrouted, ModelkeepError: _known},
        )

    app = Cold(Made(application))
    options = {"timeout_keep_alive": IDLE, "log_level": "warning", "lifespan": "off", **options}
    return uvicorn.Config(app, http=protocol(Hot(door, guard)), **protection.uvicorn(), **options)


async def _unrouted(request: Request, error: Exception) -> Response:
    from starlette.exceptions import HTTPException

    from modelkeep.protocols.control.http import as_error

    status = error.status_code if isinstance(error, HTTPException) else 404
    if status == 405:
        response = as_error(Invalid(f"{request.method} is not offered on {request.url.path}"))
        response.status_code = 405
        return response
    return as_error(NotFound(f"there is nothing at {request.url.path}"))


async def _known(_: Request, error: Exception) -> Response:
    from modelkeep.protocols.control.http import as_error

    return as_error(error if isinstance(error, ModelkeepError) else ModelkeepError(str(error)))
