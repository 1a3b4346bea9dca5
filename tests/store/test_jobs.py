from __future__ import annotations

import subprocess
import sys

import pytest

from modelkeep.core.errors import Conflict, NotFound
from modelkeep.store import jobs, stages
from modelkeep.store.database import Database
from modelkeep.store.scheduling import Room


def enqueue(db: Database, model: str = "flights", **options: object) -> int:
    return db.write(lambda conn: jobs.enqueue(conn, model, "renew", {"why": "drift"}, 100.0, **options))  # type: ignore[arg-type]


def claim(db: Database, owner: str, now: float, lease: float = 10.0) -> jobs.Job | None:
    return db.write(lambda conn: jobs.claim(conn, owner, now, lease))


def get(db: Database, number: int) -> jobs.Job:
    with db.read() as conn:
        return jobs.get(conn, number)


def test_a_job_lives_its_life(db: Database) -> None:
    number = enqueue(db)
    with db.read() as conn:
        assert [job.id for job in jobs.active(conn, "flights")] == [number]
        assert jobs.active(conn, "other") == []
    job = claim(db, "w1", 101.0)
    assert job is not None
    assert (job.id, job.payload, job.state, job.attempts, job.owner) == (
        number,
        {"why": "drift"},
        "running",
        1,
        "w1",
    )
    assert claim(db, "w2", 102.0) is None
    db.write(lambda conn: jobs.finish(conn, number, {"version": 2}, 103.0))
    done = get(db, number)
    assert (done.state, done.result, done.finished, done.lease_until) == ("done", {"version": 2}, 103.0, None)
    with db.read() as conn:
        assert jobs.active(conn, "flights") == []
        assert [found.id for found in jobs.listing(conn)] == [number]
    assert claim(db, "w2", 999.0) is None


def test_jobs_are_claimed_oldest_first_and_not_before_their_time(db: Database) -> None:
    first, later, last = enqueue(db), enqueue(db, not_before=200.0), enqueue(db)
    assert [job.id for job in (claim(db, "w", 150.0, 99.0), claim(db, "w", 150.0, 99.0)) if job] == [first, last]
    assert claim(db, "w", 199.0, lease=1000) is None
    assert get(db, later).state == "queued"


def test_a_job_whose_worker_died_is_claimed_again_until_it_is_given_up(db: Database) -> None:
    number = enqueue(db, max_attempts=2)
    claim(db, "dies", 100.0, lease=10)
    assert claim(db, "w2", 110.0) is None
    db.write(lambda conn: jobs.renew(conn, number, "dies", 109.0, 10))
    assert claim(db, "w2", 118.0) is None
    again = claim(db, "w2", 119.5)
    assert again is not None
    assert (again.owner, again.attempts) == ("w2", 2)
    with pytest.raises(Conflict, match="'w2'"):
        db.write(lambda conn: jobs.renew(conn, number, "dies", 120.0, 10))
    with pytest.raises(Conflict):
        db.write(lambda conn: jobs.finish(conn, number, {}, 120.0, owner="dies"))
    assert claim(db, "w3", 1000.0) is None
    assert db.write(lambda conn: jobs.give_up_lapsed(conn, 120.0)) == []
    assert [job.id for job in db.write(lambda conn: jobs.give_up_lapsed(conn, 1000.0))] == [number]
    assert get(db, number).state == "failed"
    assert "its worker" in (get(db, number).error or "")


def test_failing_tries_again_while_attempts_are_left(db: Database) -> None:
    number = enqueue(db, max_attempts=2)
    claim(db, "w", 100.0)
    db.write(lambda conn: jobs.fail(conn, number, "no luck", 101.0, owner="w", retry_after=5.0))
    assert (get(db, number).state, get(db, number).error) == ("queued", "no luck")
    assert claim(db, "w", 105.0) is None
    assert claim(db, "w", 106.0) is not None
    db.write(lambda conn: jobs.fail(conn, number, "again", 107.0, owner="w", retry_after=5.0))
    assert get(db, number).state == "failed"
    with pytest.raises(Conflict, match="failed"):
        db.write(lambda conn: jobs.finish(conn, number, {}, 108.0))
    with pytest.raises(NotFound):
        get(db, 4711)


