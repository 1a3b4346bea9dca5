"""Renewals as durable jobs: queued with their event, worked on in their own process, taken up after a kill."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from msgspec import structs
from sqlalchemy import Connection

from modelkeep.core import machine
from modelkeep.core.errors import Conflict, Invalid
from modelkeep.lifecycle.keep import Keep
from modelkeep.registry import events, snapshots
from modelkeep.spec import engines, loading
from modelkeep.spec.declaration import Declaration
from modelkeep.store import jobs
from modelkeep.store.jobs import Job
from modelkeep.store.scheduling import Room

KIND = "renew"
LEASE = 10.0
"""Seconds of the machine's own clock after which a job whose control process vanished is taken up by the next."""
ENDING = 3.0
"""Seconds in which jobs may end what they have begun elsewhere when control is stopped."""
ATTEMPTS = 10
JOBS = "MODELKEEP_JOBS"


class Worker(Protocol):
    """A job's process."""

    def poll(self) -> int | None:
        """Its exit code; None while it works."""
        ...

    def terminate(self) -> None:
        """Ask it to end, and what it has begun on an engine."""
        ...


Start = Callable[[Job], Worker]


def ask(conn: Connection, declaration: Declaration, *, now: float, because: str) -> int:
    """Queue a renewal and write down why."""
    payload = {"declaration": loading.to_builtins(declaration), "because": because, "at": now}
    newest = snapshots.latest(conn, declaration.model)
    number = jobs.enqueue(
        conn,
        declaration.model,
        KIND,
        payload,
        time.time(),
        max_attempts=ATTEMPTS,
        priority=declaration.update.priority,
        resources=needs(declaration),
    )
    data = {"because": because, "job": number, "snapshot": newest.digest if newest else ""}
    events.append(conn, "renewal.started", declaration.model, data, now=now)
    return number


def needs(declaration: Declaration) -> dict[str, Any]:
    """What one part of a renewal needs on the machine that runs it, as its job's row says it.

    Work that is done elsewhere needs one core here; the engine counts what its parts need there. Spark without an
    address runs here; Ray without one may be part of a cluster, and counts for itself.
    """
    where, said = engines.address(declaration.engine), declaration.resources
    if where.host or where.kind not in ("local", "spark"):
        return {"cpu": 1.0}
    found: dict[str, Any] = {"cpu": said.cpu}
    if said.memory:
        found["memory"] = engines.size(said.memory)
    if said.gpu:
        found["gpu"] = said.gpu
    if where.workers is not None:
        found["workers"] = where.workers
    return found


def last_attempt(conn: Connection, model: str) -> tuple[float, str] | None:
    """When the last renewal was asked for, and the digest of the newest snapshot then; None before the first."""
    past = events.history(conn, model, kind="renewal.started", newest_first=True, limit=1)
    return (past[0].at, str(past[0].data.get("snapshot", ""))) if past else None


def succeed(conn: Connection, job: Job, result: dict[str, Any], now: float) -> None:
    """End a renewal well; its result and its event are one change, so neither can be lost without the other."""
    jobs.finish(conn, job.id, result, time.time())
    _tell(conn, job, result, now)


def give_up(conn: Connection, job: Job, reason: str, now: float) -> None:
    """End a renewal badly, for good."""
    jobs.fail(conn, job.id, reason, time.time())
    _tell(conn, job, {"failed": reason}, now)


def cancel(conn: Connection, number: int, now: float) -> Job:
    """End a renewal that nobody wants; its process is ended by whoever runs it. What it had made stays unused.

    Raises:
        Conflict: It has ended already.
        NotFound: There is no such job.
    """
    job = jobs.cancel(conn, number, time.time())
    _tell(conn, job, {"cancelled": True}, now)
    return job


def retry(conn: Connection, number: int, now: float) -> Job:
    """Put a renewal that failed or was cancelled back in line; it goes on where it stopped.

    Raises:
        Conflict: It waits, runs or is done.
        NotFound: There is no such job.
    """
    job = jobs.retry(conn, number, time.time())
    newest = snapshots.latest(conn, job.model)
    data = {"because": f"job {number} again", "job": number, "snapshot": newest.digest if newest else ""}
    events.append(conn, "renewal.started", job.model, data, now=now)
    return job


def log_of(home: Path, number: int) -> Path:
    """Where a job's process writes what it says."""
    return home / "logs" / f"job-{number}.log"


