"""Durable jobs: a row each, claimed by one worker at a time under a lease.

A worker that dies stops renewing; after its lease the job can be claimed again, until its attempts are used up.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct
from sqlalchemy import ColumnElement, Connection, Row, and_, func, insert, or_, select, update

from modelkeep.core.errors import Conflict, NotFound
from modelkeep.core.machine import Need
from modelkeep.store.bulk import decode, encode
from modelkeep.store.scheduling import Room, Turn, choose, devices, never, standing
from modelkeep.store.tables import jobs

State = Literal["queued", "running", "done", "failed", "cancelled"]

RECENT = 24 * 3600.0
"""Seconds that fair share looks back."""


class Job(Struct, frozen=True, kw_only=True):
    """One job as its row says.

    Attributes:
        payload: What to do, JSON types.
        attempts: How often it has been claimed, this one included.
        owner: The worker that claimed it last.
        lease_until: When another worker may take it over, seconds since 1970.
        result: What ``finish`` was given.
        error: What ``fail`` was last given.
        priority: Higher goes first.
        resources: What one part of its work needs on the machine that runs it: ``cpu`` in cores, ``memory`` in
            bytes, ``gpu``; ``workers``, the most parts at once; and ``gpus``, the names of those it was given.
        waits: What it waits for, where that was asked (``waits``).
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
    priority: int = 0
    resources: dict[str, Any] | None = None
    waits: str = ""

    @property
    def need(self) -> Need:
        """What one part of its work needs."""
        said = self.resources or {}
        return Need(float(said.get("cpu", 1)), float(said.get("memory", 0)), float(said.get("gpu", 0)))


