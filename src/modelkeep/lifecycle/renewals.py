"""Renewals as durable jobs: queued with their event, worked on in their own process, taken up after a kill."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from sqlalchemy import Connection

from modelkeep.core.errors import Conflict
from modelkeep.lifecycle.keep import Keep
from modelkeep.registry import events, snapshots
from modelkeep.spec import loading
from modelkeep.spec.declaration import Declaration
from modelkeep.store import jobs
from modelkeep.store.jobs import Job

KIND = "renew"
LEASE = 10.0
"""Seconds of the machine's own clock after which a job whose control process vanished is taken up by the next."""
ATTEMPTS = 10


class Worker(Protocol):
    """A job's process."""

    def poll(self) -> int | None:
        """Its exit code; None while it works."""
        ...

    def terminate(self) -> None:
        """Ask it to end."""
        ...


Start = Callable[[Job], Worker]


def ask(conn: Connection, declaration: Declaration, *, now: float, because: str) -> int:
    """Queue a renewal and write down why."""
    payload = {"declaration": loading.to_builtins(declaration), "because": because, "at": now}
    newest = snapshots.latest(conn, declaration.model)
    number = jobs.enqueue(conn, declaration.model, KIND, payload, time.time(), max_attempts=ATTEMPTS)
    data = {"because": because, "job": number, "snapshot": newest.digest if newest else ""}
    events.append(conn, "renewal.started", declaration.model, data, now=now)
    return number


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


def _tell(conn: Connection, job: Job, told: dict[str, Any], now: float) -> None:
    events.append(conn, "renewal.ended", job.model, {"job": job.id, **told}, now=now)


@dataclass
class Renewals:
    """Works on queued renewals, one at a time: training takes every core it gets.

    Attributes:
        keep: The home.
        start: Starts a job's process.
    """

    keep: Keep
    start: Start
    owner: str = field(default_factory=lambda: f"control-{os.getpid()}-{time.time_ns()}")
    _running: tuple[Job, Worker] | None = None

    def tend(self) -> None:
        """Start what waits, keep the lease of what runs, write down what ended."""
        if self._running is not None:
            job, worker = self._running
            code = worker.poll()
            if code is None:
                self._hold(job, worker)
                return
            self._running = None
            self.keep.db.write(lambda conn: self._ended(conn, job.id, code))
        claimed = self.keep.db.write(self._claim)
        if claimed is not None:
            self._running = (claimed, self.start(claimed))

    def busy(self) -> bool:
        """Whether a renewal runs or could run now."""
        if self._running is not None:
            return True
        with self.keep.db.read() as conn:
            return any(job.kind == KIND and job.state in ("queued", "running") for job in jobs.listing(conn))

    def stop(self) -> None:
        """End what runs and give it back to the queue, for the next start."""
        if self._running is None:
            return
        job, worker = self._running
        worker.terminate()
        self._running = None
        again = "control was stopped"
        with contextlib.suppress(Conflict):  # it has ended just now
            self.keep.db.write(
                lambda conn: jobs.fail(conn, job.id, again, time.time(), owner=self.owner, retry_after=0.0)
            )

    def _hold(self, job: Job, worker: Worker) -> None:
        """Keep the lease of what runs."""
        try:
            self.keep.db.write(lambda conn: jobs.renew(conn, job.id, self.owner, time.time(), LEASE))
        except Conflict:
            with self.keep.db.read() as conn:
                if jobs.get(conn, job.id).state != "running":
                    return  # it has said how it ended, and its process is about to
            worker.terminate()  # another has taken it over

    def _claim(self, conn: Connection) -> Job | None:
        for job in jobs.give_up_lapsed(conn, time.time()):
            _tell(conn, job, {"failed": job.error}, self.keep.clock.now())
        return jobs.claim(conn, self.owner, time.time(), LEASE, kind=KIND)

    def _ended(self, conn: Connection, number: int, code: int) -> None:
        job = jobs.get(conn, number)
        if job.state != "running":
            return
        # it could not say how it ended
        why = f"the job's process ended with code {code}"
        jobs.fail(conn, number, why, time.time(), owner=self.owner, retry_after=1.0)
        if jobs.get(conn, number).state == "failed":
            _tell(conn, job, {"failed": why}, self.keep.clock.now())
