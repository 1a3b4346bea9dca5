"""What was served, and the truth about it as it arrives: parts of captured predictions, and labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from msgspec import Struct
from sqlalchemy import Connection, Row, and_, func, select

from modelkeep.core.errors import Invalid, Problem
from modelkeep.registry import counters
from modelkeep.store.bulk import insert_rows, inserting, select_in
from modelkeep.store.tables import captures as table
from modelkeep.store.tables import labels

_LABELS = "labels"
_LABEL_TIME = "CASE WHEN excluded.time >= labels.time THEN excluded.{0} ELSE labels.{0} END"
_LABEL_CONFLICT = "ON CONFLICT (prediction_id) DO UPDATE SET " + ", ".join(
    f"{name} = {_LABEL_TIME.format(name)}" for name in ("value", "time")
)


class Capture(Struct, frozen=True, kw_only=True):
    """One part of captured predictions: a table in the blob store.

    Attributes:
        version: The version that answered.
        mode: ``stable``, ``canary`` or ``shadow``.
        start: Time of its first prediction, seconds since 1970.
        end: Time of its last prediction.
        rows: Predictions in it.
        errors: Requests that failed in that time.
        dropped: Predictions that were not captured, because the queue was full.
        digest: Of the Parquet blob; empty when there are no rows.
        part: Name of the spool file it came from; a part taken in already is not added again.
    """

    endpoint: str
    version: int
    mode: str
    start: float
    end: float
    rows: int
    errors: int = 0
    dropped: int = 0
    digest: str = ""
    part: str | None = None


def add(conn: Connection, capture: Capture) -> bool:
    """Record a part; False when a part of this name was recorded before."""
    row = {name: getattr(capture, name) for name in Capture.__struct_fields__}
    added = inserting(conn, table).on_conflict_do_nothing(index_elements=["part"]).returning(table.c.id)
    return conn.execute(added, row).first() is not None


def between(
    conn: Connection, endpoint: str, start: float, end: float, version: int | None = None
) -> list[Capture]:
    """Parts with predictions in ``[start, end)``, oldest first."""
    overlap = and_(table.c.endpoint == endpoint, table.c.end >= start, table.c.start < end)
    query = select(table).where(overlap).order_by(table.c.start, table.c.id)
    if version is not None:
        query = query.where(table.c.version == version)
    return [_capture(row) for row in conn.execute(query)]


def span(conn: Connection, endpoint: str) -> tuple[float, float] | None:
    """Times of the first and the last captured prediction of an endpoint."""
    query = select(func.min(table.c.start), func.max(table.c.end)).where(table.c.endpoint == endpoint)
    first, last = conn.execute(query).one()
    return None if first is None else (first, last)


def total_rows(conn: Connection, endpoint: str) -> int:
    """Answered predictions captured so far; copies for shadows are not answers."""
    query = select(func.coalesce(func.sum(table.c.rows), 0))
    return int(conn.execute(query.where(table.c.endpoint == endpoint, table.c.mode != "shadow")).scalar_one())


def put_labels(conn: Connection, given: Iterable[tuple[str, str, float]]) -> int:
    """Keep labels; repeating a call changes nothing.

    Args:
        given: Prediction id, label as JSON text, and time in seconds since 1970. Of several labels of one
            prediction that of the latest time counts; at equal times the one given last.

    Returns:
        How many predictions were labelled.

    Raises:
        Invalid: An id is empty.
    """
    latest: dict[str, tuple[str, str, float]] = {}
    for label in given:
        before = latest.get(label[0])
        if before is None or label[2] >= before[2]:
            latest[label[0]] = label
    if "" in latest:
        raise Invalid([Problem("labels", "a prediction id is empty; expected the id the prediction came with")])
    ordered = [latest[name] for name in sorted(latest)]  # neighbours in the index, and no deadlocks
    insert_rows(conn, labels, ("prediction_id", "value", "time"), ordered, _LABEL_CONFLICT)
    counters.raise_(conn, _LABELS)
    return len(ordered)


def labels_for(conn: Connection, ids: Sequence[str]) -> dict[str, str]:
    """Labels as JSON text by prediction id, for those of ``ids`` that have one."""
    return {row[0]: row[1] for row in select_in(conn, "prediction_id, value", labels, "prediction_id", ids)}


def labels_between(conn: Connection, start: float, end: float) -> list[tuple[str, str, float]]:
    """Labels with a time in ``[start, end)``, oldest first."""
    query = select(labels).where(labels.c.time >= start, labels.c.time < end).order_by(labels.c.time)
    return [(row.prediction_id, row.value, row.time) for row in conn.execute(query)]


def label_count(conn: Connection) -> int:
    """How many predictions have a label."""
    return int(conn.execute(select(func.count()).select_from(labels)).scalar_one())


def label_generation(conn: Connection) -> int:
    """A number that changes whenever labels are put."""
    return counters.value(conn, _LABELS)


def _capture(row: Row[Any]) -> Capture:
    return Capture(**{name: getattr(row, name) for name in Capture.__struct_fields__})
