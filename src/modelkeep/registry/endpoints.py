"""Endpoints: the wanted state that serving reads and follows."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace
from sqlalchemy import Connection, Row, delete, select

from modelkeep.registry import counters
from modelkeep.store.bulk import decode, encode, inserting
from modelkeep.store.tables import endpoints as table

_COUNTER = "endpoints"


class Route(Struct, frozen=True, kw_only=True):
    """One version behind an endpoint.

    Attributes:
        version: Its number.
        package: Digest of its package.
        weight: Share of requests, in [0, 1]; for a shadow, share of requests copied to it.
        mode: ``stable`` and ``canary`` answer; ``shadow`` is only watched.
    """

    version: int
    package: str
    weight: float
    mode: Literal["stable", "canary", "shadow"]


class Rollout(Struct, frozen=True, kw_only=True):
    """A new version on its way to all traffic.

    Attributes:
        version: Its number.
        step: Index of the current step.
        since: When that step began, seconds since 1970.
        started: When the rollout began.
    """

    version: int
    step: int
    since: float
    started: float


class Wanted(Struct, frozen=True, kw_only=True):
    """The wanted state of one endpoint.

    Attributes:
        generation: Grows with every change of any endpoint; given by ``put``.
        settings: JSON types: what serving must know beside the routes.
    """

    endpoint: str
    model: str
    generation: int = 0
    routes: tuple[Route, ...] = ()
    rollout: Rollout | None = None
    settings: dict[str, Any] = field(default_factory=dict)


def wanted(conn: Connection) -> list[Wanted]:
    """Every endpoint, by name."""
    return [_wanted(row) for row in conn.execute(select(table).order_by(table.c.endpoint))]


def get(conn: Connection, endpoint: str) -> Wanted | None:
    """One endpoint, or None."""
    found = conn.execute(select(table).where(table.c.endpoint == endpoint)).first()
    return None if found is None else _wanted(found)


def put(conn: Connection, wanted: Wanted) -> Wanted:
    """Make this the wanted state of its endpoint; returned with its new generation."""
    fresh = replace(wanted, generation=counters.raise_(conn, _COUNTER))
    row = {
        "endpoint": fresh.endpoint,
        "model": fresh.model,
        "generation": fresh.generation,
        "routes": encode(fresh.routes),
        "rollout": None if fresh.rollout is None else encode(fresh.rollout),
        "settings": encode(fresh.settings),
    }
    conn.execute(inserting(conn, table).on_conflict_do_update(index_elements=["endpoint"], set_=row), row)
    return fresh


def remove(conn: Connection, endpoint: str) -> None:
    """Take an endpoint away; no error when it is not there."""
    if conn.execute(delete(table).where(table.c.endpoint == endpoint)).rowcount:
        counters.raise_(conn, _COUNTER)


def generation(conn: Connection) -> int:
    """A number that changes with any change of any endpoint: cheap to ask again and again."""
    return counters.value(conn, _COUNTER)


def _wanted(row: Row[Any]) -> Wanted:
    return Wanted(
        endpoint=row.endpoint,
        model=row.model,
        generation=row.generation,
        routes=msgspec.json.decode(row.routes, type=tuple[Route, ...]),
        rollout=None if row.rollout is None else msgspec.json.decode(row.rollout, type=Rollout),
        settings=decode(row.settings),
    )
