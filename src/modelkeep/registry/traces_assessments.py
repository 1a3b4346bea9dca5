"""Assessments of traces: feedback, expectations, and issues they are part of."""

from __future__ import annotations

import math
from typing import Any

from msgspec import Struct
from sqlalchemy import Connection, Row, delete, select, update

from modelkeep.core.errors import Invalid, NotFound
from modelkeep.registry import holds, traces
from modelkeep.store.bulk import decode, encode, insert_rows
from modelkeep.store.trace_tables import trace_assessments as table

KINDS = ("feedback", "expectation", "issue")


class Assessment(Struct, frozen=True):
    """One assessment.

    Attributes:
        kind: One of ``KINDS``.
        value: What was found or is expected: any value of JSON.
        content: MLflow's ``Assessment`` in protobuf's JSON.
        session: The session it speaks of as a whole; None when it speaks of the trace.
        overrides: Id of the assessment it takes the place of.
    """

    assessment_id: str
    kind: str
    name: str
    value: Any
    content: dict[str, Any]
    session: str | None = None
    overrides: str = ""
    valid: bool = True


_COLUMNS = (
    "trace",
    "assessment_id",
    "kind",
    "name",
    "value",
    "number",
    "numeric",
    "valid",
    "session",
    "overrides",
    "content",
)
_REPLACE = "ON CONFLICT (trace, assessment_id) DO UPDATE SET " + ", ".join(
    f"{name} = excluded.{name}" for name in _COLUMNS[2:]
)


def figure(value: Any) -> tuple[float | None, bool]:
    """What a value counts as in averages, and whether it is a number: true and yes are 1, false and no 0."""
    if isinstance(value, bool):
        return float(value), False
    if isinstance(value, int | float):
        try:
            number = float(value)
        except OverflowError:
            return None, False
        return (number, True) if math.isfinite(number) else (None, False)
    if isinstance(value, str) and value.strip().lower() in ("yes", "no"):
        return float(value.strip().lower() == "yes"), False
    return None, False


def put(conn: Connection, trace: Any, said: Assessment) -> None:
    """Keep an assessment of a trace. One it overrides is valid no longer.

    Raises:
        NotFound: What it overrides is no assessment of this trace.
        Refused: The trace is under legal hold, and one that is there would change or be valid no longer.
    """
    known = (table.c.trace == trace.id, table.c.assessment_id == said.assessment_id)
    if holds.any_at_all(conn):
        kept = conn.execute(select(table.c.content).where(*known)).scalar()
        if kept != encode(said.content) and (kept is not None or said.overrides):
            holds.refuse(conn, "trace", trace.trace_id)
    if said.overrides:
        mine = (table.c.trace == trace.id, table.c.assessment_id == said.overrides)
        if not conn.execute(update(table).where(*mine).values(valid=0)).rowcount:
            raise NotFound(f"Assessment with ID '{said.overrides}' not found for trace '{trace.trace_id}'")
    number, numeric = figure(said.value)
    row = (
        trace.id,
        said.assessment_id,
        said.kind,
        said.name,
        encode(said.value),
        number,
        int(numeric),
        int(said.valid),
        said.session,
        said.overrides,
        encode(said.content),
    )
    insert_rows(conn, table, _COLUMNS, [row], _REPLACE)


def find(conn: Connection, trace_id: str, assessment_id: str) -> Row[Any]:
    """The row of an assessment. Raises ``NotFound``: no such trace, or no such assessment of it."""
    trace = traces.find(conn, trace_id)
    mine = (table.c.trace == trace.id, table.c.assessment_id == assessment_id)
    row = conn.execute(select(table).where(*mine)).first()
    if row is None:
        raise NotFound(f"Assessment with ID '{assessment_id}' not found for trace '{trace_id}'")
    return row


def change(
    conn: Connection, trace_id: str, assessment_id: str, changes: dict[str, Any], value: Any, time: str
) -> Row[Any]:
    """Change an assessment and return its row.

    Args:
        changes: New fields of its content; ``metadata`` is added to what there is.
        value: The new value when ``feedback`` or ``expectation`` is among them.
        time: Of the change, as content has it.

    Raises:
        NotFound: There is no such assessment.
        Invalid: Feedback for an expectation, or the other way round.
        Refused: The trace is under legal hold.
    """
    row = find(conn, trace_id, assessment_id)
    holds.refuse(conn, "trace", trace_id)
    for kind in ("feedback", "expectation"):
        if kind in changes and kind != row.kind:
            raise Invalid(f"Cannot update {kind} value on a {row.kind} assessment.")
    content = decode(row.content)
    metadata = {**content.get("metadata", {}), **changes.get("metadata", {})}
    content.update(changes, last_update_time=time)
    if metadata:
        content["metadata"] = metadata
    new: dict[str, Any] = {"content": encode(content), "name": content["assessment_name"]}
    if metadata.get(traces.SESSION):
        new["session"] = metadata[traces.SESSION]
    if row.kind in changes:
        number, numeric = figure(value)
        new.update(value=encode(value), number=number, numeric=int(numeric))
    conn.execute(update(table).where(table.c.id == row.id).values(**new))
    return find(conn, trace_id, assessment_id)


def remove(conn: Connection, trace_id: str, assessment_id: str) -> None:
    """Take an assessment away; one it overrode is valid again. It may be gone already. Raises ``NotFound``."""
    trace = traces.find(conn, trace_id)
    holds.refuse(conn, "trace", trace_id)
    mine = (table.c.trace == trace.id, table.c.assessment_id == assessment_id)
    overrides = conn.execute(delete(table).where(*mine).returning(table.c.overrides)).scalar()
    if overrides:
        before = (table.c.trace == trace.id, table.c.assessment_id == overrides)
        conn.execute(update(table).where(*before).values(valid=1))
