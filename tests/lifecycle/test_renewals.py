"""Renewals as durable jobs in their own processes, real ones: done, refused, killed and taken up again."""

from __future__ import annotations

import os
import signal
import time

import pytest

from modelkeep.app import children
from modelkeep.app.job import share
from modelkeep.app.settings import settings
from modelkeep.core import machine, memory
from modelkeep.core.errors import Invalid
from modelkeep.lifecycle import facts, renewals
from modelkeep.lifecycle.keep import Keep
from modelkeep.lifecycle.renewals import Renewals
from modelkeep.registry import events, models
from modelkeep.store import jobs
from modelkeep.store.jobs import Job
from modelkeep.store.scheduling import Room
from small import Project, until


class Starter:
    """Starts jobs as ``up`` does and remembers their processes."""

    def __init__(self, keep: Keep) -> None:
        self.keep = keep
        self.started: list[children.Child] = []

    def __call__(self, job: Job) -> children.Child:
        where = settings(self.keep.base)
        words = [str(where.home), str(job.id), where.database, where.blobs, str(self.keep.base)]
        process = children.start("modelkeep.app.job", words, where.home / "logs" / f"job-{job.id}.log")
        self.started.append(process)
        return process


@pytest.fixture
def waiting(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A champion, new rows, and a renewal that waits."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    project.declare(lambda said: said.update(update={"when": ["new_rows >= 100"]}))
    project.apply()
    project.write("two", 200, first=10_000)
    with project.opened() as keep:
        keep.db.write(lambda conn: renewals.ask(conn, project.declaration(), now=keep.clock.now(), because="rows"))
    return project


def job(keep: Keep) -> Job:
    with keep.db.read() as conn:
        return jobs.listing(conn)[0]


def test_a_renewal_is_done_in_its_own_process(waiting: Project) -> None:
    with waiting.opened() as keep:
        start = Starter(keep)
        tended = Renewals(keep, start)
        assert tended.busy()

        def ended() -> bool:
            tended.tend()
            return job(keep).state == "done" and not tended.busy()

        until(ended, limit=90, pause=0.1)
        assert len(start.started) == 1
        assert job(keep).result == {"version": 2, "champion": True, "note": "version 2 is the champion"}
        with keep.db.read() as conn:
            told = [event for event in events.history(conn) if event.kind.startswith("renewal.")]
            assert models.alias(conn, "late", "champion") == 2
        assert [event.kind for event in told] == ["renewal.started", "renewal.ended"]
        assert told[1].data["version"] == 2
        tended.tend()
        assert len(start.started) == 1


def test_a_job_that_is_killed_is_taken_up_again(waiting: Project) -> None:
    with waiting.opened() as keep:
        start = Starter(keep)
        tended = Renewals(keep, start)
        tended.tend()
        time.sleep(0.5)
        os.kill(start.started[0].pid, signal.SIGKILL)

        def ended() -> bool:
            tended.tend()
            return job(keep).state in ("done", "failed") and not tended.busy()

        until(ended, limit=120, pause=0.1)
        log = (keep.home / "logs" / "job-1.log").read_text()
        assert (job(keep).state, job(keep).attempts, len(start.started)) == ("done", 2, 2), log
        with keep.db.read() as conn:
            kinds = [event.kind for event in events.history(conn)]
            assert models.alias(conn, "late", "champion") == 2
        assert kinds.count("renewal.ended") == 1
        assert kinds.count("version.registered") == 2
    assert waiting.running() == []


def test_a_job_that_is_cancelled_ends_at_once_and_goes_on_when_tried_again(waiting: Project) -> None:
    with waiting.opened() as keep:
        start = Starter(keep)
        tended = Renewals(keep, start)
        tended.tend()
        log = renewals.log_of(keep.home, 1)
        until(lambda: log.exists() and "job 1, attempt 1: late, because rows" in log.read_text(), limit=60)
        keep.db.write(lambda conn: renewals.cancel(conn, 1, keep.clock.now()))

        def ended() -> bool:
            tended.tend()
            return start.started[0].poll() is not None

        until(ended, limit=60)
        tended.tend()
        assert job(keep).state == "cancelled" and not tended.busy()
        with keep.db.read() as conn:
            told = events.history(conn, "late", kind="renewal.ended")
            assert [event.data for event in told] == [{"job": 1, "cancelled": True}]
            assert models.alias(conn, "late", "champion") == 1, "nothing half done is live"
        keep.db.write(lambda conn: renewals.retry(conn, 1, keep.clock.now()))

        def done() -> bool:
            tended.tend()
            return job(keep).state == "done" and not tended.busy()

        until(done, limit=120, pause=0.1)
        assert len(start.started) == 2
        assert "ended: {'version': 2" in log.read_text()
        with keep.db.read() as conn:
            assert models.alias(conn, "late", "champion") == 2


class Told:
    """A worker that ends when it is told to."""

    def __init__(self) -> None:
        self.code: int | None = None

    def poll(self) -> int | None:
        return self.code

    def terminate(self) -> None:
        self.code = 1


def test_memory_and_gpus_are_counted_and_what_can_never_be_is_told_at_once(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELKEEP_JOBS", "4")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    most = machine.memory() // 10**6
    asked = [
        {"gpu": 2},
        {"gpu": 1},
        {"memory": f"{most * 2}MB"},
        {"gpu": 3},
        {"cpu": 0.01},
        {"memory": f"{most}MB"},
    ]
    with project.opened() as keep:
        for resources in asked:
            project.declare(lambda said, resources=resources: said.update(resources={"cpu": 0.01, **resources}))
            declared = project.declaration()
            keep.db.write(lambda conn, declared=declared: renewals.ask(conn, declared, now=2.0, because="rows"))
        workers: dict[int, Told] = {}
        tended = Renewals(keep, lambda job: workers.setdefault(job.id, Told()))
        tended.tend()

        def now() -> dict[int, Job]:
            with keep.db.read() as conn:
                found = renewals.waiting(conn, jobs.listing(conn), renewals.room())
            return {job.id: job for job in found}

        there = now()
        assert [there[number].state for number in range(1, 7)] == [
            "running",
            "queued",
            "failed",
            "failed",
            "running",
            "running",
        ]
        assert there[1].resources is not None and there[1].resources["gpus"] == ["4", "7"]
        assert there[2].waits == "gpu: asks for 1, 0 of 2 are free"
        for number, said in (
            (3, "resources.memory: one part asks for "),
            (4, "resources.gpu: one part asks for 3, "),
        ):
            assert (there[number].error or "").startswith(said)
        assert "this machine has 2; ask for less" in (there[4].error or "")
        with keep.db.read() as conn:
            told = [event.data for event in events.history(conn, "late", kind="renewal.ended")]
        assert [event["job"] for event in told if "failed" in event] == [3, 4]
        workers[1].code = 0
        keep.db.write(lambda conn: jobs.finish(conn, 1, {}, time.time()))
        tended.tend()
        begun = now()[2]
        assert begun.state == "running" and begun.resources is not None and begun.resources["gpus"] == ["4"]
        assert share(begun, Room(1))["CUDA_VISIBLE_DEVICES"] == "4"
        assert int(share(begun, Room(3))["MODELKEEP_MEMORY"]) == memory.budget() // 3


def test_work_on_an_engine_elsewhere_needs_one_core_here(project: Project) -> None:
    wanted = {"cpu": 16, "memory": "900TB", "gpu": 4}
    for engine, needed in (
        ("ray://head:10001", {"cpu": 1.0}),
        ("dask://s:8786", {"cpu": 1.0}),
        ("local://2", {"cpu": 16.0, "memory": 900 * 10**12, "gpu": 4.0, "workers": 2}),
        ("spark", {"cpu": 16.0, "memory": 900 * 10**12, "gpu": 4.0}),
    ):
        project.declare(lambda said, engine=engine: said.update(engine=engine, resources=wanted))
        assert renewals.needs(project.declaration()) == needed


def test_how_many_run_at_once_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    assert renewals.room().jobs == 1
    monkeypatch.setenv("MODELKEEP_JOBS", "3")
    assert renewals.room().jobs == 3
    monkeypatch.setenv("MODELKEEP_JOBS", "many")
    with pytest.raises(Invalid, match="'many' is not a number"):
        renewals.room()


def test_a_job_whose_control_process_is_gone_is_taken_up_after_its_lease(waiting: Project) -> None:
    gone = "control that was killed"
    with waiting.opened() as keep:
        claimed = keep.db.write(lambda conn: jobs.claim(conn, gone, time.time(), 60.0, kind="renew"))
        assert claimed is not None
        tended = Renewals(keep, lambda _: pytest.fail("its lease is not over"))
        tended.tend()
        keep.db.write(lambda conn: jobs.renew(conn, claimed.id, gone, time.time(), -1.0))
        start = Starter(keep)
        tended = Renewals(keep, start)
        tended.tend()
        assert len(start.started) == 1
        tended.stop()
        start.started[0].wait(20)
        assert (job(keep).state, job(keep).error) == ("queued", "control was stopped")


def test_the_end_of_a_job_that_never_says_how_it_ended_is_told(waiting: Project) -> None:
    with waiting.opened() as keep:
        for _ in range(renewals.ATTEMPTS):
            keep.db.write(lambda conn: jobs.claim(conn, "killed each time", time.time(), -1.0, kind="renew"))
        Renewals(keep, lambda _: pytest.fail("it has no attempt left")).tend()
        assert job(keep).state == "failed"
        with keep.db.read() as conn:
            told = events.history(conn, "late", kind="renewal.ended")
        assert "without a word" in told[0].data["failed"]


def test_rows_that_were_tried_do_not_ask_again(waiting: Project) -> None:
    from modelkeep.data.snapshots import Snapshots

    with waiting.opened() as keep:
        store = Snapshots(keep.db, keep.blobs)
        declaration = waiting.declaration()
        store.take(declaration.data, "late", keep.base, keep.clock.now())
        with keep.db.read() as conn:
            assert facts.unseen_rows(conn, "late", 1) == 200
        keep.db.write(lambda conn: renewals.ask(conn, declaration, now=keep.clock.now(), because="rows"))
        with keep.db.read() as conn:
            attempt = renewals.last_attempt(conn, "late")
            assert attempt is not None
            assert facts.unseen_rows(conn, "late", 1, attempt[1]) == 0
        waiting.write("three", 50, first=20_000)
        store.take(declaration.data, "late", keep.base, keep.clock.now())
        with keep.db.read() as conn:
            assert facts.unseen_rows(conn, "late", 1, attempt[1]) == 50
