"""The door for TensorFlow Serving over REST.

``POST /v1/models/{model}[/versions/{n}|/labels/{alias}]:predict|:classify|:regress`` are hot routes; the status of
a model and its ``/metadata`` are ordinary ones. Rows come as ``instances`` (row format) or ``inputs`` (column
format), and ``predictions`` or ``outputs`` go accordingly. The request's id comes back as
``x-modelkeep-prediction-id``; with several rows the ids are ``<id>/<row>``.

https://www.tensorflow.org/tfx/serving/api_rest
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from modelkeep.core.errors import Invalid, ModelkeepError
from modelkeep.protocols import errors
from modelkeep.protocols.bodies import unpacked
from modelkeep.protocols.mlflow.scoring import id_line
from modelkeep.protocols.respond import Later, json_response
from modelkeep.protocols.tfserving import codec, signatures
from modelkeep.serve.calls import Batch, Call
from modelkeep.serve.dataplane import DataPlane
from modelkeep.serve.http import Handler, Head, Sink, deadline

_PATH: Final = re.compile(
    r"/v1/models/([^/:]+)(?:/versions/([0-9]+)|/labels/([^/:]+))?(/metadata|:(?:predict|classify|regress))?"
)
_encode: Final = msgspec.json.Encoder().encode


class Target(NamedTuple):
    """What a path names.

    Attributes:
        verb: ``predict``, ``classify``, ``regress``, ``metadata``, or empty for the status.
    """

    name: str
    version: str
    label: str
    verb: str


def target(path: str) -> Target | None:
    """What a path (still percent-encoded) names; None for what is no path of this protocol."""
    found = _PATH.fullmatch(path)
    if found is None:
        return None
    name, version, label, rest = found.groups(default="")
    return Target(unquote(name), version, unquote(label), rest[1:])


class _Door:
    """Writes one kind of answer."""

    def __init__(self, render: Callable[[Call, Batch], bytes]) -> None:
        self._render = render

    def answer(self, call: Call, batch: Batch) -> None:
        call.sink.write(200, self._render(call, batch), id_line(call.id))

    def refuse(self, call: Call, error: ModelkeepError) -> None:
        _refuse(call.sink, error)


_DOORS: Final = {
    "instances": _Door(codec.predictions),
    "inputs": _Door(codec.outputs),
    "classify": _Door(codec.classes),
    "regress": _Door(codec.values),
}


def _refuse(sink: Sink, error: ModelkeepError) -> None:
    """``{"error": "..."}`` and nothing else, as TensorFlow Serving has it."""
    text = str(error).encode("utf-8", "replace").decode()
    sink.write(errors.status(error), _encode({"error": text}), errors.headers(error))


class TensorFlowServing:
    """The door.

    Args:
        plane: What answers.
        max_body: Largest request body, in bytes.
    """

    def __init__(self, plane: DataPlane, max_body: int) -> None:
        self._plane = plane
        self._max_body = max_body

    def infer(self, sink: Sink, body: bytes, asked: Target, key: str | None, until: float | None) -> None:
        """Queue one request; the answer or the error is written to ``sink``.

        Args:
            until: ``time.perf_counter`` after which the answer is of no use.
        """
        try:
            endpoint = signatures.endpoint(self._plane, asked.name)
            endpoint.admit()
            id = self._plane.new_id()
            lane = signatures.lane(endpoint, key or id, asked.version, asked.label)
            form = asked.verb
            if form == "predict":
                request = codec.decode_predict(body)
                signatures.check(form, request.signature_name, lane.loaded.signature)
                form = "instances" if request.inputs is None else "inputs"
                rows = codec.rows(lane, request, body)
            else:
                examples = codec.decode_examples(body)
                signatures.check(form, examples.signature_name, lane.loaded.signature)
                rows = codec.example_rows(lane, examples, body)
            lane.submit(Call(rows, id, _DOORS[form], sink, key, until))
        except ModelkeepError as error:
            _refuse(sink, self._plane.shown(asked.name, error))

    def find(self, head: Head) -> Handler | None:
        """The handler of a prediction, if the endpoint exists."""
        if head.method != b"POST" or not head.target.startswith(b"/v1/models/"):
            return None
        asked = target(head.target.decode("latin-1"))
        if asked is None or asked.verb in ("", "metadata"):
            return None
        try:
            endpoint = self._plane.endpoint(asked.name)
        except ModelkeepError:
            return None  # the ASGI route says what is wrong
        if not (asked.version or asked.label):
            head.early = errors.early(endpoint)

        def handle(sink: Sink, body: bytes, head: Head) -> None:
            try:
                until = head.deadline
            except ModelkeepError as error:
                _refuse(sink, error)
                return
            self.infer(sink, body, asked, head.key, until)

        return handle

    def routes(self) -> list[Route]:
        """The same and everything else as ASGI routes."""
        return [Route("/v1/models/{rest:path}", self._route, methods=["GET", "POST"])]

    async def _route(self, request: Request) -> Response:
        path = request.scope.get("raw_path", b"").decode("latin-1").partition("?")[0] or request.url.path
        asked = target(path)
        later = Later()
        try:
            if asked is None or (request.method == "POST") != (asked.verb not in ("", "metadata")):
                raise Invalid(f"Malformed request: {request.method} {path[:200]}")
            if request.method == "POST":
                until = deadline(request.headers.get("x-modelkeep-timeout-ms"))
                body = await unpacked(request, self._max_body)
                self.infer(later, body, asked, request.headers.get("x-modelkeep-key"), until)
            else:
                return json_response(self._status(asked) if not asked.verb else self._metadata(asked))
        except ModelkeepError as error:
            _refuse(later, error)
        return await later.response()

    def _status(self, asked: Target) -> dict[str, Any]:
        endpoint = signatures.endpoint(self._plane, asked.name)
        return {"model_version_status": signatures.statuses(endpoint, asked.version, asked.label)}

    def _metadata(self, asked: Target) -> dict[str, Any]:
        endpoint = signatures.endpoint(self._plane, asked.name)
        named = asked.version or asked.label
        lane = signatures.lane(endpoint, "", asked.version, asked.label) if named else endpoint.lead
        spec = {"name": endpoint.name, "signature_name": "", "version": str(lane.channel.version)}
        definitions = signatures.definitions(lane.loaded.signature)
        return {"model_spec": spec, "metadata": {"signature_def": {"signature_def": definitions}}}
