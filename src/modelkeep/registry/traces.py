"""Traces: what an application did with one request. The data model is MLflow's, spans are OpenTelemetry's."""

from __future__ import annotations

import re
import secrets
from collections import namedtuple
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct
from sqlalchemy import Connection, Row, Table, delete, select, update

from modelkeep.core.errors import Invalid, NotFound
from modelkeep.registry import artifacts, experiments, holds, runs
from modelkeep.store.bulk import decode, encode, fetch, insert_rows, select_in
from modelkeep.store.trace_tables import trace_assessments, trace_links, trace_metadata, trace_tags, traces

NAME = "mlflow.traceName"
SPANS_LOCATION = "mlflow.trace.spansLocation"
IN_STORE = "TRACKING_STORE"
ARTIFACTS = artifacts.LOCATION
SESSION = "mlflow.trace.session"
USER = "mlflow.trace.user"
TOKENS = "mlflow.trace.tokenUsage"
COST = "mlflow.trace.cost"
SIZE = "mlflow.trace.sizeStats"
SOURCE_RUN = "mlflow.sourceRun"
PROMPTS = "mlflow.linkedPrompts"
TOKEN_COLUMNS = (
    "input_tokens",
    "output_tokens",
    "total_tokens",
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
)
MAX_LINKS = 100
REPLACE = "ON CONFLICT (trace, key) DO UPDATE SET value = excluded.value"
KEEP = "ON CONFLICT (trace, key) DO NOTHING"

_ID = re.compile(r"[A-Za-z0-9][\w.\-]{0,249}\Z", re.ASCII)
_PAIRS = ("trace", "key", "value")


class Told(Struct, frozen=True, kw_only=True):
    """What a client tells of a trace as a whole.

    Attributes:
        start_ms: Milliseconds since 1970.
        duration_ms: Milliseconds; None while it goes on.
        status: ``OK``, ``ERROR``, ``IN_PROGRESS`` or ``STATE_UNSPECIFIED``.
        request_preview: The beginning of the request as text; None leaves what is known.
        metadata: What never changes.
        tags: What may be changed later.
        final: Whether spans that arrive later leave its times alone.
    """

    trace_id: str
    experiment: int
    start_ms: int
    duration_ms: int | None = None
    status: str = "IN_PROGRESS"
    client_request_id: str | None = None
    request_preview: str | None = None
    response_preview: str | None = None
    metadata: Mapping[str, str] = {}
    tags: Mapping[str, str] = {}
    final: bool = False


_COLUMNS = (
    "trace_id",
    "experiment",
    "start_ms",
    "duration_ms",
    "status",
    "client_request_id",
    "request_preview",
    "response_preview",
    "final",
    "name",
    "session",
    *TOKEN_COLUMNS,
)
_MERGE = (
    "ON CONFLICT (trace_id) DO UPDATE SET experiment = excluded.experiment, start_ms = excluded.start_ms,"
    " duration_ms = excluded.duration_ms, status = excluded.status,"
    " client_request_id = excluded.client_request_id,"
    " request_preview = coalesce(excluded.request_preview, traces.request_preview),"
    " response_preview = coalesce(excluded.response_preview, traces.response_preview), final = excluded.final, "
    + ", ".join(
        f"{name} = coalesce(excluded.{name}, traces.{name})" for name in ("name", "session", *TOKEN_COLUMNS)
    )
)
_EVERY = [column.name for column in traces.columns]
_ONE = f"SELECT {', '.join(_EVERY)} FROM traces WHERE trace_id = ?"
Trace: Any = namedtuple("Trace", _EVERY)  # type: ignore[misc]
"""A row of ``traces``, as searches give them too."""


def checked_id(trace_id: str) -> str:
    """The id of a trace. Raises ``Invalid`` when it cannot be one."""
    if not _ID.match(trace_id):
        raise Invalid(
            f"Invalid trace ID {trace_id[:100]!r}: expected letters, digits, '-', '_' and '.'", path="trace_id"
        )
    return trace_id


def fresh_id() -> str:
    """32 random hexadecimal digits, as OpenTelemetry's traces have."""
    return secrets.token_hex(16)