def enqueue(
    conn: Connection,
    model: str,
    kind: str,
    payload: dict[str, Any],
    now: float,
    *,
    not_before: float | None = None,
    max_attempts: int = 3,
    priority: int = 0,
    resources: dict[str, Any] | None = None,
) -> int:
    """Add a job and return its number.

    Args:
        priority: Higher goes first.
        resources: What it needs, JSON types.
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
        "priority": priority,
        "resources": None if resources is None else encode(resources),
    }
    return int(conn.execute(insert(jobs).returning(jobs.c.id), row).scalar_one())


def claim(
    conn: Connection,
    owner: str,
    now: float,
    lease: float,
    *,
    kind: str | None = None,
    room: Room | None = None,
) -> Job | None:
    """Take the job whose turn it is of those that are due, or whose worker let its lease run out.

    Of any number of concurrent claimers exactly one gets a given job. ``scheduling.choose`` says whose turn it is.

    Args:
        owner: Who claims: any text that names one worker.
        lease: Seconds until another may take it over.
        kind: Only jobs of this kind.
        room: How many may run at once, and on how much, whoever runs them; None does not ask.
    """
    while True:
        waiting, running, there = _queue(conn, now, kind, room)
        turn = choose(waiting, running, _used(conn, now), there, now) if waiting else None
        if turn is None:
            return None
        values = {"state": "running", "owner": owner, "lease_until": now + lease, "started": now}
        if turn.gpu:
            given = list(devices(turn, running, there) or ())
            values["resources"] = encode({**(get(conn, turn.id).resources or {}), "gpus": given})
        taken = update(jobs).where(jobs.c.id == turn.id, _due(now))
        if conn.execute(taken.values(**values, attempts=jobs.c.attempts + 1)).rowcount == 1:
            return get(conn, turn.id)
        # another took it just now


def waits(conn: Connection, now: float, room: Room, *, kind: str | None = None) -> dict[int, str]:
    """What each job waits for that could be claimed, by number; nothing for those whose turn it is."""
    waiting, running, there = _queue(conn, now, kind, room)
    return {turn.id: why for turn, why in standing(waiting, running, _used(conn, now), there, now)}


def give_up_never(conn: Connection, now: float, room: Room, *, kind: str | None = None) -> list[Job]:
    """Fail the jobs that need more than there is, however long they wait; gives them as they are now."""
    waiting, _, there = _queue(conn, now, kind, room)
    hint = "ask for less, or have modelkeep up on a larger machine; then: modelkeep jobs retry"
    found = [(turn.id, why) for turn in waiting if (why := never(turn, there))]
    for number, why in found:
        fail(conn, number, f"{why}; {hint} {number}", now)
    return [get(conn, number) for number, _ in found]


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


def cancel(conn: Connection, number: int, now: float) -> Job:
    """End a job that nobody wants any more, as it was before; whoever works on it hears of it when it renews.

    Raises:
        Conflict: It has ended already.
        NotFound: There is no such job.
    """
    before = get(conn, number)
    _change(conn, number, None, {"state": "cancelled", "finished": now, "lease_until": None})
    return before


def retry(conn: Connection, number: int, now: float) -> Job:
    """Put a job that failed or was cancelled back in line, with all its attempts.

    Raises:
        Conflict: It waits, runs or is done.
        NotFound: There is no such job.
    """
    fresh = {"state": "queued", "attempts": 0, "not_before": now, "finished": None, "error": None, "owner": None}
    over = and_(jobs.c.id == number, jobs.c.state.in_(("failed", "cancelled")))
    if conn.execute(update(jobs).where(over).values(**fresh)).rowcount != 1:
        job = get(conn, number)
        raise Conflict(f"job {number} is {job.state}; only one that failed or was cancelled can be tried again")
    return get(conn, number)


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
    if owner is None:
        raise Conflict(f"job {number} is {job.state}; only one that waits or runs can be changed")
    raise Conflict(f"job {number} is {job.state} and held by {job.owner!r}; {owner!r} cannot change it")


def _used(conn: Connection, now: float) -> dict[str, float]:
    """Seconds of work of each model lately."""
    ended = func.coalesce(jobs.c.finished, now)
    spent = func.sum(ended - jobs.c.started)
    query = select(jobs.c.model, spent).where(jobs.c.started.is_not(None), ended > now - RECENT)
    return {model: float(seconds) for model, seconds in conn.execute(query.group_by(jobs.c.model))}


def _due(now: float) -> ColumnElement[bool]:
    lapsed = and_(jobs.c.state == "running", jobs.c.lease_until < now, jobs.c.attempts < jobs.c.max_attempts)
    return or_(and_(jobs.c.state == "queued", jobs.c.not_before <= now), lapsed)


def _queue(
    conn: Connection, now: float, kind: str | None, room: Room | None
) -> tuple[list[Turn], list[Turn], Room]:
    """What waits, what runs, and how much room there is: all that is asked for when nobody says."""
    of = select(jobs).order_by(jobs.c.id)
    if kind is not None:
        of = of.where(jobs.c.kind == kind)
    waiting = [_job(row) for row in conn.execute(of.where(_due(now)))]
    held = of.where(jobs.c.state == "running", jobs.c.lease_until >= now)
    running = [_job(row) for row in conn.execute(held)] if waiting else []
    there = room or Room(jobs=len(running) + 1)
    return [_turn(job, there) for job in waiting], [_turn(job, there) for job in running], there


def _turn(job: Job, room: Room) -> Turn:
    """What it keeps busy: what all parts need that it works on at once."""
    said = job.resources or {}
    busy = job.need.times(room.parts(job.need, said.get("workers")))
    return Turn(
        job.id,
        job.model,
        job.priority,
        min(busy.cpu, max(room.cores, job.need.cpu)),
        since=max(job.created, job.not_before),
        memory=busy.memory,
        gpu=busy.gpu,
        held=tuple(said.get("gpus", ())) if job.state == "running" else (),
    )


def _job(row: Row[Any]) -> Job:
    values = dict(row._mapping)
    values["payload"] = decode(values["payload"])
    for name in ("result", "resources"):
        values[name] = None if values[name] is None else decode(values[name])
    return Job(**values)
