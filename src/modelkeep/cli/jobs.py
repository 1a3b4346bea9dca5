"""``jobs``: what waits, runs and has ended, and what it said."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modelkeep.cli.common import example, file_option, json_option, opened
from modelkeep.cli.output import moment, print_json, say, table, text
from modelkeep.core import memory
from modelkeep.core.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modelkeep.lifecycle.keep import Keep
    from modelkeep.store.jobs import Job

_PAUSE = 0.3


@click.group(
    invoke_without_command=True,
    epilog=example(
        "modelkeep jobs                    # the last 50, newest first",
        "modelkeep jobs --model flights --json",
        "modelkeep jobs show 7",
        "modelkeep jobs logs 7 --follow",
        "modelkeep jobs cancel 7",
        "modelkeep jobs retry 7",
    ),
)
@click.option("--model", help="Only those of one model.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="At most so many.")
@file_option
@json_option
@click.pass_context
def jobs(ctx: click.Context, *, model: str | None, limit: int, file: Path, as_json: bool) -> None:
    """Renewals in the queue: what waits, runs and has ended."""
    if ctx.invoked_subcommand is not None:
        return
    from modelkeep.app import running
    from modelkeep.lifecycle import renewals
    from modelkeep.store import jobs as queue

    with opened(file) as keep, keep.db.read() as conn:
        found = renewals.waiting(conn, queue.listing(conn, model, limit), running.room(keep.home))
    if as_json:
        print_json({"jobs": found})
        return
    if not found:
        say("there are no jobs yet; modelkeep up makes them when a model is to be renewed")
        return
    last = ("waits for",) if any(job.waits for job in found) else ()
    table(
        ("#", "model", "state", "priority", "attempt", "asked for (UTC)", "took", "because", *last),
        (
            (
                job.id,
                job.model,
                job.state,
                job.priority,
                f"{job.attempts}/{job.max_attempts}",
                moment(job.created),
                _took(job),
                str(job.payload.get("because", "")),
                *((job.waits,) if last else ()),
            )
            for job in found
        ),
        right=("#", "priority"),
    )


@jobs.command(epilog=example("modelkeep jobs show 7", "modelkeep jobs show 7 --json"))
@click.argument("number", metavar="ID", type=int)
@file_option
@json_option
def show(*, number: int, file: Path, as_json: bool) -> None:
    """One job: why, when, what came of it."""
    from modelkeep.app import running
    from modelkeep.lifecycle import renewals
    from modelkeep.store import jobs as queue

    with opened(file) as keep:
        with keep.db.read() as conn:
            (job,) = renewals.waiting(conn, [queue.get(conn, number)], running.room(keep.home))
        log = renewals.log_of(keep.home, number)
    if as_json:
        print_json({"job": job, "log": str(log)})
        return
    say(f"job {job.id} of {text(job.model)}: {job.state}, attempt {job.attempts} of {job.max_attempts}")
    lines = {
        "because": str(job.payload.get("because", "")),
        "priority": str(job.priority),
        "waits for": job.waits,
        "resources": ", ".join(f"{name} {_amount(name, value)}" for name, value in (job.resources or {}).items()),
        "asked for": moment(job.created),
        "started": moment(job.started) if job.started else "",
        "ended": moment(job.finished) if job.finished else "",
        "result": ", ".join(f"{name} {value}" for name, value in (job.result or {}).items() if value != ""),
        "error": job.error or "",
        "log": str(log) if log.exists() else "",
    }
    for name, value in lines.items():
        if value:
            say(f"  {name}: {text(value)}")


@jobs.command(epilog=example("modelkeep jobs cancel 7"))
@click.argument("number", metavar="ID", type=int)
@file_option
@json_option
def cancel(*, number: int, file: Path, as_json: bool) -> None:
    """End a job that waits or runs, within seconds; what it had finished is kept for a retry."""
    from modelkeep.lifecycle import renewals

    with opened(file) as keep:
        job = keep.db.write(lambda conn: renewals.cancel(conn, number, keep.clock.now()))
    if as_json:
        print_json({"job": number, "state": "cancelled", "was": job.state})
        return
    say(f"job {number} of {text(job.model)} is cancelled; it {'ran' if job.state == 'running' else 'waited'}")


@jobs.command(epilog=example("modelkeep jobs retry 7"))
@click.argument("number", metavar="ID", type=int)
@file_option
@json_option
def retry(*, number: int, file: Path, as_json: bool) -> None:
    """Put a job that failed or was cancelled back in line. It goes on where it stopped."""
    from modelkeep.lifecycle import renewals

    with opened(file) as keep:
        job = keep.db.write(lambda conn: renewals.retry(conn, number, keep.clock.now()))
    if as_json:
        print_json({"job": number, "state": job.state})
        return
    say(f"job {number} of {text(job.model)} waits again")


@jobs.command(
    epilog=example("modelkeep jobs logs 7", "modelkeep jobs logs 7 --follow", "modelkeep jobs logs 7 --json")
)
@click.argument("number", metavar="ID", type=int)
@click.option("--follow", is_flag=True, help="Go on until the job has ended.")
@file_option
@json_option
def logs(*, number: int, follow: bool, file: Path, as_json: bool) -> None:
    """What a job's process wrote."""
    from modelkeep.lifecycle import renewals

    said: list[str] = []
    with opened(file) as keep:
        log = renewals.log_of(keep.home, number)
        for piece in _written(keep, number, log, follow):
            said.append(piece)
            if not as_json:
                click.echo(piece, nl=False)
    if not said:
        raise NotFound(
            f"job {number} has no log here", hint="a log is on the machine where modelkeep up ran the job"
        )
    if as_json:
        print_json({"job": number, "log": "".join(said)})


def _written(keep: Keep, number: int, log: Path, follow: bool) -> Iterator[str]:
    """What a log holds, and what is added to it until the job has ended."""
    from modelkeep.store import jobs as queue

    at = 0
    while True:
        with keep.db.read() as conn:
            ended = queue.get(conn, number).state not in ("queued", "running")
        if log.exists():
            with log.open("rb") as stream:
                stream.seek(at)
                content = stream.read()
            at += len(content)
            if content:
                yield content.decode(errors="replace")
        if ended or not follow:
            return
        time.sleep(_PAUSE)


def _amount(name: str, value: Any) -> str:
    if name == "memory":
        return memory.shown(value)
    return " and ".join(value) if isinstance(value, list) else f"{value:g}"


def _took(job: Job) -> str:
    if job.started is None:
        return ""
    seconds = (job.finished or time.time()) - job.started
    return f"{seconds:.0f}s" if seconds < 120 else f"{seconds / 60:.0f}m"
