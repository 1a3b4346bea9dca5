"""Windows of served traffic, and what was found in them."""

from __future__ import annotations

from typing import Any

from msgspec import Struct, field
from sqlalchemy import Connection, Row, insert, select

from modelkeep.store.bulk import decode, encode, inserting
from modelkeep.store.tables import findings as finding_table
from modelkeep.store.tables import windows as window_table


class Window(Struct, frozen=True, kw_only=True):
    """A slice of one version's served traffic, ``[start, end)`` in seconds since 1970.

    Attributes:
        mode: ``stable``, ``canary`` or ``shadow``.
        rows: Predictions captured.
        errors: Requests that failed.
        dropped: Predictions not captured.
        profile: Digest of the blob holding the window's profile; empty when there were no rows.
        latency: Milliseconds by quantile, as ``{"p50": 1.2, "p99": 4.0}``.
        metrics: Live metrics by name, as far as labels have arrived: JSON types.
        labels: How many of the predictions have a label.
        id: Number of its row; 0 until it is put.
    """

    endpoint: str
    model: str
    version: int
    start: float
    end: float
    mode: str = "stable"
    rows: int = 0
    errors: int = 0
    dropped: int = 0
    profile: str = ""
    latency: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    labels: int = 0
    id: int = 0


class Finding(Struct, frozen=True, kw_only=True):
    """Something that calls for attention.

    Attributes:
        kind: ``drift``, ``performance_drop``, ``outage``, ``schema``, ...
        at: When it was found, seconds since 1970.
        window: Number of the window it was found in, if any.
        evidence: What supports it, JSON types.
        id: Number of its row; 0 until it is added.
    """

    model: str
    endpoint: str
    version: int
    kind: str
    at: float
    window: int | None = None
    evidence: dict[str, Any] = field(default_factory=dict)
    id: int = 0


def put_window(conn: Connection, window: Window) -> int:
    """Record a window, or replace what was known of the same one; returns the number of its row."""
    row = {name: getattr(window, name) for name in Window.__struct_fields__ if name != "id"}
    row["latency"], row["metrics"] = encode(window.latency), encode(window.metrics)
    same = ["endpoint", "version", "mode", "start"]
    change = {name: value for name, value in row.items() if name not in same}
    put = inserting(conn, window_table).on_conflict_do_update(index_elements=same, set_=change)
    return int(conn.execute(put.returning(window_table.c.id), row).scalar_one())


def windows(
    conn: Connection,
    endpoint: str,
    *,
    version: int | None = None,
    mode: str | None = None,
    start: float | None = None,
    end: float | None = None,
    limit: int | None = None,
) -> list[Window]:
    """Windows of an endpoint, oldest first.

    Args:
        start: Only windows that end after this time.
        end: Only windows that start before this time.
        limit: Only so many, the newest.
    """
    query = select(window_table).where(window_table.c.endpoint == endpoint)
    if version is not None:
        query = query.where(window_table.c.version == version)
    if mode is not None:
        query = query.where(window_table.c.mode == mode)
    if start is not None:
        query = query.where(window_table.c.end > start)
    if end is not None:
        query = query.where(window_table.c.start < end)
    query = query.order_by(window_table.c.end.desc(), window_table.c.id.desc())
    rows = conn.execute(query if limit is None else query.limit(limit)).all()
    return [_window(row) for row in reversed(rows)]


def add(conn: Connection, finding: Finding) -> int:
    """Record a finding; returns the number of its row."""
    row = {name: getattr(finding, name) for name in Finding.__struct_fields__ if name != "id"}
    row["evidence"] = encode(finding.evidence)
    return int(conn.execute(insert(finding_table).returning(finding_table.c.id), row).scalar_one())


def findings(
    conn: Connection,
    model: str | None = None,
    *,
    kind: str | None = None,
    version: int | None = None,
    since: float | None = None,
    limit: int | None = None,
) -> list[Finding]:
    """Findings, newest first; ``since`` is a time in seconds, inclusive."""
    query = select(finding_table)
    if model is not None:
        query = query.where(finding_table.c.model == model)
    if kind is not None:
        query = query.where(finding_table.c.kind == kind)
    if version is not None:
        query = query.where(finding_table.c.version == version)
    if since is not None:
        query = query.where(finding_table.c.at >= since)
    query = query.order_by(finding_table.c.at.desc(), finding_table.c.id.desc())
    return [_finding(row) for row in conn.execute(query if limit is None else query.limit(limit))]


def _window(row: Row[Any]) -> Window:
    values = dict(row._mapping)
    values["latency"], values["metrics"] = decode(values["latency"]), decode(values["metrics"])
    return Window(**values)


def _finding(row: Row[Any]) -> Finding:
    values = dict(row._mapping)
    values["evidence"] = decode(values["evidence"])
    return Finding(**values)
