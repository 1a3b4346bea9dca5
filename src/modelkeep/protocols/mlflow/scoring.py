"""The door for MLflow's scoring protocol: ``/invocations``, ``/ping``, ``/health``, ``/version``.

https://mlflow.org/docs/latest/ml/deployment/deploy-model-locally/ (inference server specification). Takes
``dataframe_split``, ``dataframe_records``, ``instances``, ``inputs`` and CSV; answers ``{"predictions": ...}``,
where the predictions are labels (or values), or with ``params: {"predict_method": "predict_proba"}`` the
probabilities, or all that the model gives, as MLflow's own server would write it. The request's id comes back as
``x-modelkeep-prediction-id``; with several rows the ids are ``<id>/<row>``.
"""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any, Final
from urllib.parse import unquote

import msgspec
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from modelkeep.core.errors import Invalid, ModelkeepError, Problem
from modelkeep.formats.params import packed
from modelkeep.protocols import errors
from modelkeep.protocols.mlflow import nested, predictions, verbatim
from modelkeep.protocols.mlflow.predictions import Writer
from modelkeep.protocols.respond import Later
from modelkeep.serve.batching import Lane
from modelkeep.serve.calls import Batch, Call, CallWithParams
from modelkeep.serve.columns import Array, Inputs, Rows, shorten
from modelkeep.serve.dataplane import DataPlane
from modelkeep.serve.hot import TIMEOUT
from modelkeep.serve.http import Handler, Head, Sink, deadline

VERSION: Final = "2.9.0"
"""The version of MLflow whose scoring protocol this is."""

_FORMATS: Final = ("dataframe_split", "dataframe_records", "instances", "inputs")


class Split(Struct, gc=False):
    """A table as pandas' ``orient='split'``."""

    data: list[list[Any]]
    columns: list[str] | None = None
    index: list[Any] | None = None


class Invocation(Struct, gc=False):
    """A scoring request: exactly one of the four formats."""

    dataframe_split: Split | None = None
    dataframe_records: list[dict[str, Any]] | None = None
    instances: list[Any] | None = None
    inputs: dict[str, Any] | list[Any] | None = None
    params: dict[str, Any] | None = None
    client_request_id: str | None = None


_decode = msgspec.json.Decoder(Invocation).decode


def decode(body: bytes) -> Invocation:
    """The request in ``body``.

    Raises:
        Invalid: It is not one; the problem's path is that of the field.
    """
    try:
        found = _decode(body)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
        raise Invalid(message, path=path.rstrip("`").lstrip(".")) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Invalid(f"the body is not JSON: {error}") from None
    except RecursionError:
        raise Invalid("the body is nested too deeply") from None
    given = [name for name in _FORMATS if getattr(found, name) is not None]
    if len(given) != 1:
        raise Invalid(f"expected exactly one of {', '.join(_FORMATS)}; found {', '.join(given) or 'none'}")
    return found


def rows(inputs: Inputs, request: Invocation, *, ignore_unknown: bool = False) -> Rows:
    """The rows of a request.

    Raises:
        Invalid: Every problem found.
    """
    if inputs.shaped:
        return nested.rows(inputs, request, ignore_unknown=ignore_unknown)
    if request.dataframe_split is not None:
        split = request.dataframe_split
        return _table(inputs, split.columns, split.data, "dataframe_split.data", ignore_unknown)
    if request.dataframe_records is not None:
        return _records(inputs, request.dataframe_records, "dataframe_records", ignore_unknown)
    given = request.instances if request.instances is not None else request.inputs
    path = "instances" if request.instances is not None else "inputs"
    if isinstance(given, dict):
        columns = {name: _listed(values) for name, values in given.items()}
        return inputs.named(columns, ignore_unknown=ignore_unknown)
    assert given is not None
    if given and all(isinstance(item, dict) for item in given):
        return _records(inputs, given, path, ignore_unknown)
    if given and all(isinstance(item, list) for item in given):
        return _table(inputs, None, given, path, ignore_unknown)
    if len(inputs.names) == 1 and not any(isinstance(item, list | dict) for item in given):
        return inputs.named({inputs.names[0]: given})
    raise Invalid(f"expected a list of rows, each an object or a list of {len(inputs.names)} values", path=path)


def _listed(values: Any) -> list[Any]:
    """One column: a list of values, or of lists of one value; a single value is one row."""
    if not isinstance(values, list):
        return [values]
    if values and all(isinstance(item, list) and len(item) == 1 for item in values):
        return [item[0] for item in values]
    return values


