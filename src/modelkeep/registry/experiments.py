"""Experiments: the folders runs are kept in. The data model is MLflow's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import Struct, field
from sqlalchemy import Connection, Row, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from modelkeep.core.errors import Conflict, Invalid, NotFound
from modelkeep.registry import holds
from modelkeep.store import tables
from modelkeep.store.bulk import insert_rows, select_in

DEFAULT = 0
"""The experiment of runs that name none."""

_REPLACE = "ON CONFLICT (experiment, key) DO UPDATE SET value = excluded.value"


class Experiment(Struct, frozen=True, kw_only=True):
    """One experiment.

    Attributes:
        artifact_location: Where its runs' artifacts are; ``mlflow-artifacts:/<id>`` unless it was made elsewhere.
        lifecycle_stage: ``active`` or ``deleted``.
        created_ms: Milliseconds since 1970.
        updated_ms: Milliseconds since 1970.
    """

    id: int
    name: str
    artifact_location: str
    lifecycle_stage: str
    created_ms: int
    updated_ms: int
    tags: dict[str, str] = field(default_factory=dict)


def location(row: Any) -> str:
    """The artifact location of a row of ``experiments``."""
    return row.artifact_location or f"mlflow-artifacts:/{row.id}"


def ensure_default(conn: Connection, now_ms: int) -> None:
    """Make experiment 0, ``Default``, unless it or one of its name is there."""
    table = tables.experiments
    known = select(table.c.id).where((table.c.id == DEFAULT) | (table.c.name == "Default"))
    if conn.execute(known).first() is None:
        row = {"id": DEFAULT, "name": "Default", "created_ms": now_ms, "updated_ms": now_ms}
        conn.execute(insert(table), row)


def create(conn: Connection, name: str, now_ms: int, artifact_location: str, tags: Mapping[str, str]) -> int:
    """Make an experiment and return its number. Raises ``Conflict``: the name is taken, if by a deleted one."""
    row = {"name": name, "artifact_location": artifact_location, "created_ms": now_ms, "updated_ms": now_ms}
    try:
        with conn.begin_nested():
            made = conn.execute(insert(tables.experiments).returning(tables.experiments.c.id), row).scalar_one()
    except IntegrityError:
        raise _taken(name) from None
    set_tags(conn, made, tags)
    return int(made)


def get(conn: Connection, number: int) -> Experiment:
    """One experiment, deleted or not. Raises ``NotFound``."""
    return load(conn, [find(conn, number)])[0]


def by_name(conn: Connection, name: str) -> Experiment:
    """One experiment, deleted or not. Raises ``NotFound``."""
    row = conn.execute(select(tables.experiments).where(tables.experiments.c.name == name)).first()
    if row is None:
        raise NotFound(f"Could not find experiment with name '{name}'")
    return load(conn, [row])[0]


def find(conn: Connection, number: int) -> Row[Any]:
    """The row of an experiment. Raises ``NotFound``."""
    row = conn.execute(select(tables.experiments).where(tables.experiments.c.id == number)).first()
    if row is None:
        raise NotFound(f"No Experiment with id={number} exists")
    return row


def find_active(conn: Connection, number: int) -> Row[Any]:
    """The row of an experiment that takes changes. Raises ``NotFound``, ``Invalid``."""
    row = find(conn, number)
    if row.lifecycle_stage != "active":
        raise Invalid(
            f"The experiment {number} must be in the 'active' state. Current state is {row.lifecycle_stage}."
        )
    return row


def rename(conn: Connection, number: int, name: str, now_ms: int) -> None:
    """Give another name. Raises ``NotFound``, ``Invalid``: it is deleted, ``Conflict``: the name is taken."""
    if find(conn, number).lifecycle_stage != "active":
        raise Invalid("Cannot rename a non-active experiment.")
    try:
        with conn.begin_nested():
            _change(conn, number, now_ms, name=name)
    except IntegrityError:
        raise _taken(name) from None


def delete_one(conn: Connection, number: int, now_ms: int) -> None:
    """Mark an experiment and its runs as deleted. Raises ``NotFound``, ``Refused`` under a legal hold."""
    row = find(conn, number)
    if row.lifecycle_stage != "active":
        raise NotFound(f"No Experiment with id={number} exists that is active")
    holds.refuse(conn, "experiment", str(number))
    _change(conn, number, now_ms, lifecycle_stage="deleted")
    _stage_of_runs(conn, number, "deleted", now_ms)


def restore(conn: Connection, number: int, now_ms: int) -> None:
    """Take a deletion back, of its runs too. Raises ``NotFound``."""
    row = find(conn, number)
    if row.lifecycle_stage != "deleted":
        raise NotFound(f"No Experiment with id={number} exists that is deleted")
    _change(conn, number, now_ms, lifecycle_stage="active")
    _stage_of_runs(conn, number, "active", None)


def set_tags(conn: Connection, number: int, tags: Mapping[str, str]) -> None:
    """Set tags; the last value of a key counts."""
    rows = [(number, key, value) for key, value in tags.items()]
    insert_rows(conn, tables.experiment_tags, ("experiment", "key", "value"), rows, _REPLACE)


def delete_tag(conn: Connection, number: int, key: str) -> None:
    """Take a tag away. Raises ``NotFound``."""
    table = tables.experiment_tags
    gone = conn.execute(delete(table).where(table.c.experiment == number, table.c.key == key))
    if not gone.rowcount:
        raise NotFound(f"No tag with name: {key} in experiment with id {number}")


def load(conn: Connection, rows: Iterable[Any]) -> list[Experiment]:
    """Experiments of rows of ``experiments``, with their tags."""
    rows = list(rows)
    tags: dict[int, dict[str, str]] = {}
    listed = select_in(
        conn, "experiment, key, value", tables.experiment_tags, "experiment", [row.id for row in rows]
    )
    for number, key, value in listed:
        tags.setdefault(number, {})[key] = value
    return [
        Experiment(
            id=row.id,
            name=row.name,
            artifact_location=location(row),
            lifecycle_stage=row.lifecycle_stage,
            created_ms=row.created_ms,
            updated_ms=row.updated_ms,
            tags=tags.get(row.id, {}),
        )
        for row in rows
    ]


def _taken(name: str) -> Conflict:
    return Conflict(f"Experiment(name={name}) already exists. Deleted experiments keep their names.")


def _change(conn: Connection, number: int, now_ms: int, **changes: Any) -> None:
    change = update(tables.experiments).where(tables.experiments.c.id == number)
    conn.execute(change.values(updated_ms=now_ms, **changes))


def _stage_of_runs(conn: Connection, number: int, stage: str, deleted_ms: int | None) -> None:
    change = update(tables.runs).where(tables.runs.c.experiment == number)
    conn.execute(change.values(lifecycle_stage=stage, deleted_ms=deleted_ms))
