"""MLflow's tracking server: a table of operations, each found, decoded, run and encoded.

There are two entrances to the same handlers: the lean protocol, before ASGI, and the ASGI application for what it
leaves (``Expect``, pipelining). Paths count under ``/api`` and ``/ajax-api`` alike. Nothing is acknowledged
before it is durable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from urllib.parse import unquote

from starlette.routing import BaseRoute, Mount, Route
from starlette.types import Receive, Scope, Send

from modelkeep import __version__
from modelkeep.core.errors import ModelkeepError
from modelkeep.lifecycle.keep import Keep
from modelkeep.protocols.access.asgi import LET_IN
from modelkeep.protocols.access.door import Doorkeeper
from modelkeep.protocols.access.guard import Guard
from modelkeep.protocols.mlflow import (
    asgi,
    evaluation,
    experiments,
    logged_models,
    metrics,
    model_versions,
    otlp,
    registry,
    runs,
    traces,
    traces_assessments,
    traces_metrics,
    webhooks,
    wire,
)
from modelkeep.protocols.mlflow.artifacts import Artifacts
from modelkeep.protocols.mlflow.described import DESCRIBED
from modelkeep.protocols.mlflow.hot import Answers, refusal
from modelkeep.protocols.mlflow.multipart import Multipart
from modelkeep.protocols.mlflow.presigned import PRESIGNED, SIGNED, Presigned
from modelkeep.protocols.mlflow.sealed import Seals
from modelkeep.protocols.mlflow.small_files import SmallFiles
from modelkeep.protocols.mlflow.wire import Operation
from modelkeep.protocols.openapi import Described
from modelkeep.protocols.respond import Later
from modelkeep.registry.experiments import ensure_default
from modelkeep.serve.http import Handler, Head, Sink

_UNBUILT = "gateway issues label-schemas prompt-optimization review-queues scorers workspaces"
"""Parts of MLflow's API that are not built."""

OPERATIONS: Sequence[Operation] = (
    *experiments.OPERATIONS,
    *runs.OPERATIONS,
    *metrics.OPERATIONS,
    *registry.OPERATIONS,
    *model_versions.OPERATIONS,
    *logged_models.OPERATIONS,
    *webhooks.OPERATIONS,
    *traces.OPERATIONS,
    *traces_assessments.OPERATIONS,
    *traces_metrics.OPERATIONS,
    *evaluation.OPERATIONS,
)
_VERSIONS = ("2.0", "2.11", "3.0")
_ROOTS = tuple(f"/{root}/{version}" for root in ("api", "ajax-api") for version in _VERSIONS)
_STORED = tuple(f"{root}/mlflow-artifacts/artifacts/".encode() for root in _ROOTS)
_PROXIED = ("mlflow-artifacts/artifacts", "mlflow-artifacts/mpu/", PRESIGNED, SIGNED)
_FILES = (
    "load-url",
    "get-artifact",
    "mlflow/get-trace-artifact",
    "mlflow/artifacts/list",
    "/artifacts/directories",
)
_JSON = (b"content-type", b"application/json")
_INFO = wire.encode(
    {
        "store_type": "SqlStore",
        "workspaces_enabled": False,
        "trace_archival_enabled": False,
        "multipart_uploads_enabled": False,
        "multipart_downloads_enabled": False,
        "presigned_upload_run_id_supported": True,
        "presigned_upload_model_id_supported": True,
        "features_enabled": [],
    }
)


