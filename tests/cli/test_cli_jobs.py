"""``modelkeep jobs``: the queue as people and scripts see it."""

from __future__ import annotations

import json
import time

import pytest
from click.testing import CliRunner

from modelkeep.app import running
from modelkeep.cli.main import cli
from modelkeep.lifecycle import renewals
from modelkeep.store import jobs
from modelkeep.store.scheduling import Room
from small import Project


@pytest.fixture
def queue(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """One that failed, one that runs, one that waits."""
    project.declare(lambda said: said.update(update={"priority": 3}, resources={"cpu": 2, "memory": "3GB"}))
    monkeypatch.chdir(project.folder)
    with project.opened() as keep:
        declared = project.declaration()
        for because in ("drift", "rows", "cron"):
            keep.db.write(lambda conn, because=because: renewals.ask(conn, declared, now=1.0, because=because))
        keep.db.write(lambda conn: jobs.fail(conn, 1, "no memory", time.time()))
        keep.db.write(lambda conn: jobs.claim(conn, "w", time.time(), 60.0))
        log = renewals.log_of(keep.home, 2)
        log.parent.mkdir(exist_ok=True)
        log.write_text("train 1/2\n")
    return project


def run(*words: str) -> str:
    done = CliRunner().invoke(cli, ["jobs", *words], prog_name="modelkeep")
    return done.output


def test_the_queue_is_listed_and_shown(queue: Project) -> None:
    listed = json.loads(run("--json"))["jobs"]
    assert [(job["id"], job["state"], job["priority"]) for job in listed] == [
        (3, "queued", 3),
        (2, "running", 3),
        (1, "failed", 3),
    ]
    assert listed[0]["resources"] == {"cpu": 2.0, "memory": 3_000_000_000}
    assert [job["waits"] for job in listed] == ["modelkeep up, which does not run here", "", ""]
    with queue.opened() as keep:  # as the up of this home does, on a machine of two jobs and three cores
        running.tell(keep.home, Room(2, 3, 4e9, ("0",)))
    assert json.loads(run("--json"))["jobs"][0]["waits"] == "cpu: asks for 2, 1 of 3 are free"
    with queue.opened() as keep:
        running.tell(keep.home, Room(1, 3, 4e9, ("0",)))
    shown = run("show", "3")
    assert "waits for: job 2 to end: 1 may run at once (MODELKEEP_JOBS)" in shown
    assert "resources: cpu 2, memory 3.0 GB" in shown
    table = run()
    assert "drift" in table and "running" in table and "1/10" in table
    assert json.loads(run("--model", "other", "--json")) == {"jobs": []}
    shown = run("show", "1")
    assert "job 1 of late: failed" in shown and "error: no memory" in shown and "because: drift" in shown


def test_jobs_are_cancelled_and_tried_again(queue: Project) -> None:
    assert "job 3 of late is cancelled; it waited" in run("cancel", "3")
    assert json.loads(run("cancel", "2", "--json")) == {"job": 2, "state": "cancelled", "was": "running"}
    assert json.loads(run("cancel", "2", "--json"))["error"]["kind"] == "conflict"
    assert "waits again" in run("retry", "1")
    assert json.loads(run("show", "1", "--json"))["job"]["state"] == "queued"
    assert queue.kinds().count("renewal.ended") == 2


def test_logs_are_read_and_followed_to_the_end(queue: Project) -> None:
    assert run("logs", "2") == "train 1/2\n"
    assert json.loads(run("logs", "2", "--json")) == {"job": 2, "log": "train 1/2\n"}
    with queue.opened() as keep:
        keep.db.write(lambda conn: jobs.finish(conn, 2, {}, time.time()))
    assert run("logs", "2", "--follow") == "train 1/2\n"
    assert "no job 99" in run("logs", "99")
