"""Spans of traces: kept many at once, and what they say of their trace as long as its client has not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from msgspec import Struct, field
from sqlalchemy import Connection

from modelkeep.registry import experiments, traces
from modelkeep.store.bulk import decode, encode, insert_rows, select_in
from modelkeep.store.tables import runs as runs_table
from modelkeep.store.trace_tables import trace_links, trace_metadata, trace_spans, trace_tags
from modelkeep.store.trace_tables import traces as traces_table

COSTS = ("input_cost", "output_cost", "total_cost")


class Span(Struct, frozen=True):
    """One span.

    Attributes:
        span_id: 16 hexadecimal digits; ``parent_id`` too, None for a root.
        type: MLflow's span type; None when nothing tells it.
        status: ``UNSET``, ``OK`` or ``ERROR``.
        start_ns: Nanoseconds since 1970; ``end_ns`` too, None while it goes on.
        usage: Counts of tokens.
        cost: US dollars by ``input_cost``, ``output_cost``, ``total_cost``.
        content: The span of OpenTelemetry's protocol, in protobuf's JSON.
    """

    span_id: str
    parent_id: str | None
    name: str
    type: str | None
    status: str
    start_ns: int
    end_ns: int | None
    content: str
    model: str | None = None
    provider: str | None = None
    usage: dict[str, int] | None = None
    cost: dict[str, float] | None = None


class Spans(Struct):
    """Spans of one trace that arrived together, and what they say of it.

    Attributes:
        spans: By id: the last of several counts.
        request_preview: Of the root's inputs.
        name: Of the root.
        tags: For the trace.
    """

    trace_id: str
    spans: dict[str, Span] = field(default_factory=dict)
    name: str | None = None
    status: str = "IN_PROGRESS"
    request_preview: str | None = None
    response_preview: str | None = None
    session: str | None = None
    user: str | None = None
    tags: dict[str, str] = field(default_factory=dict)


_TRACE = (
    "trace_id",
    "experiment",
    "name",
    "status",
    "start_ms",
    "duration_ms",
    "request_preview",
    "response_preview",
    "session",
)
_LATER = (  # of both ends that are known; NULL as long as none is
    "CASE WHEN excluded.duration_ms IS NULL OR traces.duration_ms IS NOT NULL"
    " AND traces.start_ms + traces.duration_ms > excluded.start_ms + excluded.duration_ms"
    " THEN traces.start_ms + traces.duration_ms ELSE excluded.start_ms + excluded.duration_ms END"
)
_EARLIER = "CASE WHEN traces.start_ms < excluded.start_ms THEN traces.start_ms ELSE excluded.start_ms END"
_MERGE = (
    "ON CONFLICT (trace_id) DO UPDATE SET name = coalesce(traces.name, excluded.name),"
    " status = CASE WHEN traces.final = 0 AND excluded.status <> 'IN_PROGRESS' OR traces.status ="
    " 'STATE_UNSPECIFIED' THEN excluded.status ELSE traces.status END,"
    f" start_ms = CASE WHEN traces.final = 1 THEN traces.start_ms ELSE {_EARLIER} END,"
    f" duration_ms = CASE WHEN traces.final = 1 THEN traces.duration_ms ELSE {_LATER} - {_EARLIER} END,"
    " request_preview = coalesce(traces.request_preview, excluded.request_preview),"
    " response_preview = coalesce(traces.response_preview, excluded.response_preview),"
    " session = coalesce(traces.session, excluded.session)"
)
_SPAN = (
    "trace",
    "span_id",
    "parent_id",
    "name",
    "type",
    "status",
    "start_ns",
    "end_ns",
    "model",
    "provider",
    *COSTS,
    "usage",
    "cost",
    "content",
)
_RENEW = "ON CONFLICT (trace, span_id) DO UPDATE SET " + ", ".join(f"{n} = excluded.{n}" for n in _SPAN[2:])


def log(conn: Connection, experiment: int, batch: Sequence[Spans], run_id: str = "") -> None:
    """Keep spans, and the traces they belong to unless those are known. A repetition changes nothing.

    Args:
        experiment: Of traces that are not known yet.
        run_id: A run to attach the traces to, if there is such a run.

    Raises:
        NotFound: There is no such experiment.
        Invalid: The experiment was deleted.
    """
    if not batch:
        return
    kept_in = experiments.find_active(conn, experiment)
    batch = sorted(batch, key=lambda each: each.trace_id)  # so that two processes lock rows in one order
    insert_rows(conn, traces_table, _TRACE, [_told(each, experiment) for each in batch], _MERGE)
    found = select_in(conn, "trace_id, id", traces_table, "trace_id", [each.trace_id for each in batch])
    numbers = dict(found)
    rows = [_row(numbers[each.trace_id], span) for each in batch for span in each.spans.values()]
    insert_rows(conn, trace_spans, _SPAN, rows, _RENEW)
    _annotate(conn, kept_in, batch, numbers)
    spent = [numbers[each.trace_id] for each in batch if _spends(each.spans.values())]
    if spent:
        _recount(conn, spent)
    if run_id:
        known = conn.execute(runs_table.select().where(runs_table.c.run_id == run_id)).first()
        rows = [(number, "run", run_id) for number in numbers.values()] if known else []
        insert_rows(conn, trace_links, ("trace", "kind", "target"), rows, "ON CONFLICT DO NOTHING")


def _told(each: Spans, experiment: int) -> tuple[Any, ...]:
    start = min(span.start_ns for span in each.spans.values()) // 1_000_000
    ends = [span.end_ns for span in each.spans.values() if span.end_ns is not None]
    duration = max(max(ends) // 1_000_000 - start, 0) if ends else None
    previews = (each.request_preview, each.response_preview)
    return (each.trace_id, experiment, each.name, each.status, start, duration, *previews, each.session)


def _row(number: int, span: Span) -> tuple[Any, ...]:
    cost = span.cost or {}
    return (
        number,
        span.span_id,
        span.parent_id,
        span.name,
        span.type,
        span.status,
        span.start_ns,
        span.end_ns,
        span.model,
        span.provider,
        *(cost.get(name) for name in COSTS),
        None if span.usage is None else encode(span.usage),
        None if span.cost is None else encode(span.cost),
        span.content,
    )


def _annotate(conn: Connection, kept_in: Any, batch: Sequence[Spans], numbers: dict[str, int]) -> None:
    """Tags and metadata that spans imply."""
    set_, unless_set, metadata = [], [], []
    for each in batch:
        number = numbers[each.trace_id]
        tags = {**each.tags, traces.SPANS_LOCATION: traces.IN_STORE}
        set_ += [(number, key, value) for key, value in tags.items()]
        unless_set.append((number, traces.ARTIFACTS, traces.location(kept_in, each.trace_id)))
        if each.name is not None:
            unless_set.append((number, traces.NAME, each.name))
        said = {traces.SESSION: each.session, traces.USER: each.user}
        metadata += [(number, key, value) for key, value in said.items() if value is not None]
    columns = ("trace", "key", "value")
    insert_rows(conn, trace_tags, columns, set_, traces.REPLACE)
    insert_rows(conn, trace_tags, columns, unless_set, traces.KEEP)
    insert_rows(conn, trace_metadata, columns, metadata, traces.KEEP)


def _spends(spans: Iterable[Span]) -> bool:
    return any(span.usage is not None or span.cost is not None for span in spans)


def _recount(conn: Connection, numbers: Sequence[int]) -> None:
    """Tokens and costs of whole traces, unless their clients have told them."""
    keys = {traces.TOKENS: "usage", traces.COST: "cost"}
    final = {number for number, final in select_in(conn, "id, final", traces_table, "id", numbers) if final}
    told = {
        (number, key)
        for number, key in select_in(conn, "trace, key", trace_metadata, "trace", final)
        if key in keys
    }
    nodes: dict[int, list[tuple[str, str | None, str | None, str | None]]] = {}
    listed = select_in(conn, "trace, span_id, parent_id, usage, cost", trace_spans, "trace", numbers)
    for number, *node in listed:
        nodes.setdefault(number, []).append(tuple(node))
    for number in numbers:
        sums = {
            traces.TOKENS: total([(span, parent, usage) for span, parent, usage, _ in nodes[number]]),
            traces.COST: total([(span, parent, cost) for span, parent, _, cost in nodes[number]]),
        }
        new = {key: encode(found) for key, found in sums.items() if found and (number, key) not in told}
        traces.put_metadata(conn, number, new)


def total(nodes: Sequence[tuple[str, str | None, str | None]]) -> dict[str, float]:
    """The sum over a tree of spans: a span's own figures stand for all below it.

    Args:
        nodes: Span id, parent's id and JSON of figures (None: it has none).
    """
    below: dict[str | None, list[tuple[str, str | None]]] = {}
    known = {span for span, _, _ in nodes}
    for span, parent, figures in nodes:
        below.setdefault(parent if parent in known else None, []).append((span, figures))
    sums: dict[str, float] = {}
    waiting = list(below.get(None, ()))
    seen: set[str] = set()  # ids that came from outside may go round in a circle
    while waiting:
        span, figures = waiting.pop()
        if span in seen:
            continue
        seen.add(span)
        if figures is None:
            waiting += below.get(span, ())
            continue
        for key, value in decode(figures).items():
            sums[key] = sums.get(key, 0) + value
    return sums


def ids(conn: Connection, numbers: Iterable[int]) -> list[tuple[int, str]]:
    """The row number of the trace and the id of each span."""
    return [(number, span) for number, span in select_in(conn, "trace, span_id", trace_spans, "trace", numbers)]


def contents(conn: Connection, numbers: Iterable[int]) -> dict[int, list[str]]:
    """Spans in protobuf's JSON by their trace's row number: roots first, then by their start."""
    found: dict[int, list[str]] = {}
    listed = select_in(conn, "trace, parent_id, start_ns, id, content", trace_spans, "trace", numbers)
    listed.sort(key=lambda row: (row[1] is not None, row[2], row[3]))
    for number, _, _, _, content in listed:
        found.setdefault(number, []).append(content)
    return found
