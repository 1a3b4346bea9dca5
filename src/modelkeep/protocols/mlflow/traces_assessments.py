"""Operations on assessments of traces."""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec
from msgspec import Struct
from sqlalchemy import Connection

from modelkeep.core.errors import Invalid
from modelkeep.protocols.mlflow import checks
from modelkeep.protocols.mlflow import traces_shapes as shapes
from modelkeep.protocols.mlflow.wire import Operation, Work, missing
from modelkeep.registry import traces, traces_assessments

_HUMP = re.compile(r"[A-Z]")
_MASK = frozenset({"assessment_name", "expectation", "feedback", "rationale", "metadata", "valid"})
_DEEPEST = 40
_LARGEST = 10**308
_ID = re.compile(r"[\w.\-]{1,250}\Z", re.ASCII)


class Source(Struct, frozen=True):
    """Who or what assessed."""

    source_type: Literal["SOURCE_TYPE_UNSPECIFIED", "HUMAN", "LLM_JUDGE", "CODE"] = "SOURCE_TYPE_UNSPECIFIED"
    source_id: str = ""


class Fault(Struct, frozen=True, omit_defaults=True):
    """AssessmentError."""

    error_code: str = ""
    error_message: str = ""
    stack_trace: str = ""


class Feedback(Struct, frozen=True, omit_defaults=True):
    """What was found: any value of JSON, or why there is none."""

    value: Any = None
    error: Fault | None = None


class Serialized(Struct, frozen=True):
    """A value that is written as text."""

    serialization_format: str
    value: str


class Expectation(Struct, frozen=True, omit_defaults=True):
    """What is expected: any value of JSON."""

    value: Any = None
    serialized_value: Serialized | None = None


class Issue(Struct, frozen=True, omit_defaults=True):
    """A problem the trace is an example of."""

    issue_name: str = ""


class Assessment(Struct, frozen=True, omit_defaults=True):
    """Assessment."""

    assessment_name: str = ""
    assessment_id: str = ""
    trace_id: str = ""
    span_id: str = ""
    source: Source | None = None
    create_time: str = ""
    last_update_time: str = ""
    feedback: Feedback | None = None
    expectation: Expectation | None = None
    issue: Issue | None = None
    rationale: str = ""
    error: Fault | None = None
    metadata: dict[str, str] = {}
    overrides: str = ""
    valid: bool | None = None


class Create(Struct, frozen=True):
    """createAssessment; the trace is the path's."""

    trace_id: str
    assessment: Assessment


class Update(Struct, frozen=True):
    """updateAssessment."""

    trace_id: str
    assessment_id: str
    assessment: Assessment
    update_mask: Any = None


class One(Struct, frozen=True):
    """An assessment of a trace."""

    trace_id: str
    assessment_id: str


def keep(said: Assessment, now: int, trace_id: str = "") -> traces_assessments.Assessment:
    """An assessment as the registry keeps it. Raises ``Invalid``."""
    kinds = [kind for kind in traces_assessments.KINDS if getattr(said, kind) is not None]
    if len(kinds) != 1:
        raise Invalid("assessment: expected exactly one of feedback, expectation and issue")
    if not said.assessment_name:
        raise missing("assessment.assessment_name")
    checks.length("assessment.assessment_name", said.assessment_name, 250)
    made = said.assessment_id or f"a-{traces.fresh_id()}"
    if not _ID.match(made):
        raise checks.invalid("assessment.assessment_id", made)
    time = shapes.timestamp(now)
    for name in ("create_time", "last_update_time"):
        if getattr(said, name):
            shapes.read_timestamp(getattr(said, name), f"assessment.{name}")
    held = msgspec.structs.replace(
        said,
        assessment_id=made,
        trace_id=trace_id or said.trace_id,
        create_time=said.create_time or time,
        last_update_time=said.last_update_time or time,
        valid=None,
    )
    content: dict[str, Any] = msgspec.to_builtins(held)
    return traces_assessments.Assessment(
        assessment_id=made,
        kind=kinds[0],
        name=said.assessment_name,
        value=value(getattr(said, kinds[0])),
        content=_without_nul(content),
        session=said.metadata.get(traces.SESSION),
        overrides=said.overrides,
        valid=said.valid is not False,
    )


