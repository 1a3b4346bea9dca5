"""For the OpenAPI document: what is offered beside the table of operations: files, spans, what the server is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from modelkeep.protocols.mlflow import otlp
from modelkeep.protocols.mlflow.artifacts import KIND
from modelkeep.protocols.mlflow.multipart import Complete, Create
from modelkeep.protocols.mlflow.presigned import PRESIGNED, SIGNED, CreateDownload, CreateUpload
from modelkeep.protocols.openapi import Described


class InFolder(Struct, frozen=True):
    """Which folder; the root without one."""

    path: str = ""


class InRun(Struct, frozen=True):
    """Which file or folder of a run."""

    run_id: str = ""
    run_uuid: str = ""
    path: str = ""


class InModel(Struct, frozen=True):
    """Which folder of a logged model."""

    artifact_directory_path: str = ""


class InVersion(Struct, frozen=True):
    """Which file of a version of a model."""

    name: str = ""
    version: str = ""
    path: str = ""


class OfTrace(Struct, frozen=True):
    """Spans of a trace, or with a path one of its attachments."""

    request_id: str = ""
    path: str = ""


class Attribute(Struct, frozen=True):
    """A key and a value such as ``{"stringValue": "a"}``."""

    key: str
    value: dict[str, Any]


class SpanEvent(Struct, frozen=True, rename="camel"):
    """Something that happened at a moment of a span."""

    name: str = ""
    time_unix_nano: str = "0"
    attributes: list[Attribute] = []


class SpanStatus(Struct, frozen=True):
    """How a span ended."""

    code: int = 0
    message: str = ""


class Span(Struct, frozen=True, rename="camel"):
    """A span; ids are hexadecimal."""

    trace_id: str
    span_id: str
    name: str
    parent_span_id: str = ""
    kind: int = 0
    start_time_unix_nano: str = "0"
    end_time_unix_nano: str = "0"
    attributes: list[Attribute] = []
    events: list[SpanEvent] = []
    status: SpanStatus = SpanStatus()


class ScopeSpans(Struct, frozen=True):
    """Spans of one library."""

    spans: list[Span] = []


class Resource(Struct, frozen=True):
    """What sends spans."""

    attributes: list[Attribute] = []


class ResourceSpans(Struct, frozen=True, rename="camel"):
    """Spans of one sender."""

    resource: Resource = Resource()
    scope_spans: list[ScopeSpans] = []


class ExportTraces(Struct, frozen=True, rename="camel"):
    """ExportTraceServiceRequest of OpenTelemetry's protocol."""

    resource_spans: list[ResourceSpans] = []


_BYTES = KIND.decode()
_API = "/api/2.0"
_STORED = f"{_API}/mlflow-artifacts/artifacts"
_PARTS = f"{_API}/mlflow-artifacts/mpu"
_SEALED = f"{_API}/{SIGNED}{{token}}/{{file}}"


def _sends(path: str, summary: str, query: Any = None, headers: tuple[str, ...] = ("range",)) -> Described:
    return Described("GET", path, summary, query=query, gives=None, sends=_BYTES, headers=headers)


def _takes(path: str, summary: str) -> Described:
    return Described("PUT", path, summary, also=(_BYTES,))


DESCRIBED: Sequence[Described] = (
    Described("GET", _STORED, "List a folder of files.", query=InFolder),
    _sends(f"{_STORED}/{{artifact_path:path}}", "Download a file."),
    _takes(f"{_STORED}/{{artifact_path:path}}", "Upload a file."),
    Described("DELETE", f"{_STORED}/{{artifact_path:path}}", "Delete a file or folder."),
    Described("POST", f"{_PARTS}/create/{{folder:path}}", "Begin an upload in parts.", body=Create),
    _takes(f"{_PARTS}/part/{{upload_id}}/{{number}}", "Upload a part."),
    Described("POST", f"{_PARTS}/complete/{{folder:path}}", "Make the parts a file.", body=Complete),
    Described("POST", f"{_PARTS}/abort/{{folder:path}}", "Give up an upload in parts.", body=Complete),
    Described("GET", f"{_API}/{PRESIGNED}/{{artifact_path:path}}", "A URL to download a file from."),
    _sends(_SEALED, "Download the file that a presigned URL is for."),
    _takes(_SEALED, "Upload the file that a presigned URL is for."),
    *(
        Described("POST", f"{_API}/mlflow/artifacts/presigned-{way}load-url", summary, body=body)
        for way, summary, body in (
            ("down", "A URL to download a file of a run from.", CreateDownload),
            ("up", "A URL to upload a file of a run or logged model to.", CreateUpload),
        )
    ),
    Described("GET", f"{_API}/mlflow/artifacts/list", "List a folder of a run.", query=InRun),
    Described(
        "GET",
        f"{_API}/mlflow/logged-models/{{model_id}}/artifacts/directories",
        "List a folder of a logged model.",
        query=InModel,
    ),
    _sends("/get-artifact", "Download a file of a run.", InRun),
    _sends("/model-versions/get-artifact", "Download a file of a version.", InVersion),
    _sends(f"{_API}/mlflow/get-trace-artifact", "Spans of a trace as JSON, or one of its files.", OfTrace),
    Described(
        "POST",
        otlp.PATH.decode(),
        "Keep spans of OpenTelemetry's exporters; also compressed.",
        body=ExportTraces,
        also=(otlp.PROTOBUF.decode(),),
        headers=("x-mlflow-experiment-id", "x-mlflow-run-id", "content-encoding"),
    ),
    Described("GET", f"{_API}/mlflow/server-info", "What the server is."),
)
"""Paths under ``/api/2.0`` are under ``/ajax-api`` and the other versions too."""
