"""A job process: one renewal, run apart from control so that neither can take the other down.

Run by the control process as ``python -m modelkeep.app.job HOME JOB``.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from modelkeep.app.children import TOLD_TO_END, die_with_parent, end_when_told
from modelkeep.app.settings import Settings
from modelkeep.app.wiring import connect, engines
from modelkeep.core import machine, memory
from modelkeep.core.errors import Conflict, ModelkeepError, Refused
from modelkeep.lifecycle import renewals
from modelkeep.lifecycle.apply import Applied, apply
from modelkeep.lifecycle.keep import Keep
from modelkeep.spec import loading
from modelkeep.store import jobs
from modelkeep.store.scheduling import Room

EVERY = 5.0
"""Seconds between two lines about one step."""
GRACE = 5.0
"""Seconds in which a job that is told to end may end what it has begun elsewhere."""


class Written:
    """Progress as lines of the job's log: the first and last of each step, one every few seconds between."""

    def __init__(self) -> None:
        self._name, self._told = "", 0.0

    def step(self, name: str, done: float, total: float | None = None, note: str = "") -> None:
        """One line, if it is time for one."""
        now = time.monotonic()
        if name == self._name and done != total and now - self._told < EVERY:
            return
        self._name, self._told = name, now
        count = f" {done:g}/{total:g}" if total is not None else ""
        write(f"{name}{count} {note}".rstrip())


def write(line: str) -> None:
    """One line of the log, with the time (UTC)."""
    stamp = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
    sys.stdout.write(f"{stamp} {line}\n")
    sys.stdout.flush()


def work(keep: Keep, job: jobs.Job) -> dict[str, Any]:
    """Do what the job asks for and return its result."""
    declaration = loading.from_builtins(job.payload["declaration"])
    done: Applied = apply(keep, declaration, Written(), because=job.payload["because"], actor="loop")
    return {"version": done.version, "champion": done.champion, "note": done.note}


def share(job: jobs.Job, room: Room) -> dict[str, str]:
    """What tells this process, and those it starts, which part of the machine is the job's own."""
    said = {machine.VISIBLE: ",".join(job.resources["gpus"])} if job.resources and "gpus" in job.resources else {}
    if room.jobs > 1 and memory.SETTING not in os.environ:
        said[memory.SETTING] = str(max(memory.LEAST, memory.budget() // room.jobs))
    return said


def main(arguments: list[str]) -> int:
    """Run one job to its end; its outcome is in the job's row, its exit code says whether it was a success."""
    die_with_parent(signal.SIGKILL)
    heard = end_when_told(GRACE)
    os.nice(5)  # serving on the same machine goes first
    home, number = Path(arguments[0]), int(arguments[1])
    database, blobs, base = arguments[2:5]
    room = renewals.room()
    keep = connect(Settings(home=home, database=database, blobs=blobs), Path(base))
    try:
        with keep.db.read() as conn:
            job = jobs.get(conn, number)
        keep = replace(keep, engines=engines(room.parts(job.need, (job.resources or {}).get("workers"))))
        os.environ.update(share(job, room))
        write(f"job {number}, attempt {job.attempts}: {job.model}, because {job.payload['because']}")
        try:
            told = work(keep, job)
        except Refused as error:
            told = {"refused": error.message}
        except ModelkeepError as error:
            reason = str(error)
            write(f"failed: {reason}")
            keep.db.write(lambda conn: renewals.give_up(conn, job, reason, keep.clock.now()))
            return 1
        write(f"ended: {told}")
        keep.db.write(lambda conn: renewals.succeed(conn, job, told, keep.clock.now()))
        return 0
    except KeyboardInterrupt:
        heard()
        write("told to end")
        return TOLD_TO_END
    except Conflict as error:  # cancelled while it ended
        write(str(error))
        return 1
    finally:
        keep.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