def value(held: Feedback | Expectation | Issue) -> Any:
    """What an assessment says. Raises ``Invalid``."""
    if isinstance(held, Issue):
        return held.issue_name
    found = held.value
    if isinstance(held, Expectation) and held.serialized_value is not None:
        try:
            found = msgspec.json.decode(held.serialized_value.value)
        except (msgspec.DecodeError, RecursionError):
            held = Expectation()
        if held.serialized_value is None or held.serialized_value.serialization_format != "JSON_FORMAT":
            raise Invalid("assessment.expectation.serialized_value: expected the format JSON_FORMAT and JSON")
    _readable(found, 0)
    return found


def _readable(held: Any, depth: int) -> None:
    """Clients must be able to read what is kept: as ``google.protobuf.Value``, with its limits."""
    if depth > _DEEPEST:
        raise Invalid(f"assessment: a value holds more than {_DEEPEST} values inside each other")
    if isinstance(held, dict | list):
        for inner in held.values() if isinstance(held, dict) else held:
            _readable(inner, depth + 1)
    elif isinstance(held, int) and abs(held) > _LARGEST:
        raise Invalid("assessment: a number is larger than a double can be")


def _without_nul(held: Any) -> Any:
    """No text may hold the letter NUL: PostgreSQL does not keep it."""
    if isinstance(held, str):
        return held.replace("\0", "\ufffd")
    if isinstance(held, dict):
        return {_without_nul(key): _without_nul(inner) for key, inner in held.items()}
    return [_without_nul(inner) for inner in held] if isinstance(held, list) else held


def _answer(row: Any) -> dict[str, Any]:
    return {"assessment": shapes.assessment(row.content, bool(row.valid))}


def _create(asked: Create, now: int) -> Work:
    made = keep(asked.assessment, now, asked.trace_id)

    def work(conn: Connection) -> dict[str, Any]:
        traces_assessments.put(conn, traces.find(conn, asked.trace_id), made)
        return _answer(traces_assessments.find(conn, asked.trace_id, made.assessment_id))

    return work


def _get(asked: One, _: int) -> Work:
    return lambda conn: _answer(traces_assessments.find(conn, asked.trace_id, asked.assessment_id))


def _paths(mask: Any) -> set[str]:
    """The fields of a ``FieldMask``: names in camel case between commas in protobuf's JSON."""
    listed = (
        mask.get("paths", []) if isinstance(mask, dict) else mask.split(",") if isinstance(mask, str) else None
    )
    if not listed or not isinstance(listed, list) or not all(isinstance(each, str) for each in listed):
        raise missing("update_mask")
    names = {_HUMP.sub(lambda hump: f"_{hump[0].lower()}", each.strip()) for each in listed}
    if not names <= _MASK:
        raise checks.invalid("update_mask", sorted(names - _MASK)[0], f"expected some of {sorted(_MASK)}")
    return names - {"valid"}


def _update(asked: Update, now: int) -> Work:
    names = _paths(asked.update_mask)
    if {"feedback", "expectation"} <= names:
        raise Invalid("Cannot specify both `expectation` and `feedback` parameters.")
    changes = {name: getattr(asked.assessment, name) for name in names}
    for kind in ("feedback", "expectation"):
        if kind in changes and changes[kind] is None:
            raise missing(f"assessment.{kind}")
    if "assessment_name" in changes and not changes["assessment_name"]:
        raise missing("assessment.assessment_name")
    kind = next((each for each in ("feedback", "expectation") if each in changes), "")
    new = value(changes[kind]) if kind else None
    time = shapes.timestamp(now)
    clean = _without_nul(msgspec.to_builtins(changes))
    return lambda conn: _answer(
        traces_assessments.change(conn, asked.trace_id, asked.assessment_id, clean, new, time)
    )


def _delete(asked: One, _: int) -> Work:
    return lambda conn: traces_assessments.remove(conn, asked.trace_id, asked.assessment_id)


OPERATIONS = [
    Operation("POST", "traces/{trace_id}/assessments", Create, _create, "write"),
    Operation("GET", "traces/{trace_id}/assessments/{assessment_id}", One, _get),
    Operation("PATCH", "traces/{trace_id}/assessments/{assessment_id}", Update, _update, "write"),
    Operation("DELETE", "traces/{trace_id}/assessments/{assessment_id}", One, _delete, "write"),
]
