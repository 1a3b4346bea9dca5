"""A REST operation as a value: what it takes, gives and does. Routes and OpenAPI both come from it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from modelkeep.core.errors import (
    Conflict,
    Damaged,
    Invalid,
    MissingExtra,
    ModelkeepError,
    NotFound,
    Refused,
    Unavailable,
)
from modelkeep.protocols.openapi import Described

log = logging.getLogger(__name__)

MAX_BODY = 64 * 1024 * 1024
"""Bytes of the largest body taken."""

_STATUS: tuple[tuple[type[ModelkeepError], int], ...] = (
    (Invalid, 400),
    (NotFound, 404),
    (Conflict, 409),
    (Refused, 403),
    (MissingExtra, 501),
    (Damaged, 500),
    (Unavailable, 503),
)


@dataclass(frozen=True, slots=True)
class Call:
    """One decoded request.

    Attributes:
        path: Path parameters.
        query: Query parameters, decoded to the operation's query struct.
        body: Decoded body, or the raw bytes of a media type other than JSON.
        media: The body's media type.
    """

    path: Mapping[str, str]
    query: Any
    body: Any
    media: str


@dataclass(frozen=True, slots=True)
class Operation:
    """One REST operation.

    Attributes:
        method: HTTP method.
        path: Template such as ``/api/modelkeep/models/{model}``.
        summary: One line for the OpenAPI document.
        run: Does the work in a worker thread and returns something msgspec can encode.
        query: Struct of the query parameters.
        body: Type of the JSON body.
        also: Media types other than JSON taken as they are.
        gives: Type of the answer.
    """

    method: str
    path: str
    summary: str
    run: Callable[[Call], Any]
    query: type[msgspec.Struct] | None = None
    body: Any = None
    also: tuple[str, ...] = field(default=())
    gives: Any = dict[str, Any]

    @property
    def described(self) -> Described:
        """The operation as the OpenAPI document has it."""
        return Described(self.method, self.path, self.summary, self.query, self.body, self.also, self.gives)

    def route(self) -> Route:
        """The operation as a Starlette route."""

        async def answer(request: Request) -> Response:
            try:
                call = await self._decode(request)
                return as_json(await run_in_threadpool(self.run, call))
            except ModelkeepError as error:
                return as_error(error)
            except Exception:
                log.exception("%s %s failed", self.method, request.url.path)
                return as_error(ModelkeepError("this is our fault; see the log of the server"))

        return Route(self.path, answer, methods=[self.method], name=f"{self.method} {self.path}")

    async def _decode(self, request: Request) -> Call:
        media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        query = _query(self.query, request) if self.query else None
        body: Any = None
        if self.body is not None:
            raw = await _read(request)
            body = raw if media in self.also else _json(raw, self.body)
        return Call(path=request.path_params, query=query, body=body, media=media)


async def _read(request: Request) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BODY:
            raise Invalid(f"the body is larger than {MAX_BODY} bytes", hint="send it in several requests")
        parts.append(part)
    return b"".join(parts)


def _json(raw: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at ")
        raise Invalid(message, path=path.strip("`").removeprefix("$.").removeprefix("$")) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"the body is not JSON: {error}") from None


def _query(kind: type[msgspec.Struct], request: Request) -> Any:
    try:
        return msgspec.convert(dict(request.query_params), type=kind, strict=False)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at ")
        raise Invalid(message, path="query" + path.strip("`").removeprefix("$")) from None


def as_json(value: Any, status: int = 200) -> Response:
    """Anything msgspec can encode, as a response."""
    return Response(msgspec.json.encode(value), status_code=status, media_type="application/json")


def as_error(error: ModelkeepError) -> Response:
    """An error as a response: 4xx for what the caller can mend, 5xx for what the keeper must."""
    status = next((code for kind, code in _STATUS if isinstance(error, kind)), 500)
    problems = [{"path": problem.path, "message": problem.message} for problem in getattr(error, "problems", ())]
    body = {"error": type(error).__name__, "message": error.message, "hint": error.hint, "problems": problems}
    return as_json({name: value for name, value in body.items() if value}, status)
