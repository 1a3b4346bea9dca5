"""The OpenAPI document of everything the control server offers, made from the types its operations decode."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Struct

from modelkeep import __version__


class Described(Struct, frozen=True):
    """One operation.

    Attributes:
        method: HTTP method.
        path: Template such as ``/api/modelkeep/models/{model}``.
        summary: One line.
        query: Struct of the query parameters.
        body: Type of the JSON body.
        also: Media types other than JSON taken as they are; without ``body`` these alone.
        gives: Type of the answer; None when ``sends`` is no JSON.
        sends: Media type of the answer.
        headers: Names of header lines that may be sent with it.
    """

    method: str
    path: str
    summary: str
    query: Any = None
    body: Any = None
    also: tuple[str, ...] = ()
    gives: Any = dict[str, Any]
    sends: str = "application/json"
    headers: tuple[str, ...] = ()


_BYTES = {"schema": {"type": "string", "format": "binary"}}


def document(operations: Iterable[Described]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of the operations."""
    operations = list(operations)
    kinds = [kind for op in operations for kind in (op.body, op.gives, op.query) if kind is not None]
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    found = iter(schemas)
    paths: dict[str, dict[str, Any]] = {}
    for op in operations:
        said: dict[str, Any] = {"summary": op.summary, "operationId": _identifier(op)}
        within = re.findall(r"{(\w+)", op.path)
        parameters = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in within
        ]
        content = {} if op.body is None else {"application/json": {"schema": next(found)}}
        content |= dict.fromkeys(op.also, _BYTES)
        if content:
            said["requestBody"] = {"required": True, "content": content}
        good = {
            "description": "done",
            "content": {op.sends: _BYTES if op.gives is None else {"schema": next(found)}},
        }
        said["responses"] = {"200": good, "4XX": {"description": "an error with the field's path"}}
        if op.query is not None:
            properties = components[next(found)["$ref"].rpartition("/")[2]]["properties"]
            parameters += [
                {"name": name, "in": "query", "schema": schema}
                for name, schema in properties.items()
                if name not in within
            ]
        parameters += [{"name": name, "in": "header", "schema": {"type": "string"}} for name in op.headers]
        if parameters:
            said["parameters"] = parameters
        paths.setdefault(re.sub(r"{(\w+):\w+}", r"{\1}", op.path), {})[op.method.lower()] = said
    return {
        "openapi": "3.1.0",
        "info": {"title": "Modelkeep", "version": __version__},
        "paths": paths,
        "components": {"schemas": components},
    }


def _identifier(op: Described) -> str:
    words = re.findall(r"\w+", op.path.removeprefix("/api/modelkeep"))
    return "_".join([op.method.lower(), *words])