def _table(
    inputs: Inputs, names: list[str] | None, data: list[list[Any]], path: str, ignore_unknown: bool
) -> Rows:
    """Rows as lists, in the order of ``names`` or of the signature."""
    header = inputs.names if names is None else tuple(names)
    width = len(header)
    ragged = [
        Problem(f"{path}[{row}]", f"has {len(values)} values, expected {width}")
        for row, values in enumerate(data)
        if len(values) != width
    ]
    if len(set(header)) < width:
        ragged.append(Problem("dataframe_split.columns", "some name is there twice"))
    if ragged:
        raise Invalid(ragged[:20])
    if header == inputs.names and data:
        return Rows(len(data), cells=data[0] if len(data) == 1 else list(chain.from_iterable(data)))
    columns = {name: [values[place] for values in data] for place, name in enumerate(header)}
    return inputs.named(columns, ignore_unknown=ignore_unknown)


def _records(inputs: Inputs, records: list[dict[str, Any]], path: str, ignore_unknown: bool) -> Rows:
    """Rows as objects."""
    index = inputs.index
    if len(records) == 1 and records[0].keys() == index.keys():
        record = records[0]
        return Rows(1, cells=[record[name] for name in inputs.names])
    names = set().union(*records) if records else set()
    required = [name for name in inputs.required if name in names]
    lacking = [
        Problem(f"{path}[{row}].{name}", "is missing")
        for row, record in enumerate(records)
        for name in required
        if name not in record
    ]
    if lacking:
        raise Invalid(lacking[:20])
    columns = {name: [record.get(name) for record in records] for name in sorted(names)}
    return inputs.named(columns, ignore_unknown=ignore_unknown)


