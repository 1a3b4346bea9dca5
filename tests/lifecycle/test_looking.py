"""The loop looks into sources on their own engines, once a minute where that is work, and waits for none."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest

from modelkeep.core.here import Here
from modelkeep.lifecycle.keep import Engines, Keep
from modelkeep.lifecycle.looking import EVERY_REMOTE, Looking, every
from modelkeep.lifecycle.loop import Loop
from modelkeep.registry import snapshots
from modelkeep.spec.declaration import Data, Declaration, Origin
from small import Project, until

SOURCE = """
import os, time
from pathlib import Path
import pyarrow as pa

def rows(folder, part=0):
    folder = Path(folder)
    (folder / f"call-{time.monotonic_ns()}").touch()
    while (folder / "away").exists():
        time.sleep(0.01)
    if (folder / "broken").exists():
        raise RuntimeError("no route to the warehouse")
    return pa.table({"id": range(20 * part, 20 * part + 20), "y": [0, 1] * 10, "at": [os.getpid()] * 20})
"""


@pytest.fixture
def calls(project: Project) -> Path:
    (project.folder / "slow_source.py").write_text(SOURCE)
    found = project.folder / "calls"
    found.mkdir()
    return found


def declared(calls: Path, model: str = "slow", parts: int = 0, engine: str = "local") -> Declaration:
    origin = Origin(function="slow_source:rows", params={"folder": str(calls)}, parts=parts)
    return Declaration(model=model, data=Data(source=origin, target="y"), engine=engine)


def counted(calls: Path) -> int:
    return len(list(calls.glob("call-*")))


def taken(keep: Keep, model: str) -> int:
    with keep.db.read() as conn:
        return len(snapshots.named(conn, model))


def test_a_function_is_called_once_a_minute(project: Project, calls: Path) -> None:
    with project.opened() as keep:
        looks = Looking(keep)
        for second in range(0, 130, 5):
            looks.look(declared(calls), float(second))
            looks.wait(60)
        assert counted(calls) == 3  # at 0, 60 and 120
        assert taken(keep, "slow") == 1  # the same rows are the same snapshot
        looks.look(declared(calls), 10.0)  # a clock that was set back is no reason to wait
        looks.wait(60)
        assert counted(calls) == 4


def test_files_here_are_looked_at_whenever_the_loop_ticks() -> None:
    assert every(Data(source="rows/*.csv")) == every(Data(source="file:///rows")) == 0.0
    for source in ("s3://bucket/rows", Origin(function="a:b"), Origin(url="sqlite:///x.db", query="SELECT 1")):
        assert every(Data(source=source)) == EVERY_REMOTE == 60.0


def test_a_source_that_is_away_holds_up_nobody(project: Project, calls: Path) -> None:
    (calls / "away").touch()
    with project.opened() as keep:
        looks = Looking(keep)
        began = time.monotonic()
        looks.look(declared(calls), 0.0)
        looks.look(declared(calls), 100.0)  # due again, but the first is not over
        other = project.declaration()
        looks.look(other, 100.0)
        until(lambda: taken(keep, other.model))
        assert time.monotonic() - began < 30  # it would be away for ever
        assert (counted(calls), taken(keep, "slow")) == (1, 0)
        (calls / "away").unlink()
        until(lambda: taken(keep, "slow"))
        looks.wait(60)


def test_a_tick_goes_on_and_says_what_is_wrong(project: Project, calls: Path) -> None:
    assert project.apply().champion
    project.declare(lambda said: said.update(update={"when": ["new_rows >= 10000"]}))
    project.apply()
    with project.opened() as keep:
        loop = Loop(keep, lambda job: pytest.fail("nothing is due"))
        loop.tick()
        assert (loop.status()["ticks"], loop.status()["fault"]) == (1, "")
        (data,) = (project.folder / "data").iterdir()
        data.rename(project.folder / "elsewhere.csv")
        for ticks in (2, 3):
            loop.tick()
            assert "the source of late: data.source: no data file" in until(lambda: loop.status()["fault"])
            assert loop.status()["ticks"] == ticks
        (project.folder / "elsewhere.csv").rename(data)
        project.write("more", 5, first=600)
        loop.tick()
        until(lambda: taken(keep, "late") == 2)
        loop.looking.wait(60)
        loop.tick()
        assert loop.status()["fault"] == ""


def test_it_reads_on_the_declared_engine_and_lets_go_of_it(project: Project, calls: Path) -> None:
    told: list[str] = []

    class Cluster(Here):
        def map(self, fn, parts, **more):
            told.append("map")
            return super().map(fn, parts, **more)

        def close(self) -> None:
            told.append("close")

    def opens(address, code, resources):
        told.append(address)
        return Cluster()

    with project.opened() as keep:
        looks = Looking(dataclasses.replace(keep, engines=Engines(opens)))
        looks.look(declared(calls, parts=2, engine="ray://head:10001"), 0.0)
        looks.wait(60)
        assert told == ["ray://head:10001", "map", "close"]
        assert taken(keep, "slow") == 1
        (calls / "broken").touch()
        looks.look(declared(calls, parts=2, engine="ray://head:10001"), 60.0)
        looks.wait(60)
        assert told[3:] == ["ray://head:10001", "map", "close"]
        assert "no route to the warehouse" in looks.fault("slow")
