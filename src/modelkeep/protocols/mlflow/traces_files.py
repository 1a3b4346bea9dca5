"""Spans in the form of MLflow's ``traces.json``: what its pages and files hold, as opposed to its API."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection

from modelkeep.protocols.mlflow.traces_meaning import plain
from modelkeep.registry import traces_spans
from modelkeep.store.bulk import decode

FILE = "traces.json"
_CODES = ("STATUS_CODE_UNSET", "STATUS_CODE_OK", "STATUS_CODE_ERROR")


def whole(conn: Connection, row: Any) -> bytes | None:
    """The spans of a row of ``traces``, as far as they have come; None when the database holds none."""
    found = traces_spans.contents(conn, [row.id]).get(row.id)
    if found is None:
        return None
    return json.dumps({"spans": [span(decode(each), row.trace_id) for each in found]}).encode()


def span(content: dict[str, Any], trace_id: str) -> dict[str, Any]:
    """One span; its attributes are JSON inside strings there."""
    attributes = {
        key: json.dumps(value, ensure_ascii=False) for key, value in _plain(content["attributes"]).items()
    }
    attributes["mlflow.traceRequestId"] = json.dumps(trace_id)
    return {
        "trace_id": content["trace_id"],
        "span_id": content["span_id"],
        "parent_span_id": content.get("parent_span_id"),
        "name": content["name"],
        "start_time_unix_nano": content["start_time_unix_nano"],
        "end_time_unix_nano": content["end_time_unix_nano"] or None,
        "events": [{**event, "attributes": _plain(event["attributes"])} for event in content["events"]],
        "status": {"code": _CODES[content["status"]["code"]], "message": content["status"]["message"]},
        "attributes": attributes,
        "links": [
            {
                "trace_id": f"tr-{_hexadecimal(link['trace_id'])}",
                "span_id": _hexadecimal(link["span_id"]),
                "attributes": _plain(link["attributes"]),
            }
            for link in content["links"]
        ],
    }


def _plain(pairs: Iterable[dict[str, Any]]) -> dict[str, Any]:
    return {pair["key"]: plain(pair["value"]) for pair in pairs}


def _hexadecimal(text: str) -> str:
    return base64.b64decode(text).hex()
