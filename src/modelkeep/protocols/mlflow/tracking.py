"""MLflow's tracking server: one ASGI application that finds an operation, decodes, runs and encodes.

Paths are looked up in a table, under ``/api`` and ``/ajax-api`` alike. Writes wait for the group commit without a
thread; reads run in a few threads. Nothing is acknowledged before it is durable.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.routing import BaseRoute, Mount, Route
from starlette.types import Receive, Scope, Send

from modelkeep import __version__
from modelkeep.core.errors import Invalid, ModelkeepError
from modelkeep.lifecycle.keep import Keep
from modelkeep.protocols.mlflow import experiments, logged_models, metrics, registry, runs, wire
from modelkeep.protocols.mlflow.artifacts import Artifacts
from modelkeep.protocols.mlflow.wire import Operation
from modelkeep.registry.experiments import ensure_default

MAX_BODY = 32 * 1024 * 1024
"""Bytes of the largest request that is not an artifact."""

READERS = 8
_UNBUILT = (
    "datasets gateway issues label-schemas mpu presigned prompt-optimization review-queues scorers traces"
    " unified-traces webhooks workspaces"
)
"""Parts of MLflow's API that are not built."""

OPERATIONS: Sequence[Operation] = (
    *experiments.OPERATIONS,
    *runs.OPERATIONS,
    *metrics.OPERATIONS,
    *registry.OPERATIONS,
    *logged_models.OPERATIONS,
)
_VERSIONS = ("2.0", "2.11", "3.0")
_FILES = ("get-artifact", "mlflow/artifacts/list", "/artifacts/directories")
_JSON = (b"content-type", b"application/json")
log = logging.getLogger(__name__)


def routes(keep: Keep) -> list[BaseRoute]:
    """What MLflow's clients ask for, to mount in the control server.

    Args:
        keep: The home that answers. Experiment 0 is made in it when it is not there.
    """
    now = round(keep.clock.now() * 1000)
    keep.db.write(lambda conn: ensure_default(conn, now))
    door = Door(keep)
    versions = [Mount(f"/{root}/{version}", door) for root in ("api", "ajax-api") for version in _VERSIONS]
    return [*versions, Route("/get-artifact", door), Route("/model-versions/get-artifact", door)]


class Door:
    """The ASGI application."""

    def __init__(self, keep: Keep) -> None:
        self._keep = keep
        self._artifacts = Artifacts(keep)
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="modelkeep-read")
        self._fixed: dict[tuple[str, str], Operation] = {}
        self._shaped: dict[tuple[str, int], list[tuple[list[str], Operation]]] = {}
        for operation in OPERATIONS:
            if "{" in operation.path:
                parts = operation.path.split("/")
                self._shaped.setdefault((operation.method, len(parts)), []).append((parts, operation))
            else:
                self._fixed[operation.method, operation.path] = operation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        path = scope["path"].split("/", 3)[-1]
        method = scope["method"]
        if path.startswith("mlflow-artifacts/artifacts") or path.endswith(_FILES):
            await self._files(path, scope, receive, send)
            return
        if not path.startswith("mlflow/"):
            await _send(send, *_nowhere(method, path))
            return
        path = path[7:]
        if path == "server-info" and method == "GET":
            await _send(send, 200, wire.encode(_info()))
            return
        operation, given = self._find(method, path)
        if operation is None:
            await _send(send, *_nowhere(method, path))
            return
        try:
            body = await read(receive, MAX_BODY) if method != "GET" else b""
            asked = wire.decode(operation.takes, given, scope["query_string"], body)
            answer = await self._run(operation, asked)
        except ModelkeepError as error:
            await _send(send, *wire.as_error(error, operation.conflict))
        except Exception:
            log.exception("%s %s failed", method, scope["path"])
            await _send(send, *wire.error_body("INTERNAL_ERROR", "this is our fault; see the log of the server"))
        else:
            await _send(send, 200, answer)

    async def _files(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            answer: tuple[int, bytes] | None = None
            if path.startswith("mlflow-artifacts/"):
                answer = await self._artifacts.proxy(scope, receive, send)
            elif path.endswith("get-artifact"):
                await self._artifacts.get(scope, send)
            else:
                parts = path.split("/")
                answer = 200, await self._artifacts.listing(scope, parts[2] if parts[1] == "logged-models" else "")
        except ModelkeepError as error:
            answer = wire.as_error(error)
        if answer is not None:
            await _send(send, *answer)

    def _find(self, method: str, path: str) -> tuple[Operation | None, dict[str, str]]:
        found = self._fixed.get((method, path))
        if found is not None:
            return found, {}
        parts = path.split("/")
        for shape, operation in self._shaped.get((method, len(parts)), ()):
            if all(said[0] == "{" or said == part for said, part in zip(shape, parts, strict=True)):
                pairs = zip(shape, parts, strict=True)
                return operation, {said[1:-1]: part for said, part in pairs if said[0] == "{"}
        return None, {}

    async def _run(self, operation: Operation, asked: Any) -> bytes:
        work = operation.run(asked, round(self._keep.clock.now() * 1000))
        if operation.kind == "write":
            return _encoded(await asyncio.wrap_future(self._keep.db.submit(work)))

        def look() -> bytes:
            with self._keep.db.read() as conn:
                return _encoded(work(conn))

        return await asyncio.get_running_loop().run_in_executor(self._readers, look)


def _encoded(content: Any) -> bytes:
    return b"{}" if content is None else wire.encode(content)


async def read(receive: Receive, limit: int) -> bytes:
    """A request's body. Raises ``Invalid`` when it is larger than ``limit`` bytes."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Invalid("the client went away")
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise Invalid(f"The request is larger than {limit} bytes")
        if not message.get("more_body", False):
            return part if not parts else b"".join([*parts, part])
        parts.append(part)


async def _send(send: Send, status: int, body: bytes, headers: Sequence[tuple[bytes, bytes]] = (_JSON,)) -> None:
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


def _nowhere(method: str, path: str) -> tuple[int, bytes]:
    known = path.removeprefix("mlflow/").removeprefix("mlflow-artifacts/").split("/")[0]
    if known in _UNBUILT.split():
        return wire.error_body("NOT_IMPLEMENTED", f"Modelkeep {__version__} does not offer MLflow's {known} yet")
    return wire.error_body(
        "ENDPOINT_NOT_FOUND", f"{method} {path} is not a path of MLflow's API this server knows"
    )


def _info() -> dict[str, Any]:
    return {
        "store_type": "SqlStore",
        "workspaces_enabled": False,
        "trace_archival_enabled": False,
        "multipart_uploads_enabled": False,
        "multipart_downloads_enabled": False,
        "presigned_upload_run_id_supported": False,
        "presigned_upload_model_id_supported": False,
        "features_enabled": [],
    }
