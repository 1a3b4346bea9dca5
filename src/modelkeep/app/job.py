"""A job process: one renewal, run apart from control so that neither can take the other down.

Run by the control process as ``python -m modelkeep.app.job HOME JOB``.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from modelkeep.app.children import die_with_parent
from modelkeep.app.settings import Settings
from modelkeep.app.wiring import connect
from modelkeep.core.errors import ModelkeepError, Refused
from modelkeep.core.ports import Silent
from modelkeep.lifecycle import renewals
from modelkeep.lifecycle.apply import Applied, apply
from modelkeep.lifecycle.keep import Keep
from modelkeep.spec import loading
from modelkeep.store import jobs


def work(keep: Keep, job: jobs.Job) -> dict[str, Any]:
    """Do what the job asks for and return its result."""
    declaration = loading.from_builtins(job.payload["declaration"])
    done: Applied = apply(keep, declaration, Silent(), because=job.payload["because"], actor="loop")
    return {"version": done.version, "champion": done.champion, "note": done.note}


def main(arguments: list[str]) -> int:
    """Run one job to its end; its outcome is in the job's row, its exit code says whether it was a success."""
    die_with_parent(signal.SIGKILL)
    os.nice(5)  # serving on the same machine goes first
    home, number = Path(arguments[0]), int(arguments[1])
    database, blobs, base = arguments[2:5]
    keep = connect(Settings(home=home, database=database, blobs=blobs), Path(base))
    try:
        with keep.db.read() as conn:
            job = jobs.get(conn, number)
        try:
            result = work(keep, job)
        except Refused as error:
            refusal = {"refused": error.message}
            keep.db.write(lambda conn: renewals.succeed(conn, job, refusal, keep.clock.now()))
        except ModelkeepError as error:
            reason = str(error)
            keep.db.write(lambda conn: renewals.give_up(conn, job, reason, keep.clock.now()))
            return 1
        else:
            keep.db.write(lambda conn: renewals.succeed(conn, job, result, keep.clock.now()))
        return 0
    finally:
        keep.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
