"""Traces on their way: from MLflow's tables and JSON to the records that travel, and to the database."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection

from modelkeep.core.errors import Invalid, ModelkeepError, NotFound
from modelkeep.protocols.mlflow import traces_assessments as assessed
from modelkeep.protocols.mlflow import traces_otlp, traces_shapes
from modelkeep.protocols.mlflow.traces import SYSTEM_TAGS
from modelkeep.protocols.mlflow.transfer.records import Trace
from modelkeep.protocols.mlflow.transfer.rows import Lookup, Rows, texts
from modelkeep.registry import traces, traces_assessments, traces_spans

_STATES = frozenset({"OK", "ERROR", "IN_PROGRESS"})


def of_rows(rows: Rows, look: Lookup) -> list[Trace]:
    """Rows of MLflow's ``trace_info``."""
    ids = [row["request_id"] for row in rows]
    tags, metadata = (look(table, "request_id", ids) for table in ("trace_tags", "trace_request_metadata"))
    spans, assessments = (look(table, "trace_id", ids) for table in ("spans", "assessments"))
    linked = look("entity_associations", "source_id", ids, source_type="trace", destination_type="run")
    return [
        Trace(
            trace_id=row["request_id"],
            experiment=int(row["experiment_id"]),
            start_ms=row["timestamp_ms"],
            duration_ms=row["execution_time_ms"],
            status=row["status"] if row["status"] in _STATES else "STATE_UNSPECIFIED",
            client_request_id=row.get("client_request_id"),
            request_preview=row.get("request_preview"),
            response_preview=row.get("response_preview"),
            metadata=texts(metadata.get(row["request_id"], ())),
            tags=texts(tags.get(row["request_id"], ())),
            assessments=[_assessment(each) for each in assessments.get(row["request_id"], ())],
            spans=[msgspec.json.decode(each["content"]) for each in spans.get(row["request_id"], ())],
            runs=[each["destination_id"] for each in linked.get(row["request_id"], ())],
        )
        for row in rows
    ]


def of_answer(info: Mapping[str, Any], spans: list[dict[str, Any]]) -> Trace:
    """``TraceInfoV3`` and the spans of the trace's artifact."""
    said = info.get("execution_duration")
    return Trace(
        trace_id=info["trace_id"],
        experiment=int(info["trace_location"]["mlflow_experiment"]["experiment_id"]),
        start_ms=traces_shapes.read_timestamp(info["request_time"], "request_time"),
        duration_ms=traces_shapes.read_duration(said, "execution_duration") if said else None,
        status=info["state"] if info.get("state") in _STATES else "STATE_UNSPECIFIED",
        client_request_id=info.get("client_request_id"),
        request_preview=info.get("request_preview"),
        response_preview=info.get("response_preview"),
        metadata=dict(sorted(info.get("trace_metadata", {}).items())),
        tags=dict(sorted(info.get("tags", {}).items())),
        assessments=list(info.get("assessments", [])),
        spans=spans,
    )


def write(conn: Connection, given: Trace, target: int, now_ms: int) -> str:
    """Keep a trace in an experiment. Returns what of it was left out; empty when nothing was.

    Raises:
        Invalid: The experiment was deleted, or the id cannot be one.
    """
    told = traces.Told(
        trace_id=given.trace_id,
        experiment=target,
        start_ms=given.start_ms,
        duration_ms=given.duration_ms,
        status=given.status,
        client_request_id=given.client_request_id,
        request_preview=given.request_preview,
        response_preview=given.response_preview,
        metadata=given.metadata,
        tags={key: value for key, value in given.tags.items() if key not in SYSTEM_TAGS},
        final=True,
    )
    row = traces.tell(conn, told)
    left = ""
    read = traces_otlp.text(_request(given.spans)) if given.spans else traces_otlp.Read()
    found = [msgspec.structs.replace(each, trace_id=given.trace_id) for each in read.traces.values()]
    traces_spans.log(conn, target, found)
    if read.refused or not given.spans:
        why = read.why or "the source has none"
        left = f"{read.refused or 'all'} spans of trace {given.trace_id}: {why}"
    for said in sorted(given.assessments, key=lambda each: str(each.get("create_time", ""))):
        try:
            held = assessed.keep(msgspec.convert(said, assessed.Assessment), now_ms, given.trace_id)
            traces_assessments.put(conn, row, held)
        except (ModelkeepError, msgspec.ValidationError) as error:
            left = f"assessment {said.get('assessment_name', '')!r} of trace {given.trace_id}: {error}"
    for run in given.runs:
        try:
            traces.link_run(conn, [given.trace_id], run)
        except NotFound:
            left = f"the link of trace {given.trace_id} to run {run}, which is not there"
    return left