def room() -> Room:
    """How many jobs may run at once on this machine, ``MODELKEEP_JOBS``, one when unset, and on how much together.

    Raises:
        Invalid: The setting is not a number above 0.
    """
    text = os.environ.get(JOBS, "1")
    if not text.isascii() or not text.isdigit() or not 0 < int(text) <= 1000:
        raise Invalid(f"{text!r} is not a number from 1 to 1000", path=JOBS)
    return Room(int(text), *machine.here())


def waiting(conn: Connection, found: Sequence[Job], there: Room | None) -> list[Job]:
    """The same jobs; those that wait say what for.

    Args:
        there: What the one has who works on them; None when nobody does.
    """
    now = time.time()
    known = jobs.waits(conn, now, there, kind=KIND) if there else {}

    def why(job: Job) -> str:
        if there is None:
            return "modelkeep up, which does not run here"
        if job.not_before > now:
            return f"its next attempt, in {job.not_before - now:.0f} s"
        return known.get(job.id) or "nothing: it begins in a moment"

    return [structs.replace(job, waits=why(job)) if job.state == "queued" else job for job in found]


def _tell(conn: Connection, job: Job, told: dict[str, Any], now: float) -> None:
    events.append(conn, "renewal.ended", job.model, {"job": job.id, **told}, now=now)


@dataclass
class Renewals:
    """Works on queued renewals, as many at once as ``room`` says: one, for training takes every core it gets.

    Attributes:
        keep: The home.
        start: Starts a job's process.
    """

    keep: Keep
    start: Start
    owner: str = field(default_factory=lambda: f"control-{os.getpid()}-{time.time_ns()}")
    _running: dict[int, tuple[Job, Worker]] = field(default_factory=dict)

    def tend(self) -> None:
        """Start what waits and has room, keep the lease of what runs, write down what ended."""
        ending = False
        for job, worker in list(self._running.values()):
            code = worker.poll()
            if code is None:
                ending |= not self._hold(job, worker)
                continue
            del self._running[job.id]
            self.keep.db.write(lambda conn, job=job, code=code: self._ended(conn, job.id, code))  # type: ignore[misc]
        # what was told to end is waited for: its model may be the next one's
        while not ending and (claimed := self.keep.db.write(self._claim)) is not None:
            self._running[claimed.id] = (claimed, self.start(claimed))

    def busy(self) -> bool:
        """Whether a renewal runs or could run now."""
        if self._running:
            return True
        with self.keep.db.read() as conn:
            return any(job.kind == KIND and job.state in ("queued", "running") for job in jobs.listing(conn))

    def stop(self, patience: float = ENDING) -> None:
        """End what runs, which has so many seconds for that, and give it back to the queue, for the next start."""
        running, self._running = list(self._running.values()), {}
        for _, worker in running:
            worker.terminate()
        until = time.monotonic() + patience
        while time.monotonic() < until and any(worker.poll() is None for _, worker in running):
            time.sleep(0.02)
        again = "control was stopped"
        for job, _ in running:
            with contextlib.suppress(Conflict):  # it has ended just now
                self.keep.db.write(
                    lambda conn, job=job: jobs.fail(  # type: ignore[misc]
                        conn, job.id, again, time.time(), owner=self.owner, retry_after=0.0
                    )
                )

    def _hold(self, job: Job, worker: Worker) -> bool:
        """Keep the lease of what runs; False when it was told to end."""
        try:
            self.keep.db.write(lambda conn: jobs.renew(conn, job.id, self.owner, time.time(), LEASE))
        except Conflict:
            with self.keep.db.read() as conn:
                state = jobs.get(conn, job.id).state
            if state in ("done", "failed"):
                return True  # it has said how it ended, and its process is about to
            worker.terminate()  # nobody wants it any more, or another has taken it over
            return False
        return True

    def _claim(self, conn: Connection) -> Job | None:
        there, now = room(), time.time()
        for job in (*jobs.give_up_lapsed(conn, now), *jobs.give_up_never(conn, now, there, kind=KIND)):
            _tell(conn, job, {"failed": job.error}, self.keep.clock.now())
        return jobs.claim(conn, self.owner, now, LEASE, kind=KIND, room=there)

    def _ended(self, conn: Connection, number: int, code: int) -> None:
        job = jobs.get(conn, number)
        if job.state != "running":
            return
        # it could not say how it ended
        why = f"the job's process ended with code {code}"
        jobs.fail(conn, number, why, time.time(), owner=self.owner, retry_after=1.0)
        if jobs.get(conn, number).state == "failed":
            _tell(conn, job, {"failed": why}, self.keep.clock.now())