CLAIMING = """
import sys
from modelkeep.store import jobs
from modelkeep.store.database import Database
db = Database.open(sys.argv[1])
while (job := db.write(lambda conn: jobs.claim(conn, sys.argv[2], 100.0, 60.0))) is not None:
    print(job.id)
"""


def test_concurrent_claimers_never_get_the_same_job(db: Database, url: str) -> None:
    numbers = [enqueue(db) for _ in range(60)]
    command = [sys.executable, "-c", CLAIMING, url]
    workers = [subprocess.Popen([*command, f"w{i}"], stdout=subprocess.PIPE, text=True) for i in range(2)]
    claimed = [int(line) for worker in workers for line in worker.communicate(timeout=60)[0].split()]
    assert sorted(claimed) == numbers


def test_stages_are_remembered_until_forgotten(db: Database) -> None:
    db.write(lambda conn: stages.remember(conn, "k1", "train", "flights", {"auc": 0.5, "blob": "x"}, 1.0))
    db.write(lambda conn: stages.remember(conn, "k2", "train", "flights", {"auc": 0.6}, 2.0))
    db.write(lambda conn: stages.remember(conn, "k1", "train", "flights", {"auc": 0.7}, 3.0))
    with db.read() as conn:
        assert stages.recall(conn, "k1") == {"auc": 0.7}
        assert stages.recall(conn, "k3") is None
        assert stages.latest(conn, "flights", "train") == ("k1", {"auc": 0.7})
        assert stages.latest(conn, "flights", "prepare") is None
    db.write(lambda conn: stages.forget(conn, "k1"))
    with db.read() as conn:
        assert stages.recall(conn, "k1") is None


def test_priority_and_fair_share_decide_whose_turn_it_is(db: Database) -> None:
    usual, urgent, other = enqueue(db), enqueue(db, priority=5), enqueue(db, "trains")
    room = Room(jobs=3)

    def turn() -> int:
        job = db.write(lambda conn: jobs.claim(conn, "w", 100.0, 1000.0, room=room))
        assert job is not None
        return job.id

    assert [turn(), turn(), turn()] == [urgent, other, usual]
    enqueue(db)
    assert db.write(lambda conn: jobs.claim(conn, "w", 100.0, 10.0, room=room)) is None, "there is no room"


def test_a_job_is_cancelled_and_tried_again(db: Database) -> None:
    number = enqueue(db, resources={"cpu": 2.0})
    claim(db, "w1", 101.0)
    before = db.write(lambda conn: jobs.cancel(conn, number, 102.0))
    assert (before.state, before.need.cpu) == ("running", 2.0)
    assert get(db, number).state == "cancelled"
    with pytest.raises(Conflict, match="cancelled"):
        db.write(lambda conn: jobs.renew(conn, number, "w1", 103.0, 10.0))
    with pytest.raises(Conflict, match="cancelled"):
        db.write(lambda conn: jobs.finish(conn, number, {}, 103.0))
    with pytest.raises(Conflict, match="cancelled"):
        db.write(lambda conn: jobs.cancel(conn, number, 103.0))
    assert claim(db, "w2", 104.0) is None
    again = db.write(lambda conn: jobs.retry(conn, number, 105.0))
    assert (again.state, again.attempts, again.finished) == ("queued", 0, None)
    with pytest.raises(Conflict, match="queued"):
        db.write(lambda conn: jobs.retry(conn, number, 105.0))
    found = claim(db, "w2", 106.0)
    assert found is not None and found.id == number
    with pytest.raises(NotFound):
        db.write(lambda conn: jobs.retry(conn, 999, 105.0))
