"""``kill -9`` at random moments of ``apply``: what was acknowledged stays, and the rerun ends as it would have."""

from __future__ import annotations

import os
import random
import time
from typing import Any

import pytest

from forks import Forks
from modelkeep.registry import events, models
from modelkeep.registry.events import Event
from small import Project

KILLS = 25
SEED = int(os.environ.get("MODELKEEP_CHAOS_SEED", "20261121"))

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]


def history(project: Project) -> list[Event]:
    with project.opened() as keep, keep.db.read() as conn:
        assert events.verify(conn) == []
        return events.history(conn)


def test_apply_is_killed_and_goes_on(project: Project, forks: Forks) -> None:
    luck = random.Random(SEED)
    project.write(count=300)
    assert forks.run(["apply", "--json"], project.folder).wait() == 0
    project.write("more-0", 30, first=90_000)
    began = time.monotonic()
    assert forks.run(["apply", "--json"], project.folder).wait() == 0
    whole = time.monotonic() - began
    killed, moments = 0, []
    for number in range(1, KILLS + 1):
        before = history(project)
        if number % 3:  # new data reaches every stage, a new parameter those from training on
            project.write(f"more-{number}", 30, first=1000 * number)
        else:
            project.declare(lambda said, number=number: said["train"]["params"].update(C=1.0 + number / 100))
        delay = luck.uniform(0, whole)
        process = forks.run(["apply", "--json"], project.folder)
        time.sleep(delay)
        code = process.kill()
        killed += code != 0
        moments.append(f"{delay:.3f}{'' if code else ' (it had ended)'}")
        assert history(project)[: len(before)] == before
        again = project.apply()
        assert (again.version, again.champion, again.passed) == (2 + number, True, True)
    print(f"seed {SEED}, one apply takes {whole:.2f} s, killed {killed} times after seconds: {', '.join(moments)}")
    assert killed >= KILLS // 2
    _is_whole(project, forks)


def _is_whole(project: Project, forks: Forks) -> None:
    number = 2 + KILLS
    kinds = [(event.kind, event.subject) for event in history(project)]
    assert kinds == [
        (kind, f"late@{version}")
        for version in range(1, number + 1)
        for kind in ("version.registered", "version.promoted")
    ]
    with project.opened() as keep, keep.db.read() as conn:
        assert [version.version for version in models.versions(conn, "late")] == list(range(1, number + 1))
    assert project.running() == []
    code, told = forks.done(["doctor", "--json"], project.folder)
    assert code == 0, told
    _nothing_left_over(project)


def _nothing_left_over(project: Project) -> None:
    """A rerun writes no row, and no half-written file stays behind."""
    before: dict[str, Any] = project.state()
    project.apply()
    assert project.state() == before
