"""A batch fails: who is answered all the same, and how often the model saw each row for that."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from isolated_kit import written

from modelkeep.core.clock import SystemClock
from modelkeep.core.errors import Invalid, Lost, ModelkeepError, Refused, Unavailable, UserCodeFailed
from modelkeep.formats import adopt, runtimes
from modelkeep.formats.manifest import Folder
from modelkeep.formats.signature import Field
from modelkeep.serve import rerun
from modelkeep.serve.batching import Lane
from modelkeep.serve.calls import Batch, Call
from modelkeep.serve.capture import Channel
from modelkeep.serve.columns import Inputs, Loaded, Rows
from modelkeep.serve.isolated import IsolatedModel, Terms
from modelkeep.serve.isolated_keeper import Keeper
from modelkeep.serve.limits import Limits
from modelkeep.serve.metrics import Counters
from modelkeep.serve.rerun import LOSSES, RERUNS

SCORE = """
import os, time
from pathlib import Path

seen, gate = Path(__file__).with_name("seen"), Path(__file__).with_name("gate")

def predict(columns):
    kinds, before = list(columns["kind"]), seen.read_text() if seen.exists() else ""
    with seen.open("a") as file:
        file.write(" ".join(str(int(x)) for x in columns["x"]) + "\\n")
    if "wait" in kinds and before:
        while not gate.exists():
            time.sleep(0.005)
    if "die" in kinds or ("die once" in kinds and not before):
        os._exit(7)
    if "hang" in kinds:
        time.sleep(3600)
    if "raise" in kinds:
        raise ValueError("secret")
    return columns["x"] * 2
