"""Labels as they are posted: one, many, or a Parquet file."""

from __future__ import annotations

import io
import math

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from msgspec import Struct

from modelkeep.core.errors import Invalid, Problem

PARQUET = "application/vnd.apache.parquet"

Value = bool | int | float | str


class Label(Struct, frozen=True, forbid_unknown_fields=True):
    """The truth about one prediction.

    Attributes:
        prediction_id: The answer's ``id``; for a request of several rows ``<id>/<row>``, rows from 0.
        label: What turned out to be true.
        time: When it became known, seconds since 1970; when it is posted if not given.
    """

    prediction_id: str
    label: Value
    time: float | None = None


class Posted(Struct, frozen=True, forbid_unknown_fields=True):
    """One label, or many under ``labels``.

    Attributes:
        prediction_id: As in ``Label``.
        label: As in ``Label``.
        time: As in ``Label``.
        labels: Many at once, instead.
    """

    prediction_id: str = ""
    label: Value | None = None
    time: float | None = None
    labels: tuple[Label, ...] | None = None


class Taken(Struct, frozen=True):
    """How many labels were new or changed, durably."""

    taken: int


Row = tuple[str, str, float]


def rows(body: Posted | bytes, now: float) -> list[Row]:
    """What was posted as rows of (prediction id, JSON value, time).

    Raises:
        Invalid: Naming each faulty label.
    """
    if isinstance(body, bytes):
        return _from_parquet(body, now)
    if body.labels is None:
        if body.label is None:
            raise Invalid("is missing; expected one label, or many under 'labels'", path="label")
        given: tuple[Label, ...] = (Label(body.prediction_id, body.label, body.time),)
    elif body.prediction_id or body.label is not None:
        raise Invalid(
            "holds many labels, but there is one beside it as well; expected one or the other", path="labels"
        )
    else:
        given = body.labels
    problems = [
        Problem(
            f"labels[{index}].prediction_id" if body.labels is not None else "prediction_id",
            "is empty; expected the id of a prediction",
        )
        for index, label in enumerate(given)
        if not label.prediction_id
    ]
    if problems:
        raise Invalid(problems)
    return [_row(label.prediction_id, label.label, label.time, now) for label in given]


def _row(prediction_id: str, value: Value, time: float | None, now: float) -> Row:
    return prediction_id, msgspec.json.encode(value).decode(), now if time is None else float(time)


def _from_parquet(body: bytes, now: float) -> list[Row]:
    try:
        table = pq.read_table(io.BytesIO(body))
    except (pa.ArrowInvalid, OSError) as error:
        raise Invalid(f"the body is not a Parquet file: {error}") from None
    missing = [name for name in ("prediction_id", "label") if name not in table.column_names]
    if missing:
        raise Invalid(f"no column {missing[0]!r}; the file has {', '.join(table.column_names) or 'none'}")
    ids = table.column("prediction_id").to_pylist()
    values = table.column("label").to_pylist()
    times = _times(table) or [None] * len(ids)
    problems = [
        Problem(f"rows[{index}]", "prediction_id and label must not be missing, and a number must be finite")
        for index, (name, value) in enumerate(zip(ids, values, strict=True))
        if not isinstance(name, str) or not name or not isinstance(value, bool | int | float | str) or _lost(value)
    ]
    if problems:
        raise Invalid(problems[:20])
    return [_row(name, value, time, now) for name, value, time in zip(ids, values, times, strict=True)]


def _times(table: pa.Table) -> list[float | None]:
    """The column ``time``, numbers or timestamps, as seconds since 1970; empty when there is none."""
    if "time" not in table.column_names:
        return []
    column = table.column("time")
    try:
        if pa.types.is_timestamp(column.type):
            column = pc.divide(
                column.cast(pa.timestamp("us"), safe=False).cast(pa.int64()).cast(pa.float64()), 1e6
            )
        found: list[float | None] = column.cast(pa.float64()).to_pylist()
    except pa.ArrowException as error:
        raise Invalid(f"expected seconds since 1970 or timestamps: {error}", path="time") from None
    return found


def _lost(value: object) -> bool:
    """Whether JSON could not hold the number."""
    return isinstance(value, float) and not math.isfinite(value)
