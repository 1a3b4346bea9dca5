"""The sign-in page: a password for a session's cookie.

The cookie is out of scripts' reach (``HttpOnly``), is sent only by pages of this server (``SameSite=Strict``) and,
under TLS, only over TLS (RFC 6265bis). Its session is a row that signing out removes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl

from sqlalchemy import Connection
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from modelkeep.core.clock import Clock
from modelkeep.protocols.access import asgi
from modelkeep.protocols.access.credentials import COOKIE, SECURE_COOKIE, Password
from modelkeep.protocols.access.guard import Guard
from modelkeep.protocols.access.refusals import Refusal
from modelkeep.registry import access
from modelkeep.web.pages import HEADERS, render

LASTS = 12 * 3600.0
"""Seconds until somebody must sign in again."""

_MAX_FORM = 16_384

Write = Callable[[Callable[[Connection], Any]], Any]


def routes(guard: Guard, write: Write, renew: Callable[[], None], clock: Clock) -> list[BaseRoute]:
    """The routes.

    Args:
        guard: Verifies passwords.
        write: Runs a work in a transaction.
        renew: Called after a change, so that it counts at once.
        clock: When sessions end.
    """
    found = _SignIn(guard, write, renew, clock)
    return [
        Route("/sign-in", found.show, methods=["GET"]),
        Route("/sign-in", found.take, methods=["POST"]),
        Route("/sign-out", found.leave, methods=["POST"]),
    ]


class _SignIn:
    def __init__(self, guard: Guard, write: Write, renew: Callable[[], None], clock: Clock) -> None:
        self._guard = guard
        self._write = write
        self._renew = renew
        self._clock = clock
        self._cookie = SECURE_COOKIE if guard.secure else COOKIE

    async def show(self, request: Request) -> Response:
        return self._page(request, request.query_params.get("next", "/"))

    async def take(self, request: Request) -> Response:
        said = await _form(request)
        back = said.get("next", "/")
        client = request.client.host if request.client else ""
        found = await self._guard.verify(Password(said.get("user", ""), said.get("password", "")), client)
        if isinstance(found, Refusal):
            page = self._page(request, back, fault=found.message, user=said.get("user", ""), status=found.status)
            page.raw_headers.extend(pair for pair in found.headers if pair[0] != b"www-authenticate")
            return page
        now, name = self._clock.now(), found.name

        def work() -> str:
            token: str = self._write(
                lambda conn: access.create_token(
                    conn, name, "browser", kind="session", now=now, actor=name, expires=now + LASTS
                )
            )
            self._renew()
            return token

        response = RedirectResponse(_local(back), 303, headers=HEADERS)
        response.set_cookie(
            self._cookie,
            await run_in_threadpool(work),
            max_age=round(LASTS),
            path="/",
            httponly=True,
            samesite="strict",
            secure=self._guard.secure,
        )
        return response

    async def leave(self, request: Request) -> Response:
        who = asgi.asking()
        if who is not None and who.session:
            now, key, name = self._clock.now(), who.token, who.user

            def work() -> None:
                self._write(lambda conn: access.end_session(conn, key, now=now, actor=name))
                self._renew()

            await run_in_threadpool(work)
        response = RedirectResponse("/sign-in", 303, headers=HEADERS)
        response.delete_cookie(self._cookie, path="/", httponly=True, samesite="strict", secure=self._guard.secure)
        return response

    def _page(
        self, request: Request, back: str, *, fault: str = "", user: str = "", status: int = 200
    ) -> Response:
        who = asgi.asking()
        text = render(
            "signin.html",
            "",
            name=who.user if who is not None else "",
            on=self._guard.on,
            back=_local(back),
            fault=fault,
            user=user,
        )
        return HTMLResponse(text, status, headers=HEADERS)


async def _form(request: Request) -> dict[str, str]:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _MAX_FORM:
            return {}
    return dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=10))


def _local(path: str) -> str:
    """A path of this server; ``/`` for what leads elsewhere, as ``//host`` and ``/\\host`` do."""
    plain = path.startswith("/") and path[1:2] not in ("/", "\\") and path.isprintable()
    return path if plain and len(path) <= 2000 else "/"
