"""Durable jobs: a row each, claimed by one worker at a time under a lease.

A worker that dies stops renewing; after its lease the job can be claimed again, until its attempts are used up.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct
from sqlalchemy import Connection, Row, and_, insert, or_, select, update

from modelkeep.core.errors import Conflict, NotFound
from modelkeep.store.bulk import decode, encode
from modelkeep.store.tables import jobs

State = Literal["queued", "running", "done", "failed"]


class Job(Struct, frozen=True, kw_only=True):
    """One job as its row says.

    Attributes:
        payload: What to do, JSON types.
        attempts: How often it has been claimed, this one included.
        owner: The worker that claimed it last.
        lease_until: When another worker may take it over, seconds since 1970.
        result: What ``finish`` was given.
        error: What ``fail`` was last given.
    """

    id: int
    model: str
    kind: str
    payload: dict[str, Any]
    state: State
    attempts: int
    max_attempts: int
    owner: str | None
    not_before: float
    lease_until: float | None
    created: float
    started: float | None
    finished: float | None
    result: dict[str, Any] | None
    error: str | None


def enqueue(
    conn: Connection,
    model: str,
    kind: str,
    payload: dict[str, Any],
    now: float,
    *,
    not_before: float | None = None,
    max_attempts: int = 3,
) -> int:
    """Add a job and return its number.

    Args:
        not_before: Earliest time it may be claimed; ``now`` when None.
        max_attempts: How often it may be claimed before it counts as failed.
    """
    row = {
        "model": model,
        "kind": kind,
        "payload": encode(payload),
        "state": "queued",
        "max_attempts": max_attempts,
        "not_before": now if not_before is None else not_before,
        "created": now,
    }
    return int(conn.execute(insert(jobs).returning(jobs.c.id), row).scalar_one())


def claim(conn: Connection, owner: str, now: float, lease: float, *, kind: str | None = None) -> Job | None:
    """Take the oldest job that is due, or whose worker let its lease run out; None when there is none.

    Of any number of concurrent claimers exactly one gets a given job.

    Args:
        owner: Who claims: any text that names one worker.
        lease: Seconds until another may take it over.
        kind: Only jobs of this kind.
    """
    lapsed = and_(jobs.c.state == "running", jobs.c.lease_until < now, jobs.c.attempts < jobs.c.max_attempts)
    due = or_(and_(jobs.c.state == "queued", jobs.c.not_before <= now), lapsed)
    query = select(jobs.c.id).where(due).order_by(jobs.c.id).limit(1).with_for_update(skip_locked=True)
    if kind is not None:
        query = query.where(jobs.c.kind == kind)
    number = conn.execute(query).scalar()
    if number is None:
        return None
    taken = (
        update(jobs)
        .where(jobs.c.id == number)
        .values(
            state="running",
            owner=owner,
            attempts=jobs.c.attempts + 1,
            lease_until=now + lease,
            started=now,
        )
    )
    conn.execute(taken)
    return get(conn, number)


def renew(conn: Connection, number: int, owner: str, now: float, lease: float) -> None:
    """Keep a claimed job for ``lease`` seconds more.

    Raises:
        Conflict: Another worker has taken it over, or it has ended: stop working on it.
    """
    _change(conn, number, owner, {"lease_until": now + lease})


def finish(conn: Connection, number: int, result: dict[str, Any], now: float, *, owner: str | None = None) -> None:
    """End a job well. Raises ``Conflict`` when ``owner`` is given and does not hold it any more."""
    _change(
        conn,
        number,
        owner,
        {"state": "done", "result": encode(result), "error": None, "finished": now, "lease_until": None},
    )


def fail(
    conn: Connection,
    number: int,
    error: str,
    now: float,
    *,
    owner: str | None = None,
    retry_after: float | None = None,
) -> None:
    """End a job badly.

    Args:
        error: What to tell the user.
        retry_after: Seconds until it may be tried again, while it has attempts left; None never tries again.

    Raises:
        Conflict: ``owner`` is given and does not hold it any more, or the job has ended already.
    """
    job = get(conn, number)
    if retry_after is not None and job.attempts < job.max_attempts:
        change = {"state": "queued", "error": error, "not_before": now + retry_after, "lease_until": None}
    else:
        change = {"state": "failed", "error": error, "finished": now, "lease_until": None}
    _change(conn, number, owner, change)


def give_up_lapsed(conn: Connection, now: float) -> list[Job]:
    """Fail the jobs whose worker let its lease run out at their last attempt; gives them as they are now."""
    worn = and_(jobs.c.state == "running", jobs.c.lease_until < now, jobs.c.attempts >= jobs.c.max_attempts)
    error = "its worker ended without a word, as often as the job may be tried"
    values = {"state": "failed", "error": error, "finished": now, "lease_until": None}
    return [_job(row) for row in conn.execute(update(jobs).where(worn).values(**values).returning(jobs))]


def get(conn: Connection, number: int) -> Job:
    """One job. Raises ``NotFound``."""
    found = conn.execute(select(jobs).where(jobs.c.id == number)).first()
    if found is None:
        raise NotFound(f"there is no job {number}")
    return _job(found)


def active(conn: Connection, model: str, kind: str | None = None) -> list[Job]:
    """Jobs of a model that are queued or running, oldest first."""
    query = select(jobs).where(jobs.c.model == model, jobs.c.state.in_(("queued", "running")))
    if kind is not None:
        query = query.where(jobs.c.kind == kind)
    return [_job(row) for row in conn.execute(query.order_by(jobs.c.id))]


def listing(conn: Connection, model: str | None = None, limit: int = 100) -> list[Job]:
    """The newest jobs first."""
    query = select(jobs).order_by(jobs.c.id.desc()).limit(limit)
    if model is not None:
        query = query.where(jobs.c.model == model)
    return [_job(row) for row in conn.execute(query)]


def _change(conn: Connection, number: int, owner: str | None, values: dict[str, Any]) -> None:
    condition = and_(jobs.c.id == number, jobs.c.state.in_(("queued", "running")))
    if owner is not None:
        condition = and_(condition, jobs.c.owner == owner, jobs.c.state == "running")
    if conn.execute(update(jobs).where(condition).values(**values)).rowcount == 1:
        return
    job = get(conn, number)
    raise Conflict(
        f"job {number} is {job.state} and held by {job.owner!r}; {owner or 'nobody'!r} cannot change it"
    )


def _job(row: Row[Any]) -> Job:
    values = dict(row._mapping)
    values["payload"] = decode(values["payload"])
    values["result"] = None if values["result"] is None else decode(values["result"])
    return Job(**values)
