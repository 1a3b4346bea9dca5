"""A REST operation as a value: what it takes, gives and does. Routes and OpenAPI both come from it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from modelkeep import __version__
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

    def route(self) -> Route:
        """The operation as a Starlette route."""

        async def answer(request: Request) -> Response:
            try:
                call = await self._decode(request)
                return as_json(await run_in_threadpool(self.run, call))
            except ModelkeepError as error:
                return as_error(error)

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


def openapi(operations: Iterable[Operation]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of the operations."""
    operations = list(operations)
    kinds = [kind for op in operations for kind in (op.body, op.gives, op.query) if kind is not None]
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    found = iter(schemas)
    paths: dict[str, dict[str, Any]] = {}
    for op in operations:
        said: dict[str, Any] = {"summary": op.summary, "operationId": _identifier(op)}
        parameters = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in re.findall(r"{(\w+)", op.path)
        ]
        if op.body is not None:
            content = {"application/json": {"schema": next(found)}}
            content |= {media: {"schema": {"type": "string", "format": "binary"}} for media in op.also}
            said["requestBody"] = {"required": True, "content": content}
        good = {"description": "done", "content": {"application/json": {"schema": next(found)}}}
        said["responses"] = {"200": good, "4XX": {"description": "an error with the field's path"}}
        if op.query is not None:
            properties = components[next(found)["$ref"].rpartition("/")[2]]["properties"]
            parameters += [{"name": name, "in": "query", "schema": schema} for name, schema in properties.items()]
        if parameters:
            said["parameters"] = parameters
        paths.setdefault(re.sub(r"{(\w+):\w+}", r"{\1}", op.path), {})[op.method.lower()] = said
    return {
        "openapi": "3.1.0",
        "info": {"title": "Modelkeep", "version": __version__},
        "paths": paths,
        "components": {"schemas": components},
    }


def _identifier(op: Operation) -> str:
    words = re.findall(r"\w+", op.path.removeprefix("/api/modelkeep"))
    return "_".join([op.method.lower(), *words])