def tell(conn: Connection, told: Told) -> Any:
    """Keep a trace, or what is new of it, and return its row. Tags and metadata are added to those known.

    Raises:
        NotFound: There is no such experiment.
        Invalid: The experiment was deleted, or the id cannot be one.
    """
    checked_id(told.trace_id)
    kept_in = experiments.find_active(conn, told.experiment)
    tokens = token_columns(told.metadata.get(TOKENS, "{}"))
    values = (
        told.trace_id,
        told.experiment,
        told.start_ms,
        told.duration_ms,
        told.status,
        told.client_request_id,
        told.request_preview,
        told.response_preview,
        int(told.final),
        told.tags.get(NAME),
        told.metadata.get(SESSION),
        *(tokens.get(name) for name in TOKEN_COLUMNS),
    )
    insert_rows(conn, traces, _COLUMNS, [values], _MERGE)
    row = find(conn, told.trace_id)
    _put(conn, trace_tags, row.id, {**told.tags, ARTIFACTS: location(kept_in, told.trace_id)})
    _put(conn, trace_metadata, row.id, told.metadata)
    return row


def location(experiment: Any, trace_id: str) -> str:
    """Where a trace's files are: spans that older clients upload, and attachments."""
    return f"{experiments.location(experiment).rstrip('/')}/traces/{trace_id}/artifacts"


def find(conn: Connection, trace_id: str) -> Any:
    """The row of a trace. Raises ``NotFound``."""
    rows = fetch(conn, _ONE, (trace_id,))
    if not rows:
        raise NotFound(f"Trace with ID '{trace_id}' not found.")
    return Trace(*rows[0])


def find_many(conn: Connection, ids: Iterable[str], within: Sequence[int] | None = None) -> list[Row[Any]]:
    """The rows of those traces that are known (in these experiments), in the order of ``ids``."""
    wanted = dict.fromkeys(ids)
    query = select(traces).where(traces.c.trace_id.in_(wanted))
    if within is not None:
        query = query.where(traces.c.experiment.in_(within))
    found = {row.trace_id: row for row in conn.execute(query)}
    return [found[trace_id] for trace_id in wanted if trace_id in found]


def end(
    conn: Connection, trace_id: str, end_ms: int, status: str, metadata: Mapping[str, str], tags: Mapping[str, str]
) -> Any:
    """End a trace that an older client began, and return its row. Raises ``NotFound``."""
    row = find(conn, trace_id)
    change = update(traces).where(traces.c.id == row.id)
    conn.execute(change.values(duration_ms=end_ms - row.start_ms, status=status, final=1))
    put_tags(conn, row.id, tags)
    put_metadata(conn, row.id, metadata)
    return find(conn, trace_id)


def _put(conn: Connection, table: Table, number: int, values: Mapping[str, str]) -> None:
    insert_rows(conn, table, _PAIRS, [(number, key, value) for key, value in values.items()], REPLACE)


def put_tags(conn: Connection, number: int, tags: Mapping[str, str]) -> None:
    """Set tags of the trace with this row number."""
    _put(conn, trace_tags, number, tags)
    if NAME in tags:
        _change(conn, number, name=tags[NAME])


def put_metadata(conn: Connection, number: int, metadata: Mapping[str, str]) -> None:
    """Set metadata of the trace with this row number, and the columns that statistics read."""
    _put(conn, trace_metadata, number, metadata)
    columns: dict[str, Any] = {}
    if SESSION in metadata:
        columns["session"] = metadata[SESSION]
    if TOKENS in metadata:
        columns.update(token_columns(metadata[TOKENS]))
    if columns:
        _change(conn, number, **columns)


def token_columns(text: str) -> dict[str, int]:
    """Token counts in the JSON of ``mlflow.trace.tokenUsage``, by column; what makes no sense is left out."""
    try:
        said = decode(text)
    except ValueError:
        return {}
    if not isinstance(said, dict):
        return {}
    return {name: int(said[name]) for name in TOKEN_COLUMNS if _count(said.get(name))}


def _count(value: Any) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) < 2**53
        and value == int(value)
    )


def _change(conn: Connection, number: int, **changes: Any) -> None:
    conn.execute(update(traces).where(traces.c.id == number).values(**changes))


def set_tag(conn: Connection, trace_id: str, key: str, value: str) -> None:
    """Set one tag. Raises ``NotFound``, ``Refused`` when the trace is held and the tag would change."""
    row = find(conn, trace_id)
    if holds.any_at_all(conn):
        kept = conn.execute(select(trace_tags.c.key, trace_tags.c.value).where(trace_tags.c.trace == row.id))
        holds.refuse_change(conn, "trace", trace_id, {key: value}, [(known, old) for known, old in kept])
    put_tags(conn, row.id, {key: value})


