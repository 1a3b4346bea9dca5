"""The door for Open Inference Protocol v2, REST: JSON and raw tensors.

``POST .../infer`` is a hot route; the rest are ordinary ASGI routes. A client's ``id`` becomes the request's id,
else one is made; the prediction ids are that id for one row, ``<id>/<row>`` for several.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any
from urllib.parse import unquote

import msgspec
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from modelkeep.core.errors import Invalid, ModelkeepError
from modelkeep.protocols import errors
from modelkeep.protocols.bodies import unpacked
from modelkeep.protocols.oip import about, answers, binary, codec
from modelkeep.protocols.respond import Later, json_response
from modelkeep.serve.batching import Lane
from modelkeep.serve.calls import Batch, Call
from modelkeep.serve.columns import shorten
from modelkeep.serve.dataplane import DataPlane, Endpoint
from modelkeep.serve.hot import TIMEOUT
from modelkeep.serve.http import Handler, Head, Sink, deadline

VERSION = "0.1.0"
_HEADER = binary.HEADER.lower().encode()
_UNSUPPORTED = (
    "/v2/trace/setting",
    "/v2/models/{name}/trace/setting",
    "/v2/logging",
    "/v2/systemsharedmemory/{rest:path}",
    "/v2/cudasharedmemory/{rest:path}",
)
_BARE = binary.Request([], parameters={"binary_data_output": True})


class _Some:
    """A sink with the outputs its client asked for."""

    __slots__ = ("sink", "wanted")

    def __init__(self, sink: Sink, wanted: Sequence[answers.Wish]) -> None:
        self.sink = sink
        self.wanted = wanted


class _All:
    """Answers with every output as JSON: the hot case."""

    def answer(self, call: Call, batch: Batch) -> None:
        call.sink.write(200, answers.answer(call, batch))

    def refuse(self, call: Call, error: ModelkeepError) -> None:
        errors.refuse(call.sink, error)


class _Chosen:
    """Answers with the requested outputs as they were requested."""

    def answer(self, call: Call, batch: Batch) -> None:
        body, headers, kind = answers.chosen(call, batch, call.sink.wanted)
        call.sink.sink.write(200, body, headers, kind)

    def refuse(self, call: Call, error: ModelkeepError) -> None:
        errors.refuse(call.sink.sink, error)


_ALL = _All()
_CHOSEN = _Chosen()


class OpenInference:
    """The door.

    Args:
        plane: What answers.
        max_body: Largest request body, in bytes.
    """

    def __init__(self, plane: DataPlane, max_body: int) -> None:
        self._plane = plane
        self._max_body = max_body
        self._heads = binary.Heads()

    def infer(
        self,
        sink: Sink,
        body: bytes,
        name: str,
        version: str = "",
        *,
        key: str | None = None,
        deadline: float | None = None,
        split: int | None = None,
    ) -> None:
        """Queue one inference request; the answer or the error is written to ``sink``.

        Args:
            deadline: ``time.perf_counter`` after which the answer is of no use.
            split: Length of the JSON head, the rest being raw tensors; None when all is JSON.
        """
        try:
            endpoint = self._plane.endpoint(name)
            endpoint.admit(body)
            if split is None:
                request: codec.Request | binary.Request = codec.decode(body)
                id = request.id or ""
            elif split <= len(body):
                request, id = self._heads.decode(body[:split]) if split else (_BARE, "")
            else:
                raise Invalid(f"{split} bytes are more than the body's {len(body)}", path=binary.HEADER)
            id = id or self._plane.new_id()
            lane = endpoint.lane(key or id, version)
            if isinstance(request, codec.Request):
                rows = codec.rows(lane.inputs, request.inputs, ignore_unknown=lane.ignore_unknown)
            elif split:
                rows = binary.rows(lane, request, body, split)
            else:
                rows = binary.bare(lane.inputs, body)
            _submit(lane, request, Call(rows, id, _ALL, sink, key, deadline))
        except ModelkeepError as error:
            errors.refuse(sink, self._plane.shown(name, error))

    def find(self, head: Head) -> Handler | None:
        """The handler of ``POST /v2/models/{m}[/versions/{v}]/infer``, if the endpoint exists."""
        target = head.target
        if not target.startswith(b"/v2/models/") or not target.endswith(b"/infer") or b"?" in target:
            return None
        said = head.headers.get(_HEADER)
        if head.method != b"POST" or not (head.is_json or said is not None):
            return None
        parts = [unquote(part) for part in target.decode("latin-1").split("/")[3:-1]]
        if len(parts) == 3 and parts[1] == "versions":
            name, version = parts[0], parts[2]
        elif len(parts) == 1:
            name, version = parts[0], ""
        else:
            return None
        try:
            endpoint = self._plane.endpoint(name)
            split = None if said is None else binary.head_length(said.decode("latin-1"))
        except ModelkeepError:
            return None  # the ASGI route says what is wrong

        def handle(sink: Sink, body: bytes, head: Head) -> None:
            try:
                deadline = head.deadline
            except ModelkeepError as error:
                errors.refuse(sink, error)
                return
            self.infer(sink, body, name, version, key=head.key, deadline=deadline, split=split)

        if version:
            return handle
        head.early = errors.early(endpoint)
        lane, new_id = endpoint.only, self._plane.new_id
        if split is not None or lane is None or not head.free or TIMEOUT in head.headers:
            return handle
        inputs, ignore = lane.inputs, lane.ignore_unknown

        def plain(sink: Sink, body: bytes, head: Head) -> None:
            """The usual request: JSON to whom anybody may ask, let in already, one version to answer it."""
            try:
                request = codec.decode(body)
                rows = codec.rows(inputs, request.inputs, ignore_unknown=ignore)
                call = Call(rows, request.id or new_id(), _ALL, sink, head.key)
                if request.outputs is None and request.parameters is None:
                    lane.submit(call)
                else:
                    _submit(lane, request, call)
            except ModelkeepError as error:
                errors.refuse(sink, self._plane.shown(name, error))

        return plain

    def routes(self) -> list[Route]:
        """The same and everything else as ASGI routes."""
        one, versioned = "/v2/models/{name}", "/v2/models/{name}/versions/{version}"
        found = [
            Route("/v2", self._server),
            Route("/v2/health/live", self._live),
            Route("/v2/health/ready", self._ready),
            Route("/v2/models/stats", self._stats),
            Route("/v2/repository/index", self._index, methods=["POST"]),
            Route("/v2/repository/models/{name}/load", self._load, methods=["POST"]),
            Route("/v2/repository/models/{name}/unload", self._unload, methods=["POST"]),
            *(Route(path, _unsupported, methods=["GET", "POST"]) for path in _UNSUPPORTED),
        ]
        for path in (one, versioned):
            found += [
                Route(path, self._metadata),
                Route(f"{path}/ready", self._model_ready),
                Route(f"{path}/config", self._config),
                Route(f"{path}/stats", self._stats),
                Route(f"{path}/infer", self._infer, methods=["POST"]),
            ]
        return found

    async def _infer(self, request: Request) -> Response:
        said = request.headers.get(binary.HEADER)
        later = Later()
        self.infer(
            later,
            await unpacked(request, self._max_body),
            request.path_params["name"],
            request.path_params.get("version", ""),
            key=request.headers.get("x-modelkeep-key"),
            deadline=deadline(request.headers.get("x-modelkeep-timeout-ms")),
            split=None if said is None else binary.head_length(said),
        )
        return await later.response()

    async def _server(self, request: Request) -> Response:
        return json_response({"name": "modelkeep", "version": VERSION, "extensions": about.EXTENSIONS})

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
        return json_response(metadata(*self._addressed(request)))

    async def _config(self, request: Request) -> Response:
        return json_response(about.config(*self._addressed(request)))

    def _addressed(self, request: Request) -> tuple[Endpoint, str]:
        parameters = request.path_params
        return self._plane.endpoint(parameters["name"]), parameters.get("version", "")

    async def _stats(self, request: Request) -> Response:
        parameters = request.path_params
        name, version = parameters.get("name", ""), parameters.get("version", "")
        return json_response(await asyncio.to_thread(about.statistics, self._plane, name, version))

    async def _index(self, request: Request) -> Response:
        body = await request.body()
        asked = codec.parsed(_index_decoder, body) if body else _Index()
        return json_response(about.index(self._plane, ready=asked.ready))

    async def _load(self, request: Request) -> Response:
        await asyncio.to_thread(about.load, self._plane, request.path_params["name"])
        return json_response({})

    async def _unload(self, request: Request) -> Response:
        await asyncio.to_thread(about.unload, self._plane, request.path_params["name"])
        return json_response({})


class _Index(Struct):
    """What of the repository to list."""

    ready: bool = False


_index_decoder = msgspec.json.Decoder(_Index)


async def _unsupported(request: Request) -> Response:
    """Extensions of other servers, which their clients may ask for: said plainly rather than not found."""
    return json_response({"error": f"{request.url.path} is not supported here; see the extensions at /v2"}, 501)


def _submit(lane: Lane, request: codec.Request | binary.Request, call: Call) -> None:
    """Queue a call as its request's outputs and parameters want it."""
    if request.parameters:
        call.deadline, priority = urgency(request.parameters, call.deadline)
        call.priority = priority or call.priority
    if request.outputs or request.parameters:
        if isinstance(request, codec.Request):
            wanted = answers.wishes(lane, request.outputs, request.parameters)
        else:
            wanted = binary.wishes(lane, request)
        if wanted is not None:
            call.door, call.sink = _CHOSEN, _Some(call.sink, wanted)
    lane.submit(call)


def urgency(parameters: Mapping[str, Any], deadline: float | None) -> tuple[float | None, int]:
    """Deadline and priority: the protocol's parameters ``timeout``, in microseconds, and ``priority``."""
    timeout, priority = parameters.get("timeout", 0), parameters.get("priority", 0)
    for name, value in (("timeout", timeout), ("priority", priority)):
        if type(value) is not int or value < 0:
            raise Invalid(f"{shorten(value)} is not a whole number from 0 up", path=f"parameters.{name}")
    if timeout:
        mine = perf_counter() + timeout / 1e6
        deadline = mine if deadline is None else min(deadline, mine)
    return deadline, priority


def metadata(endpoint: Endpoint, version: str = "") -> dict[str, Any]:
    """Model metadata as the protocol has it; the platform says what runs it."""
    lane = endpoint.lane("", version) if version else endpoint.lead
    signature = lane.loaded.signature
    return {
        "name": endpoint.name,
        "versions": [str(number) for number in endpoint.versions],
        "platform": f"modelkeep_{lane.loaded.runtime}",
        "inputs": [
            {"name": field.name, "datatype": codec.DATATYPE_OF[field.type], "shape": [-1, *field.shape]}
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
