"""The doors of a serving process: what is hot, and the ASGI application for everything else."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modelkeep.core.errors import ModelkeepError
from modelkeep.protocols import errors, metrics, traces
from modelkeep.protocols.access.asgi import LET_IN
from modelkeep.protocols.access.guard import Guard
from modelkeep.protocols.access.serving import Doorman
from modelkeep.protocols.mlflow.scoring import Scoring
from modelkeep.protocols.oip.rest import OpenInference
from modelkeep.protocols.respond import Later, json_response
from modelkeep.protocols.tfserving.rest import TensorFlowServing
from modelkeep.serve.dataplane import DataPlane
from modelkeep.serve.http import Handler, Head
from modelkeep.serve.seen import seen
from modelkeep.serve.worker import Health

if TYPE_CHECKING:
    from modelkeep.protocols.grpc.server import GrpcServer

log = logging.getLogger(__name__)

MAX_BODY = 64 * 1024 * 1024


class _TooLarge(Exception):
    """The body is larger than the limit."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the body is larger than {limit} bytes")


async def _too_large(request: Request, error: Exception) -> Response:
    response = json_response({"error": str(error)}, 413)
    response.headers["connection"] = "close"
    return response


class ServingDoors:
    """Every protocol over one data plane. Pass the class to ``serve.worker.run_worker`` as ``doors``.

    Args:
        plane: What answers.
        health: How the process stands.
        max_body: Largest request body, in bytes.
        guard: Who may ask; None for everybody who reaches this process.
        tls: PEM files of certificate and key; None for none.
        proxies: Addresses of proxies, whose word counts on where requests come from.
    """

    def __init__(
        self,
        plane: DataPlane,
        health: Health,
        *,
        max_body: int = MAX_BODY,
        guard: Guard | None = None,
        tls: tuple[Path, Path] | None = None,
        proxies: Sequence[str] = (),
    ) -> None:
        self.max_body = max_body
        self._doorman = None if guard is None else Doorman(guard)
        self._tls = tls
        self._proxies = proxies
        if self._doorman is not None:
            plane.allowed = self._doorman.allowed
        self._grpc: GrpcServer | None = None
        self._plane = plane
        self.turns = plane.turns
        self._health = health
        self._exporter = metrics.Exporter(
            plane.totals,
            lambda: plane.generation,
            metrics.names(os.environ.get(metrics.VARIABLE, "")),
            plane.apart,
            lambda: health.unloads(),  # noqa: PLW0108 - set once the models are there
        )
        oip, scoring, tfserving = (
            OpenInference(plane, max_body),
            Scoring(plane),
            TensorFlowServing(plane, max_body),
        )
        self._finders: tuple[Callable[[Head], Handler | None], ...] = (oip.find, scoring.find, tfserving.find)
        self._tracing = traces.from_environment()
        self._stamp: object = object()
        self._epoch: object = None
        plane.swapped.append(self._changed)
        self.app: ASGIApp = _Limited(
            Starlette(
                routes=[
                    *oip.routes(),
                    *scoring.routes(),
                    *tfserving.routes(),
                    Route("/metrics", self._metrics),
                    Route("/monitoring/prometheus/metrics", self._metrics),  # where TensorFlow Serving has them
                    Route("/modelkeep/health", self._report),
                ],
                middleware=[] if self._doorman is None else [self._doorman.middleware()],
                exception_handlers={
                    ModelkeepError: _refuse,
                    HTTPException: _http,
                    _TooLarge: _too_large,
                    ClientDisconnect: _gone,
                    Exception: _failed,
                },
            ),
            max_body,
        )
        if self._tracing is not None:
            self.app = self._tracing.app(self.app)

    @property
    def hot(self) -> ServingDoors:
        """The hot routes: this object itself."""
        return self

    @property
    def options(self) -> Mapping[str, Any]:
        """TLS and whose word counts on where requests come from, as ``uvicorn.Config`` takes them."""
        said = {"proxy_headers": bool(self._proxies), "forwarded_allow_ips": list(self._proxies)}
        if self._tls is None:
            return said
        return {**said, "ssl_certfile": str(self._tls[0]), "ssl_keyfile": str(self._tls[1])}

    @property
    def stamp(self) -> object:
        """Another object when other models are served, or others may ask."""
        if self._doorman is not None:
            epoch = self._doorman.guard.current()
            if epoch is not self._epoch:
                self._epoch, self._stamp = epoch, object()
        return self._stamp

    def find(self, head: Head) -> Handler | None:
        """The handler of a hot request."""
        if self._doorman is not None and self._doorman.leave(head):
            return None
        head.free = self._doorman is None or self._doorman.nobody(head)
        found = next((found for finder in self._finders if (found := finder(head)) is not None), None)
        if found is None or self._tracing is None:
            return found
        head.early = None  # what is refused is a span too
        return self._tracing.hot(found)

    def admit(self, head: Head) -> tuple[int, bytes, bytes] | None:
        """The refusal of a hot request; None to let it in."""
        return None if self._doorman is None else self._doorman.admit(head)

    async def start(self, grpc: socket.socket | None) -> None:
        """Answer gRPC on a listening socket."""
        if grpc is not None:
            from modelkeep.protocols.grpc_doors import serve  # processes without gRPC do without its imports

            tls = None
            if self._tls is not None:
                tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
                tls.load_cert_chain(*self._tls)
                tls.set_alpn_protocols(["h2"])
            self._grpc = await serve(self._plane, grpc, max_message=self.max_body, doorman=self._doorman, tls=tls)
            if self._tracing is not None:
                self._grpc.watch = self._tracing.call

    async def stop(self, limit: float) -> None:
        """Take no further gRPC calls; those under way have ``limit`` seconds."""
        if self._grpc is not None:
            await self._grpc.stop(limit)
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)

    def _changed(self) -> None:
        self._stamp = object()

    async def _metrics(self, request: Request) -> Response:
        return Response(await asyncio.to_thread(self._exporter.render), media_type=metrics.CONTENT_TYPE)

    async def _report(self, request: Request) -> Response:
        """What is served and what is not, and why; to who is not known, only whether anything is."""
        ready = self._plane.generation >= 0
        if self._doorman is not None and self._doorman.guard.on and LET_IN not in request.scope:
            return json_response({"ready": ready}, 200 if ready else 503)
        faults, allowed = self._plane.faults, self._plane.allowed
        known = seen(self._plane.endpoints, allowed)
        endpoints = [
            {
                "endpoint": endpoint.name,
                "model": endpoint.wanted.model,
                "generation": endpoint.wanted.generation,
                "routes": [
                    {
                        "version": way.version,
                        "mode": way.mode,
                        "weight": way.weight,
                        "runtime": way.lane.loaded.runtime,
                        "loaded": way.lane.loaded.here,
                        "loads": way.lane.loaded.loads,
                        "apart": way.lane.loaded.apart.status() if way.lane.loaded.apart else None,
                    }
                    for way in endpoint.ways
                ],
            }
            for name, endpoint in self._plane.endpoints.items()
            if name in known
        ]
        content = {
            "ready": self._plane.generation >= 0,
            "generation": self._plane.generation,
            "database": self._health.database,
            "faults": {name: faults[name] for name in seen(faults, allowed)},
            "endpoints": endpoints,
            "grpc": None if self._grpc is None else {"connections": len(self._grpc.connections)},
        }
        return json_response(content, 200 if self._plane.generation >= 0 else 503)


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, ModelkeepError)
    later = Later()
    errors.refuse(later, error)
    return await later.response()


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return json_response({"error": error.detail}, error.status_code)


async def _gone(request: Request, error: Exception) -> Response:
    """The client left before its request was whole: nobody reads this, and it is no fault of ours."""
    return json_response({"error": "the request did not come whole"}, 400)


async def _failed(request: Request, error: Exception) -> Response:
    return json_response({"error": f"this is our fault: {type(error).__name__}"}, 500)


class _Limited:
    """Refuses bodies that are too large, whether they say so or not."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if length.isdigit() and int(length) > self._limit:
            response = await _too_large(Request(scope), _TooLarge(self._limit))
            await response(scope, receive, send)
            return
        await self._app(scope, self._counting(receive), send)

    def _counting(self, receive: Receive) -> Callable[[], Awaitable[Message]]:
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._limit:
                raise _TooLarge(self._limit)
            return message

        return counted