def from_csv(body: bytes) -> Invocation:
    """A CSV table with a header line; empty cells are missing, numbers are numbers.

    Raises:
        Invalid: It is not UTF-8 or has no header.
    """
    try:
        lines = list(csv.reader(io.StringIO(body.decode("utf-8-sig")), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise Invalid(f"the body is not CSV in UTF-8: {error}") from None
    if not lines or not lines[0]:
        raise Invalid("the CSV has no header line")
    return Invocation(dataframe_split=Split([line for line in lines[1:] if line], lines[0]))


def _typed(inputs: Inputs, request: Invocation) -> None:
    """Give the text cells of a CSV the types of the signature; what cannot be one stays text and is refused."""
    split = request.dataframe_split
    assert split is not None
    kinds = dict(zip(inputs.names, inputs.types, strict=True))
    convert = [_CONVERT.get(kinds.get(name, "string"), _text) for name in split.columns or ()]
    for row in split.data:
        for place, (cell, make) in enumerate(zip(row, convert, strict=False)):
            row[place] = make(cell)


def _text(cell: str) -> Any:
    return cell or None


def _number(cell: str) -> Any:
    try:
        return int(cell) if cell.lstrip("+-").isdecimal() and len(cell) < 20 else float(cell)
    except ValueError:
        return cell or None


def _truth(cell: str) -> Any:
    return {"true": True, "false": False, "1": True, "0": False, "": None}.get(cell.lower(), cell)


_CONVERT: Final = {"float64": _number, "int64": _number, "bool": _truth, "timestamp": _text, "string": _text}


class _Answers:
    """The door for one ``predict_method``.

    Args:
        key: Under which a batch keeps what is made once of it.
        make: What writes rows of a batch's outputs.
    """

    def __init__(self, key: str, make: Callable[[Mapping[str, Array]], Writer]) -> None:
        self._key = key
        self._make = make

    def answer(self, call: Call, batch: Batch) -> None:
        write: Writer | None = batch.rendered.get(self._key)
        if write is None:
            write = batch.rendered[self._key] = self._make(batch.outputs)
        call.sink.write(200, write(call.start, call.start + call.rows.count), id_line(call.id))

    def refuse(self, call: Call, error: ModelkeepError) -> None:
        errors.refuse(call.sink, error)


_METHODS: Final = {
    "predict": _Answers("mlflow", predictions.answer),
    "predict_proba": _Answers("mlflow probability", predictions.probabilities),
}
_PLAINLY: Final = (_METHODS["predict"], b"")


def id_line(id: str) -> bytes:
    """The id as a header line; only characters that a header may hold."""
    safe = id if id.isascii() and id.isprintable() else id.encode("unicode_escape").decode("ascii")
    return b"x-modelkeep-prediction-id: %s\r\n" % safe.encode("ascii", "replace")


_VERBATIM: Final = verbatim.Verbatim(id_line)


class Scoring:
    """The door.

    Args:
        plane: What answers.
    """

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane

    def invoke(
        self,
        sink: Sink,
        body: bytes,
        key: str | None,
        name: str | None,
        *,
        timeout: bytes | str | None = None,
        is_csv: bool = False,
    ) -> None:
        """Queue one request for the endpoint, or for the only one; the answer is written to ``sink``.

        Args:
            timeout: Milliseconds as the header ``x-modelkeep-timeout-ms`` has them.
        """
        try:
            endpoint = self._plane.default() if name is None else self._plane.endpoint(name)
            name = endpoint.name
            until = deadline(timeout)
            endpoint.admit()
            only = endpoint.only
            if only is not None and only.inputs.signature.verbatim:
                request = Invocation()  # what it looks like is the model's business
            else:
                request = from_csv(body) if is_csv else decode(body)
            id = request.client_request_id or self._plane.new_id()
            lane = endpoint.lane(key or id)
            if lane.inputs.signature.verbatim:
                lane.submit(Call(verbatim.rows(body), id, _VERBATIM, sink, key, until))
                return
            door, params = _asked(lane, request.params) if request.params else _PLAINLY
            if is_csv:
                _typed(lane.inputs, request)
            found = rows(lane.inputs, request, ignore_unknown=lane.ignore_unknown)
            if params:
                lane.submit_with_params(CallWithParams(params, found, id, door, sink, key, until))
            else:
                lane.submit(Call(found, id, door, sink, key, until))
        except ModelkeepError as error:
            errors.refuse(sink, error if name is None else self._plane.shown(name, error))

    def find(self, head: Head) -> Handler | None:
        """The handler of ``POST /invocations`` and ``/endpoints/{name}/invocations``, if the endpoint exists."""
        if head.method != b"POST" or not head.is_json:
            return None
        target = head.target
        if target == b"/invocations":
            with contextlib.suppress(ModelkeepError):
                head.early = errors.early(self._plane.default())
            return lambda sink, body, head: self.invoke(
                sink, body, head.key, None, timeout=head.headers.get(TIMEOUT)
            )
        if (
            not target.startswith(b"/endpoints/")
            or not target.endswith(b"/invocations")
            or target.count(b"/") != 3
        ):
            return None
        name = unquote(target.split(b"/")[2].decode("latin-1"))
        try:
            head.early = errors.early(self._plane.endpoint(name))
        except ModelkeepError:
            return None
        return lambda sink, body, head: self.invoke(sink, body, head.key, name, timeout=head.headers.get(TIMEOUT))

    def routes(self) -> list[Route]:
        """ASGI routes."""
        return [
            Route("/invocations", self._invoke, methods=["POST"]),
            Route("/endpoints/{name}/invocations", self._invoke, methods=["POST"]),
            Route("/ping", self._ping),
            Route("/health", self._ping),
            Route("/version", self._version),
        ]

    async def _invoke(self, request: Request) -> Response:
        kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if kind not in ("application/json", "text/csv", ""):
            raise Invalid(f"{kind!r} is not application/json or text/csv", path="content-type")
        later = Later()
        name = request.path_params.get("name")
        key = request.headers.get("x-modelkeep-key")
        timeout = request.headers.get("x-modelkeep-timeout-ms")
        self.invoke(later, await request.body(), key, name, timeout=timeout, is_csv=kind == "text/csv")
        return await later.response()

    async def _ping(self, request: Request) -> Response:
        ready = self._plane.generation >= 0 and bool(self._plane.endpoints)
        return PlainTextResponse("\n", 200 if ready else 503)

    async def _version(self, request: Request) -> Response:
        return PlainTextResponse(VERSION)


def _asked(lane: Lane, given: dict[str, Any]) -> tuple[_Answers, bytes]:
    """How the answer to a call with params looks, and what the model is told.

    ``predict_method`` is for the model where its signature names it, and else says which output is the answer.

    Raises:
        Invalid: A param that neither the signature nor this door knows, or one of another type.
    """
    signature = lane.loaded.signature
    method: Any = "predict"
    problems: list[Problem] = []
    if "predict_method" in given and all(spec.name != "predict_method" for spec in signature.params):
        given = dict(given)
        method = given.pop("predict_method")
        if not isinstance(method, str) or method not in _METHODS:
            problem = f"{shorten(method)} is not one of {', '.join(_METHODS)}"
            problems.append(Problem("params.predict_method", problem))
        elif method == "predict_proba" and all(field.name != "probability" for field in signature.outputs):
            problems.append(Problem("params.predict_method", "this model gives no probabilities"))
    try:
        params = packed(signature.params, given, ignore_unknown=lane.ignore_unknown)
    except Invalid as error:
        problems += error.problems
    if problems:
        raise Invalid(problems[:20])
    return _METHODS[method], params