def delete_tag(conn: Connection, trace_id: str, key: str) -> None:
    """Take a tag away. Raises ``NotFound``: no such trace or tag; ``Refused``: it is held."""
    row = find(conn, trace_id)
    holds.refuse(conn, "trace", trace_id)
    gone = conn.execute(delete(trace_tags).where(trace_tags.c.trace == row.id, trace_tags.c.key == key))
    if not gone.rowcount:
        raise NotFound(f"No trace tag with key '{key}' for trace with ID '{trace_id}'")
    if key == NAME:
        _change(conn, row.id, name=None)


def forget(
    conn: Connection,
    experiment: int,
    *,
    ids: Sequence[str] = (),
    until_ms: int | None = None,
    most: int | None = None,
) -> int:
    """Delete traces of an experiment with all they hold, oldest first, and return how many.

    Args:
        ids: Only these; empty for all.
        until_ms: Only those that began at or before this.
        most: At most so many.

    Raises:
        Refused: One of ``ids`` is under legal hold. Without ``ids``, what is held just stays.
    """
    query = select(traces.c.id).where(traces.c.experiment == experiment)
    held = holds.any_at_all(conn)
    if ids:
        query = query.where(traces.c.trace_id.in_(ids))
        if held:
            asked = select(traces.c.trace_id).where(traces.c.id.in_(query), holds.held_trace()).limit(1)
            first = conn.execute(asked).scalar()
            if first is not None:
                raise holds.refusal(conn, "trace", first)
    elif held:
        query = query.where(~holds.held_trace())
    if until_ms is not None:
        query = query.where(traces.c.start_ms <= until_ms)
    if most is not None:
        query = query.order_by(traces.c.start_ms, traces.c.trace_id).limit(most)
    return conn.execute(delete(traces).where(traces.c.id.in_(query))).rowcount


def link_run(conn: Connection, ids: Sequence[str], run_id: str) -> None:
    """Attach traces to a run; a repetition changes nothing. Unknown traces are left out. Raises ``NotFound``."""
    runs.find(conn, run_id)
    _link(conn, [row.id for row in find_many(conn, ids)], "run", [run_id])


def link_prompts(conn: Connection, trace_id: str, prompts: Sequence[tuple[str, str]]) -> None:
    """Attach versions of prompts, as (name, version), to a trace. Raises ``NotFound``."""
    row = find(conn, trace_id)
    _link(conn, [row.id], "prompt", [f"{name}/{version}" for name, version in prompts])
    linked = select(trace_links.c.target).where(trace_links.c.trace == row.id, trace_links.c.kind == "prompt")
    split = (target.rpartition("/") for target in sorted(conn.execute(linked).scalars()))
    put_tags(conn, row.id, {PROMPTS: encode([{"name": name, "version": version} for name, _, version in split])})


def _link(conn: Connection, numbers: Iterable[int], kind: str, targets: Iterable[str]) -> None:
    rows = [(number, kind, target) for number in numbers for target in dict.fromkeys(targets)]
    insert_rows(conn, trace_links, ("trace", "kind", "target"), rows, "ON CONFLICT DO NOTHING")


class Contents:
    """What a page of traces holds, by row number.

    Attributes:
        tags: Values by key.
        metadata: Values by key.
        assessments: (MLflow's ``Assessment`` in protobuf's JSON, whether it is valid), oldest first.
    """

    def __init__(self, conn: Connection, rows: Iterable[Any]) -> None:
        ids = [row.id for row in rows]
        self.tags = _texts(select_in(conn, "trace, key, value", trace_tags, "trace", ids))
        self.metadata = _texts(select_in(conn, "trace, key, value", trace_metadata, "trace", ids))
        self.assessments: dict[int, list[tuple[str, bool]]] = {}
        found = select_in(conn, "id, trace, content, valid", trace_assessments, "trace", ids)
        for _, number, content, valid in sorted(found):
            self.assessments.setdefault(number, []).append((content, bool(valid)))


def _texts(rows: Iterable[tuple[Any, ...]]) -> dict[int, dict[str, str]]:
    found: dict[int, dict[str, str]] = {}
    for number, key, value in rows:
        found.setdefault(number, {})[key] = value
    return found
