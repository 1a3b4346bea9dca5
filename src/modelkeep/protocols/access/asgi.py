"""The guard before an ASGI application: every request passes it; a route nobody stated a need for is refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, TypeVar
from urllib.parse import quote

from sqlalchemy import Connection
from starlette.responses import RedirectResponse, Response
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

from modelkeep.core.errors import Refused
from modelkeep.protocols.access.guard import Guard, Pass
from modelkeep.protocols.access.needs import INSIDE, KNOWN, PUBLIC, Need, Needs, find
from modelkeep.protocols.access.refusals import Refusal, forbidden
from modelkeep.registry.access_rights import Principal
from modelkeep.registry.events import acting

T = TypeVar("T")

LET_IN = "modelkeep.pass"
"""Where a scope carries the ``Pass`` of its request."""


_PRESIGNED = re.compile(r"/(ajax-)?api/[0-9.]+/mlflow-artifacts/(mpu/part|signed)/")
"""Below this a sealed URL lets in, as one of an object store does: clients send no credentials."""

_asking: ContextVar[Principal | None] = ContextVar("asking", default=None)


def enter(who: Principal | None) -> None:
    """Who makes the request that is handled from here on."""
    _asking.set(who)


def asking() -> Principal | None:
    """Who made the request that is being answered here; None while authentication is off.

    Known in the request's task, and in threads that were handed its context.
    """
    return _asking.get()


def named(work: Callable[[Connection], T]) -> Callable[[Connection], T]:
    """The work, its events in the name of whoever asks now; the writer's thread would not know."""
    who = asking()
    if who is None:
        return work
    name = who.name

    def known(conn: Connection) -> T:
        with acting(name):
            return work(conn)

    return known


class Guarded:
    """Middleware of a Starlette application.

    Args:
        app: What comes next.
        guard: Who decides.
        needs: What each route needs.
        pages: Whether people are sent to the sign-in page.
    """

    def __init__(
        self,
        app: ASGIApp,
        guard: Guard,
        needs: Needs,
        *,
        pages: bool = False,
    ) -> None:
        self._app = app
        self._guard = guard
        self._needs = needs
        self._pages = pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request in, or say why not."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                return  # there are none; not accepting is refusing
            await self._app(scope, receive, send)
            return
        enter(None)  # the task may have begun in the context of somebody else's request
        need, parameters = self._need(scope)
        if need is INSIDE and scope["method"] in ("GET", "PUT") and _PRESIGNED.match(scope["path"]):
            need = PUBLIC
        refusal = await self._refusal(scope, need, parameters)
        if refusal is not None:
            await self._say(refusal, scope)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _need(self, scope: Scope) -> tuple[Need | None, Mapping[str, str]]:
        """What the route needs that Starlette will choose; to be told that there is none, to be known."""
        for route in scope["app"].routes:
            match, child = route.matches(scope)
            if match is Match.FULL:
                return find(self._needs, route.path, scope["method"]), child.get("path_params", {})
        return KNOWN, {}

    async def _refusal(self, scope: Scope, need: Need | None, parameters: Mapping[str, str]) -> Refusal | None:
        guard = self._guard
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if need is not None and not need.right and not need.known:
            fault = guard.hosts.fault(scope["method"], headers)
            if not fault and isinstance(known := guard.judge(scope["method"], headers), Pass):
                self._enter(scope, known)
            return forbidden(fault) if fault else None
        client = scope["client"][0] if scope.get("client") else ""
        found = await guard.judge_slowly(scope["method"], headers, client)
        if isinstance(found, Refusal):
            return found
        if (refusal := found.turn()) is not None:
            return refusal
        self._enter(scope, found)
        if found.who is None:
            return None
        if need is None:
            return forbidden(
                f"nobody has stated who may {scope['method']} {scope['path'][:200]}: it is refused to all"
            )
        if not need.right:
            return None
        try:
            guard.require(found.who, need.right, need.kind, need.name(parameters))
        except Refused as error:
            return forbidden(str(error))
        return None

    def _enter(self, scope: Scope, found: Pass) -> None:
        scope[LET_IN] = found
        enter(found.who)

    def _say(self, refusal: Refusal, scope: Scope) -> Response:
        accepts = dict(scope["headers"]).get(b"accept", b"")
        if self._pages and refusal.status == 401 and scope["method"] == "GET" and b"text/html" in accepts:
            back = quote(
                scope["path"] + (f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else "")
            )
            return RedirectResponse(f"/sign-in?next={back}", 303, headers={"cache-control": "no-store"})
        response = Response(refusal.body(), refusal.status, media_type="application/json")
        response.raw_headers.extend(refusal.headers)
        response.headers["cache-control"] = "no-store"
        return response


def unguarded(routes: Any, needs: Needs) -> list[str]:
    """Routes without a stated need, as ``METHOD path``: what a test wants empty."""
    return [
        f"{method} {route.path}"
        for route in routes
        for method in sorted(getattr(route, "methods", None) or {"GET", "POST", "PUT", "PATCH", "DELETE"})
        if find(needs, route.path, method) is None
    ]
