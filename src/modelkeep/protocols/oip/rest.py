"""The door for Open Inference Protocol v2, REST with JSON.

``POST .../infer`` is a hot route; the rest are ordinary ASGI routes. A client's ``id`` becomes the request's id,
else one is made; the prediction ids are that id for one row, ``<id>/<row>`` for several.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from modelkeep.core.errors import Invalid, ModelkeepError
from modelkeep.protocols import errors
from modelkeep.protocols.oip import codec
from modelkeep.protocols.respond import Later, json_response
from modelkeep.serve.batching import Batch, Call
from modelkeep.serve.dataplane import DataPlane, Endpoint
from modelkeep.serve.http import Handler, Head, Sink

VERSION = "0.1.0"
_BINARY = b"inference-header-content-length"


class _Some:
    """A sink with the outputs its client asked for."""

    __slots__ = ("sink", "wanted")

    def __init__(self, sink: Sink, wanted: list[codec.Requested]) -> None:
        self.sink = sink
        self.wanted = wanted


class _All:
    """Answers with every output: the hot case."""

    def answer(self, call: Call, batch: Batch) -> None:
        call.sink.write(200, codec.answer(call, batch))

    def refuse(self, call: Call, error: ModelkeepError) -> None:
        call.sink.write(errors.status(error), errors.body(error))


class _Chosen:
    """Answers with the requested outputs only."""

    def answer(self, call: Call, batch: Batch) -> None:
        call.sink.sink.write(200, codec.answer(call, batch, call.sink.wanted))

    def refuse(self, call: Call, error: ModelkeepError) -> None:
        call.sink.sink.write(errors.status(error), errors.body(error))


_ALL = _All()
_CHOSEN = _Chosen()


class OpenInference:
    """The door.

    Args:
        plane: What answers.
    """

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane

    def infer(self, sink: Sink, body: bytes, key: str | None, name: str, version: str = "") -> None:
        """Queue one inference request; the answer or the error is written to ``sink``."""
        try:
            request = codec.decode(body)
            id = request.id or self._plane.new_id()
            lane = self._plane.endpoint(name).lane(key or id, version)
            rows = codec.rows(lane.inputs, request.inputs, ignore_unknown=lane.ignore_unknown)
            if request.outputs:
                problems = codec.unknown_outputs(lane, request.outputs)
                if problems:
                    raise Invalid(problems)
                lane.submit(Call(rows, id, _CHOSEN, _Some(sink, request.outputs), key))
            else:
                lane.submit(Call(rows, id, _ALL, sink, key))
        except ModelkeepError as error:
            sink.write(errors.status(error), errors.body(error))

    def find(self, head: Head) -> Handler | None:
        """The handler of ``POST /v2/models/{m}[/versions/{v}]/infer``, if the endpoint exists."""
        target = head.target
        if not target.startswith(b"/v2/models/") or not target.endswith(b"/infer") or b"?" in target:
            return None
        if head.method != b"POST" or not head.is_json or _BINARY in head.headers:
            return None
        parts = [unquote(part) for part in target.decode("latin-1").split("/")[3:-1]]
        if len(parts) == 3 and parts[1] == "versions":
            name, version = parts[0], parts[2]
        elif len(parts) == 1:
            name, version = parts[0], ""
        else:
            return None
        try:
            self._plane.endpoint(name)
        except ModelkeepError:
            return None
        return lambda sink, body, head: self.infer(sink, body, head.key, name, version)

    def routes(self) -> list[Route]:
        """The same and everything else as ASGI routes."""
        one, versioned = "/v2/models/{name}", "/v2/models/{name}/versions/{version}"
        found = [
            Route("/v2", self._server),
            Route("/v2/health/live", self._live),
            Route("/v2/health/ready", self._ready),
        ]
        for path in (one, versioned):
            found += [
                Route(path, self._metadata),
                Route(f"{path}/ready", self._model_ready),
                Route(f"{path}/infer", self._infer, methods=["POST"]),
            ]
        return found

    async def _infer(self, request: Request) -> Response:
        if "inference-header-content-length" in request.headers:
            raise Invalid("binary tensors are not supported; send JSON", path="Inference-Header-Content-Length")
        later = Later()
        version = request.path_params.get("version", "")
        key = request.headers.get("x-modelkeep-key")
        self.infer(later, await request.body(), key, request.path_params["name"], version)
        return await later.response()

    async def _server(self, request: Request) -> Response:
        return json_response({"name": "modelkeep", "version": VERSION, "extensions": []})

    async def _live(self, request: Request) -> Response:
        return json_response({"live": True})

    async def _ready(self, request: Request) -> Response:
        ready = self._plane.generation >= 0
        return json_response({"ready": ready}, 200 if ready else 503)

    async def _model_ready(self, request: Request) -> Response:
        endpoint = self._plane.endpoint(request.path_params["name"])
        lane = endpoint.lane("", request.path_params.get("version", ""))
        return json_response({"name": endpoint.name, "version": str(lane.channel.version), "ready": True})

    async def _metadata(self, request: Request) -> Response:
        endpoint = self._plane.endpoint(request.path_params["name"])
        return json_response(metadata(endpoint, request.path_params.get("version", "")))


def metadata(endpoint: Endpoint, version: str = "") -> dict[str, Any]:
    """Model metadata as the protocol has it; the platform says what runs it."""
    lane = endpoint.lane("", version) if version else endpoint.lead
    signature = lane.loaded.signature
    return {
        "name": endpoint.name,
        "versions": [str(number) for number in endpoint.versions],
        "platform": f"modelkeep_{lane.loaded.runtime}",
        "inputs": [
            {"name": field.name, "datatype": codec.DATATYPE_OF[field.type], "shape": [-1]}
            for field in signature.inputs
        ],
        "outputs": [
            {
                "name": field.name,
                "datatype": codec.DATATYPE_OF[field.type],
                "shape": [-1, *field.shape],
            }
            for field in signature.outputs
        ],
        "parameters": {
            "model": lane.channel.model,
            "version": str(lane.channel.version),
            "mode": lane.channel.mode,
        },
    }
