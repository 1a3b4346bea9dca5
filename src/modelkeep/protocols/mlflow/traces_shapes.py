"""Traces and assessments in the forms MLflow's clients read and write: version 3, and version 2 of older ones.

Times are protobuf's ``Timestamp`` and ``Duration`` in version 3, milliseconds in version 2.
Source: protobuf.dev, "ProtoJSON Format"; MLflow's published service definitions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy import Connection

from modelkeep.core.errors import Invalid
from modelkeep.protocols.mlflow import checks, shapes
from modelkeep.registry import traces, traces_spans
from modelkeep.store.bulk import decode

_TIME = re.compile(r"(\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?([Zz]|[+-]\d\d:\d\d)\Z")
_DURATION = re.compile(r"(-?)(\d{1,12})(?:\.(\d{1,9}))?s\Z")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def timestamp(ms: int) -> str:
    """Milliseconds since 1970 as a ``Timestamp``."""
    return (_EPOCH + timedelta(milliseconds=ms)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def moment(ms: int, path: str) -> int:
    """Milliseconds since 1970 of a year from 1 to 9999. Raises ``Invalid``."""
    if not -62_135_596_800_000 <= ms < 253_402_300_800_000:
        raise checks.invalid(path, ms, "expected milliseconds since 1970, before the year 10000")
    return ms


def read_timestamp(text: str, path: str) -> int:
    """Milliseconds since 1970 of a ``Timestamp``. Raises ``Invalid``."""
    found = _TIME.match(text)
    try:
        if found:
            zone = "+00:00" if found[3] in "Zz" else found[3]
            seconds = (datetime.fromisoformat(found[1].upper() + zone) - _EPOCH).total_seconds()
            return moment(int(seconds) * 1000 + int((found[2] or "").ljust(9, "0")[:3]), path)
    except ValueError:
        pass
    raise checks.invalid(path, text, "expected a time such as 2025-01-31T12:00:00.000Z")


def duration(ms: int) -> str:
    """Milliseconds as a ``Duration``."""
    return f"{'-' if ms < 0 else ''}{abs(ms) // 1000}.{abs(ms) % 1000:03d}s"


def read_duration(text: str, path: str) -> int:
    """Milliseconds of a ``Duration``. Raises ``Invalid``."""
    found = _DURATION.match(text)
    if not found:
        raise checks.invalid(path, text, "expected a duration such as 1.500s")
    ms = int(found[2]) * 1000 + int((found[3] or "").ljust(9, "0")[:3])
    return -ms if found[1] else ms


def place(experiment: int) -> dict[str, Any]:
    """An experiment as ``TraceLocation``."""
    return {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": str(experiment)}}


def infos(conn: Connection, rows: Sequence[Any]) -> list[dict[str, Any]]:
    """``TraceInfoV3`` of rows of ``traces``."""
    held = traces.Contents(conn, rows)
    return [_info(row, held) for row in rows]


def _info(row: Any, held: traces.Contents) -> dict[str, Any]:
    info: dict[str, Any] = {
        "trace_id": row.trace_id,
        "trace_location": place(row.experiment),
        "request_time": timestamp(row.start_ms),
        "state": row.status,
        "trace_metadata": held.metadata.get(row.id, {}),
        "tags": held.tags.get(row.id, {}),
        "assessments": [assessment(content, valid) for content, valid in held.assessments.get(row.id, ())],
    }
    if row.duration_ms is not None:
        info["execution_duration"] = duration(row.duration_ms)
    for name in ("client_request_id", "request_preview", "response_preview"):
        value = getattr(row, name)
        if value is not None:
            info[name] = value
    return info


def assessment(content: str, valid: bool) -> dict[str, Any]:
    """``Assessment`` of what is kept of it."""
    said: dict[str, Any] = decode(content)
    said["valid"] = valid
    return said


def old_infos(conn: Connection, rows: Sequence[Any]) -> list[dict[str, Any]]:
    """``TraceInfo`` of version 2."""
    held = traces.Contents(conn, rows)
    return [_old_info(row, held) for row in rows]


def _old_info(row: Any, held: traces.Contents) -> dict[str, Any]:
    info = {
        "request_id": row.trace_id,
        "experiment_id": str(row.experiment),
        "timestamp_ms": row.start_ms,
        "status": "TRACE_STATUS_UNSPECIFIED" if row.status == "STATE_UNSPECIFIED" else row.status,
        "request_metadata": shapes.pairs(held.metadata.get(row.id, {}).items()),
        "tags": shapes.pairs(held.tags.get(row.id, {}).items()),
    }
    if row.duration_ms is not None:
        info["execution_time_ms"] = row.duration_ms
    return info


def whole(conn: Connection, rows: Sequence[Any], *, partial: bool = False) -> list[dict[str, Any]]:
    """``Trace`` with its spans, of rows of ``traces``; one whose spans are on their way only if ``partial``."""
    found = traces_spans.contents(conn, [row.id for row in rows])
    complete = []
    for row, info in zip(rows, infos(conn, rows), strict=True):
        spans = found.get(row.id, [])
        if partial or (spans and len(spans) >= expected(info["trace_metadata"])):
            complete.append({"trace_info": info, "spans": [msgspec.Raw(each.encode()) for each in spans]})
    return complete


def expected(metadata: Mapping[str, str]) -> int:
    """How many spans the client says the trace has; 0 when it does not."""
    try:
        said = decode(metadata.get(traces.SIZE, "{}"))
    except ValueError:
        return 0
    count = said.get("num_spans", 0) if isinstance(said, dict) else 0
    return count if isinstance(count, int) else 0


def pairs(given: Iterable[tuple[str, str]], what: str) -> dict[str, str]:
    """Tags or metadata that may be kept; values are cut where MLflow cuts them. Raises ``Invalid``."""
    found = {}
    for key, value in given:
        if not key or "\0" in key:
            raise Invalid(
                f"Invalid value {key[:100]!r} for parameter '{what}': expected a key of at least one letter"
            )
        found[key[:250]] = value[:8000].replace("\0", "\ufffd")
    return found