def _assessment(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of MLflow's ``assessments`` as ``Assessment``."""
    value = _decoded(row["value"])
    held: dict[str, Any] = {"value": value}
    kind = row["assessment_type"]
    if kind == "expectation" and isinstance(value, dict):
        held = {"serialized_value": {"serialization_format": "JSON_FORMAT", "value": row["value"]}}
    if kind == "issue":
        held = {"issue_name": str(value or "")}
    if row["error"]:
        held["error"] = _decoded(row["error"])
    found: dict[str, Any] = {
        "assessment_id": row["assessment_id"],
        "assessment_name": row["name"],
        "source": {"source_type": row["source_type"], "source_id": row["source_id"] or ""},
        "create_time": traces_shapes.timestamp(row["created_timestamp"]),
        "last_update_time": traces_shapes.timestamp(row["last_updated_timestamp"]),
        "valid": bool(row["valid"]),
        kind: held,
    }
    for name, column in (("span_id", "span_id"), ("rationale", "rationale"), ("overrides", "overrides")):
        found |= {name: row[column]} if row[column] else {}
    metadata = _decoded(row["assessment_metadata"])
    return found | ({"metadata": {k: str(v) for k, v in metadata.items()}} if isinstance(metadata, dict) else {})


def _decoded(text: str | None) -> Any:
    if text is None:
        return None
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


def _request(spans: Sequence[Mapping[str, Any]]) -> bytes:
    """Spans as MLflow keeps them, as an ``ExportTraceServiceRequest`` in JSON."""
    return msgspec.json.encode({"resourceSpans": [{"scopeSpans": [{"spans": [_span(each) for each in spans]}]}]})


def _span(given: Mapping[str, Any]) -> dict[str, Any]:
    """A span of MLflow 3 (``Span.to_dict``), or of releases before with a ``context``."""
    old = given.get("context")
    if isinstance(old, Mapping):
        status = {
            "code": f"STATUS_CODE_{given.get('status_code', 'UNSET')}",
            "message": given.get("status_message"),
        }
        given = {
            **given,
            "trace_id": old.get("trace_id"),
            "span_id": old.get("span_id"),
            "parent_span_id": given.get("parent_id"),
            "start_time_unix_nano": given.get("start_time"),
            "end_time_unix_nano": given.get("end_time"),
            "status": status,
        }
    found = {
        "traceId": hexadecimal(given.get("trace_id")),
        "spanId": hexadecimal(given.get("span_id")),
        "parentSpanId": hexadecimal(given.get("parent_span_id")),
        "name": given.get("name") or "",
        "startTimeUnixNano": str(given.get("start_time_unix_nano") or 0),
        "endTimeUnixNano": str(given.get("end_time_unix_nano") or 0),
        "attributes": _attributes(given.get("attributes") or {}),
        "events": [
            {
                "name": each.get("name") or "",
                "timeUnixNano": str(each.get("time_unix_nano", each.get("timestamp")) or 0),
                "attributes": _attributes(each.get("attributes") or {}),
            }
            for each in given.get("events") or ()
        ],
        "links": [
            {
                "traceId": hexadecimal(each.get("trace_id")),
                "spanId": hexadecimal(each.get("span_id")),
                "attributes": _attributes(each.get("attributes") or {}),
            }
            for each in given.get("links") or ()
        ],
    }
    said = given.get("status") or {}
    code = str(said.get("code") or "UNSET")
    code = code if code.startswith("STATUS_CODE_") else f"STATUS_CODE_{code}"
    return found | {"status": {"code": code, "message": said.get("message") or ""}}


def _attributes(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """As ``AnyValue``: MLflow writes each value as JSON text."""
    return [
        {"key": key, "value": _value(_decoded(value) if isinstance(value, str) else value)}
        for key, value in given.items()
    ]


def _value(given: Any) -> dict[str, Any]:
    if isinstance(given, bool):
        return {"boolValue": given}
    if isinstance(given, int):
        return {"intValue": str(given)}
    if isinstance(given, float):
        return {"doubleValue": given}
    if isinstance(given, list):
        return {"arrayValue": {"values": [_value(each) for each in given]}}
    if isinstance(given, dict):
        return {"kvlistValue": {"values": [{"key": key, "value": _value(each)} for key, each in given.items()]}}
    return {} if given is None else {"stringValue": str(given)}


def hexadecimal(given: Any) -> str:
    """An id in base64, in hexadecimal, or as the whole number that older releases wrote with ``0x``."""
    text = str(given or "")
    if text.startswith("0x"):
        digits = text[2:]
        return digits.zfill(32 if len(digits) > 16 else 16)
    if len(text) in (16, 32) and not set(text) - set("0123456789abcdef"):
        return text
    try:
        return base64.b64decode(text, validate=True).hex()
    except ValueError:
        raise Invalid(f"{text[:60]!r} is no id of a span or trace") from None