"""
FIELDS = [Field(name="x", type="float64"), Field(name="kind", type="string")]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], str]:
    folder = tmp_path_factory.mktemp("function")
    (folder / "score.py").write_text(SCORE)
    sample = {"x": [1.0], "kind": ["fine"]}
    with pytest.raises(Refused) as refused:
        adopt.adopt_function(folder, "score.py", FIELDS, sample)
    digest = refused.value.hint.split()[-1]
    adopt.adopt_function(folder, "score.py", FIELDS, sample, trusted=[digest])
    return dict(Folder(folder)), digest


class Pool(ThreadPoolExecutor):
    """Two threads, as if all others had slow models of their own; counts its tasks."""

    def __init__(self) -> None:
        super().__init__(2)
        self.tasks = 0

    def submit(self, *what: Any, **more: Any) -> Future[Any]:
        self.tasks += 1
        return super().submit(*what, **more)


class Told:
    """A door that keeps what it says; ``call.sink`` names the request."""

    def __init__(self) -> None:
        self.answers: dict[int, float] = {}
        self.refused: dict[int, ModelkeepError] = {}

    def answer(self, call: Call, batch: Batch) -> None:
        (value,) = batch.outputs.values()
        self.answers[call.sink] = float(value[call.start])

    def refuse(self, call: Call, error: ModelkeepError) -> None:
        self.refused[call.sink] = error


class Served:
    """A lane before a model in a process of its own."""

    def __init__(self, model: IsolatedModel, folder: Path, pool: Pool) -> None:
        self.model, self.folder, self.pool = model, folder, pool
        self.door = Told()
        (folder / "seen").unlink(missing_ok=True)  # rows that adopting and warming asked
        signature = model.signature
        self.lane = Lane(
            Loaded(model, Inputs(signature), "function"),
            Channel("e", "m", 1, "stable", signature, sample=0.0),
            Counters(),
            loop=asyncio.get_running_loop(),
            clock=SystemClock(),
            executor=pool,
            limits=Limits(budget=600.0),
        )

    def ask(self, *kinds: str) -> None:
        """One request a kind; request 0 asks for row 0."""
        for number, kind in enumerate(kinds):
            self.lane.submit(Call(Rows(1, cells=[float(number), kind]), str(number), self.door, number))

    async def all(self, *kinds: str) -> Told:
        """What the requests were told."""
        self.ask(*kinds)
        while not self.lane.idle:
            await asyncio.sleep(0.005)
        assert len(self.door.answers) + len(self.door.refused) == len(kinds)
        assert all(value == 2.0 * number for number, value in self.door.answers.items())
        return self.door

    @property
    def runs(self) -> list[list[int]]:
        """The rows of each batch that the model saw, in order."""
        return [[int(word) for word in line.split()] for line in (self.folder / "seen").read_text().splitlines()]

    @property
    def times(self) -> Counter[int]:
        """How often the model saw each row."""
        return Counter(row for run in self.runs for row in run)


Story = Callable[[Callable[..., Served]], Awaitable[None]]


@pytest.fixture
def told(
    keeper: Keeper, tmp_path: Path, package: tuple[dict[str, bytes], str]
) -> Iterator[Callable[[Story], None]]:
    files, digest = package
    models: list[IsolatedModel] = []
    pool = Pool()

    def serve(*, limit: float = 60.0, **terms: Any) -> Served:
        folder = written(files, tmp_path / str(len(models)))
        model = IsolatedModel(
            keeper,
            "function",
            folder.path,
            runtimes.signature(folder),
            trusted=[digest],
            terms=Terms(**terms),
            limit=limit,
            label="score@1",
        )
        models.append(model)
        return Served(model, folder.path, pool)

    async def tell(story: Story) -> None:
        await asyncio.wait_for(story(serve), 120)

    yield lambda story: asyncio.run(tell(story))
    for model in models:
        model.close()
    pool.shutdown()


def test_what_kills_its_process_kills_only_itself_and_nothing_runs_a_third_time(
    told: Callable[[Story], None],
) -> None:
    async def story(serve: Callable[..., Served]) -> None:
        served = serve()
        door = await served.all("fine", "fine", "die", "fine", "fine")
        assert door.answers.keys() == {0, 1, 3, 4}
        assert isinstance(door.refused[2], Lost)
        assert "score@1 ended while it predicted" in door.refused[2].message
        assert door.refused[2].message.endswith("; it was tried twice")
        assert served.times == dict.fromkeys(range(5), 2)
        assert served.model.status()["restarts"] == 2
        assert served.pool.tasks == 1

    told(story)


def test_a_request_alone_has_its_one_retry_too(told: Callable[[Story], None]) -> None:
    async def story(serve: Callable[..., Served]) -> None:
        once, always = serve(), serve()
        assert (await once.all("die once")).answers.keys() == {0}
        assert "tried twice" in (await always.all("die")).refused[0].message
        assert once.times == always.times == {0: 2}

    told(story)


def test_a_batch_that_may_not_be_repeated_never_is(told: Callable[[Story], None]) -> None:
    async def story(serve: Callable[..., Served]) -> None:
        died = serve(repeatable=False)
        door = await died.all("fine", "die once", "fine")
        assert all(isinstance(error, Lost) for error in door.refused.values()) and len(door.refused) == 3
        assert died.times == {0: 1, 1: 1, 2: 1}
        raised = serve(repeatable=False)
        door = await raised.all("fine", "raise", "fine")
        assert len(door.refused) == 3
        assert not any("secret" in str(error) for error in door.refused.values())
        assert raised.times == {0: 1, 1: 1, 2: 1}
        assert (await serve(repeatable=False).all("fine", "fine")).refused == {}

    told(story)


def test_text_that_no_model_can_get_is_found_where_nothing_may_be_repeated(told: Callable[[Story], None]) -> None:
    async def story(serve: Callable[..., Served]) -> None:
        served = serve(repeatable=False)
        door = await served.all("fine", "\ud800", "fine", "fine")
        assert door.answers.keys() == {0, 2, 3}
        assert isinstance(door.refused[1], Invalid)
        assert served.times == {0: 1, 2: 1, 3: 1}

    told(story)


def test_a_batch_that_took_too_long_is_not_given_as_long_again(told: Callable[[Story], None]) -> None:
    async def story(serve: Callable[..., Served]) -> None:
        served = serve(limit=1.0)
        door = await served.all("fine", "hang", "fine")
        assert [isinstance(error, Lost) and error.late for error in door.refused.values()] == [True] * 3
        assert served.times == {0: 1, 1: 1, 2: 1}

    told(story)


def test_requests_that_all_kill_cost_few_processes(told: Callable[[Story], None]) -> None:
    async def story(serve: Callable[..., Served]) -> None:
        served = serve()
        door = await served.all(*["die"] * 8)
        assert all(isinstance(error, Lost) for error in door.refused.values()) and len(door.refused) == 8
        assert len(served.runs) == 1 + LOSSES

    told(story)


def test_the_guilty_are_found_by_halving_in_one_task(told: Callable[[Story], None]) -> None:
    async def story(serve: Callable[..., Served]) -> None:
        served = serve()
        kinds = ["fine"] * 8
        kinds[5] = "raise"
        door = await served.all(*kinds)
        assert door.answers.keys() == set(range(8)) - {5}
        assert isinstance(door.refused[5], UserCodeFailed)
        assert [len(run) for run in served.runs] == [8, 4, 4, 2, 1, 1, 2]
        assert served.pool.tasks == 1

    told(story)


def test_other_models_are_answered_while_one_looks_for_the_guilty(told: Callable[[Story], None]) -> None:
    async def story(serve: Callable[..., Served]) -> None:
        served, other = serve(), serve()
        served.ask(*["wait"] * 7, "raise")  # from the second run on it waits for the gate
        while not (served.folder / "seen").exists() or len(served.runs) < 2:
            await asyncio.sleep(0.005)
        assert (await other.all("fine", "fine")).refused == {}
        assert served.door.answers == {}
        (served.folder / "gate").touch()
        while not served.lane.idle:
            await asyncio.sleep(0.005)
        assert served.door.answers.keys() == set(range(7))

    told(story)


class Asked:
    """A request of some rows."""

    def __init__(self, number: int, rows: int) -> None:
        self.number = number
        self.rows = Rows(rows, cells=[])


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=400),
    guilty=st.sets(st.integers(0, 399), max_size=400),
    failing=st.sampled_from([UserCodeFailed, Lost]),
    away=st.integers(0, 200),
)
def test_every_request_is_told_once_after_few_runs(
    sizes: list[int], guilty: set[int], failing: type[ModelkeepError], away: int
) -> None:
    """``away``: after so many runs there is no process any more; 0 for never."""
    calls = [Asked(number, rows) for number, rows in enumerate(sizes)]
    runs: list[list[int]] = []

    def work(part: list[Asked]) -> str | ModelkeepError:
        runs.append([call.number for call in part])
        if away and len(runs) > away:
            return Unavailable("gone")
        if guilty.isdisjoint(runs[-1]):
            return "fine"
        return Lost("gone") if failing is Lost else UserCodeFailed("no", traceback="")

    found = list(rerun.settled(calls, work(calls), work, repeatable=True))
    assert sorted(call.number for part, _ in found for call in part) == list(range(len(calls)))
    assert len(runs) <= 1 + RERUNS
    for part, what in found:
        assert guilty.isdisjoint(call.number for call in part) or what != "fine"
    here = [call.number for call in calls if call.number in guilty]
    times = Counter(number for run in runs for number in run)
    if failing is Lost:
        assert max(times.values()) <= 2
    enough = len(here) < LOSSES if failing is Lost else 2 * len(here) * np.ceil(np.log2(len(calls) + 1)) <= RERUNS
    if enough and not away and (failing is not Lost or len(calls) <= RERUNS):
        alone = {part[0].number for part, what in found if what != "fine" and len(part) == 1}
        assert alone == set(here)
        assert sum(len(part) for part, what in found if what == "fine") == len(calls) - len(here)