class Door:
    """MLflow's operations over one home.

    Args:
        keep: The home that answers. Experiment 0 is made in it when it is not there.
        guard: Who may ask for what.
    """

    def __init__(self, keep: Keep, guard: Guard) -> None:
        now = round(keep.clock.now() * 1000)
        keep.db.write(lambda conn: ensure_default(conn, now))
        self._keep = keep
        self._keeper = Doorkeeper(guard)
        self._artifacts = Artifacts(keep, self._keeper)
        seals = Seals(keep.clock.now)
        self._small = SmallFiles(keep, self._keeper)
        self._multipart = Multipart(self._artifacts, seals)
        self._presigned = Presigned(self._artifacts, seals)
        self._answers = Answers(keep.db)
        self._fixed: dict[tuple[bytes, bytes], Handler] = {}
        self._shaped: dict[tuple[str, int], list[tuple[list[str], Operation]]] = {}
        for operation in OPERATIONS:
            if "{" in operation.path:
                parts = operation.path.split("/")
                self._shaped.setdefault((operation.method, len(parts)), []).append((parts, operation))
            else:
                self._add(operation.method, operation.path, partial(self._answer, operation, {}))
        self._fixed[b"POST", otlp.PATH] = otlp.Entrance(keep, self._keeper).answer
        self._add("GET", "server-info", lambda sink, body, head: sink.write(200, _INFO))

    def routes(self) -> list[BaseRoute]:
        """What MLflow's clients ask for, to mount in an ASGI application."""
        mounts = [Mount(root, self) for root in _ROOTS]
        alone = ("/get-artifact", "/model-versions/get-artifact", otlp.PATH.decode())
        return [*mounts, *(Route(path, self) for path in alone)]

    def described(self) -> list[Described]:
        """Everything as the OpenAPI document has it; each is under ``/ajax-api`` and ``/api/3.0`` too."""
        operations = [
            Described(
                one.method,
                f"{_ROOTS[0]}/mlflow/{one.path}",
                (one.takes.__doc__ or "").partition("\n")[0].strip(),
                query=one.takes if one.method == "GET" else None,
                body=None if one.method == "GET" else one.takes,
            )
            for one in OPERATIONS
        ]
        return [*operations, *DESCRIBED]

    def find(self, head: Head) -> Handler | None:
        """The handler of an operation; None for artifacts and for what there is not."""
        path = head.target.partition(b"?")[0]
        found = self._fixed.get((head.method, path)) or self._find_shaped(head.method.decode("latin-1"), path)
        return found or (self._small.find(head) if path.startswith(_STORED) else None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request through ASGI."""
        path = scope["path"].split("/", 3)[-1]
        if path.startswith(_PROXIED) or path.endswith(_FILES):
            await self._files(path, scope, receive, send)
            return
        raw = scope.get("raw_path") or scope["path"].encode()
        target = raw + b"?" + scope["query_string"]
        head = Head(scope["method"].encode(), target, dict(scope["headers"]))
        head.who = scope.get(LET_IN)
        handler = self.find(head)
        if handler is None:
            await asgi.send(send, *_nowhere(scope["method"], path))
            return
        try:
            body = await asgi.read(receive, wire.MAX_BODY)
        except ModelkeepError as error:
            await asgi.send(send, *wire.as_error(error))
            return
        later = Later()
        handler(later, body, head)
        await (await later.response())(scope, receive, send)

    def _add(self, method: str, path: str, handler: Handler) -> None:
        for root in _ROOTS:
            self._fixed[method.encode(), f"{root}/mlflow/{path}".encode()] = handler

    def _find_shaped(self, method: str, path: bytes) -> Handler | None:
        root, _, rest = path.decode("latin-1").partition("/mlflow/")
        if root not in _ROOTS:
            return None
        parts = rest.split("/")
        for shape, operation in self._shaped.get((method, len(parts)), ()):
            pairs = list(zip(shape, parts, strict=True))
            if all(said[0] == "{" or said == part for said, part in pairs):
                given = {said[1:-1]: unquote(part) for said, part in pairs if said[0] == "{"}
                return partial(self._answer, operation, given)
        return None

    def _answer(self, operation: Operation, given: Mapping[str, str], sink: Sink, body: bytes, head: Head) -> None:
        try:
            query = head.target.partition(b"?")[2]
            asked = wire.decode(operation.takes, given, query, b"" if operation.method == "GET" else body)
            who = None if head.who is None else head.who.who
            asked, check = self._keeper.permit(operation.method, operation.path, asked, who)
            work = operation.run(asked, round(self._keep.clock.now() * 1000))
            if operation.kind != "task":
                work = self._keeper.wrap(work, who)
            self._answers.run(operation, work, sink, check)
        except Exception as error:
            sink.write(*refusal(error, operation.name, operation.conflict))

    async def _files(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            answer: tuple[int, bytes] | None = None
            if path.startswith("mlflow-artifacts/mpu/"):
                await self._multipart.answer(path, scope, receive, send)
            elif path.startswith(SIGNED):
                await self._presigned.answer(path.removeprefix(SIGNED), scope, receive, send)
            elif path.startswith(PRESIGNED):
                answer = 200, await self._presigned.of_path(scope)
            elif path.startswith("mlflow-artifacts/"):
                answer = await self._artifacts.proxy(scope, receive, send)
            elif path.endswith("load-url"):
                answer = 200, await self._presigned.create(scope, receive)
            elif path.endswith("get-trace-artifact"):
                answer = await self._artifacts.of_trace(scope, send)
            elif path.endswith("get-artifact"):
                await self._artifacts.get(scope, send)
            else:
                parts = path.split("/")
                answer = 200, await self._artifacts.listing(scope, parts[2] if parts[1] == "logged-models" else "")
        except ModelkeepError as error:
            answer = wire.as_error(error)
        if answer is not None:
            await asgi.send(send, *answer)


def _nowhere(method: str, path: str) -> tuple[int, bytes]:
    known = path.removeprefix("mlflow/").removeprefix("mlflow-artifacts/").split("/")[0]
    if known in _UNBUILT.split():
        return wire.error_body("NOT_IMPLEMENTED", f"Modelkeep {__version__} does not offer MLflow's {known} yet")
    return wire.error_body(
        "ENDPOINT_NOT_FOUND", f"{method} {path} is not a path of MLflow's API this server knows"
    )
