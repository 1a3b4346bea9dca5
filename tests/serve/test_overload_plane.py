"""Load beyond capacity, deadlines, priorities, the cache, redaction: the data plane with real models."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from serving_kit import Made
from test_serve_plane import Ready, columns

from modelkeep.core.clock import SystemClock
from modelkeep.core.errors import Invalid, ModelkeepError, NotFound, Overloaded, TooLate
from modelkeep.registry.endpoints import Route, Wanted
from modelkeep.serve.calls import Batch, Call, CallWithParams
from modelkeep.serve.columns import Rows
from modelkeep.serve.dataplane import DataPlane
from modelkeep.serve.supervised import Supervised


class Laborious:
    """A model of which each row takes its time, however many come at once."""

    def __init__(self, inner: Any, seconds: float) -> None:
        self.inner = inner
        self.seconds = seconds
        self.batches: list[int] = []
        self.params: list[bytes] = []
        self.at_once = self.most_at_once = 0

    def predict(self, columns: Mapping[str, Any]) -> Mapping[str, Any]:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.batches.append(columns.rows)  # type: ignore[attr-defined]
        self.params.append(columns.params)  # type: ignore[attr-defined]
        time.sleep(self.seconds * columns.rows)  # type: ignore[attr-defined]
        self.at_once -= 1
        found: Mapping[str, Any] = self.inner.predict(columns)
        return found


class Answers:
    """A door that keeps what happened to its calls."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.refused: dict[str, ModelkeepError] = {}

    def answer(self, call: Call, batch: Batch) -> None:
        self.order.append(call.id)

    def refuse(self, call: Call, error: ModelkeepError) -> None:
        self.refused[call.id] = error


def asked(**deploy: Any) -> list[Wanted]:
    route = Route(version=1, package="p", weight=1.0, mode="stable")
    return [Wanted(endpoint="e", model="m", routes=(route,), settings={"declaration": {"deploy": deploy}})]


def told(
    made: Made, seconds: float, story: Callable[[DataPlane, Laborious], Awaitable[None]], **deploy: Any
) -> None:
    """Run a story with one endpoint whose model takes so long a row."""

    async def run() -> None:
        plane = DataPlane(asyncio.get_running_loop(), SystemClock())
        model = Laborious(made.loaded().model, seconds)
        loaded = replace(made.loaded(), model=model)
        await asyncio.to_thread(plane.apply, asked(**deploy), Ready(p=loaded))
        await story(plane, model)
        await asyncio.to_thread(plane.close)

    asyncio.run(run())


def test_beyond_capacity_the_rest_is_refused_at_once_and_batches_stay_small(first: Made) -> None:
    async def story(plane: DataPlane, model: Laborious) -> None:
        lane = plane.endpoint("e").lane("")
        door = Answers()
        cells = first.frame.iloc[0].tolist()
        began = time.perf_counter()
        sent = 0
        while (gone := time.perf_counter() - began) < 1.0:
            while sent < gone * 1500:  # three times what 2 ms a row allow
                sent += 1
                try:
                    lane.submit(Call(Rows(1, cells=cells), str(sent), door, None))
                except Overloaded as error:
                    door.refused[str(sent)] = error
            await asyncio.sleep(0.001)
        while lane.waiting or not lane.idle:
            await asyncio.sleep(0.005)
        assert door.order
        assert door.refused
        assert len(door.order) + len(door.refused) == sent
        assert len(door.order) == sum(model.batches)
        # a batch takes a quarter of the budget, so 25 rows, give or take what a busy machine adds to 2 ms
        assert max(model.batches) <= 50
        assert plane.series()[0].counters.shed == len(door.refused)

    told(first, 0.002, story, batch={"budget": "200ms"})


def test_deadlines_are_kept_while_a_batch_is_under_way(first: Made) -> None:
    async def story(plane: DataPlane, model: Laborious) -> None:
        await plane.infer("e", columns(first, 0))
        lane = plane.endpoint("e").lane("")
        door = Answers()
        cells = first.frame.iloc[0].tolist()
        lane.submit(Call(Rows(1, cells=cells), "under way", door, None))
        await asyncio.sleep(0.05)
        began = time.perf_counter()
        lane.submit(Call(Rows(1, cells=cells), "short", door, None, deadline=began + 0.05))
        lane.submit(Call(Rows(1, cells=cells), "long", door, None, deadline=began + 60))
        with pytest.raises(TooLate):
            lane.submit(Call(Rows(1, cells=cells), "gone", door, None, deadline=began - 1))
        while "short" not in door.refused:
            await asyncio.sleep(0.005)
        assert door.order == []
        assert isinstance(door.refused["short"], TooLate)
        while not lane.idle:
            await asyncio.sleep(0.005)
        assert door.order == ["under way", "long"]
        assert sum(model.batches) == 3
        assert plane.series()[0].counters.late == 2

    told(first, 0.4, story, batch={"budget": "30s"})


def test_calls_that_wait_for_more_than_half_of_the_budget_press(first: Made) -> None:
    async def story(plane: DataPlane, model: Laborious) -> None:
        leash, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        supervised = Supervised(leash, plane, lambda listener: asyncio.sleep(0))

        def pressed() -> bool:
            return supervised._standing(0.0).pressed

        with leash, other:
            await plane.infer("e", columns(first, 0))
            assert not pressed()
            lane = plane.endpoint("e").lane("")
            door = Answers()
            cells = first.frame.iloc[0].tolist()
            lane.submit(Call(Rows(1, cells=cells), "under way", door, None))
            await asyncio.sleep(0)
            assert lane.waiting == 0 and not lane.idle
            assert not pressed()
            for n in range(4):  # with that under way and one more, six batches of half a second
                lane.submit(Call(Rows(1, cells=cells), str(n), door, None))
            assert pressed()
            assert plane.series()[0].counters.shed == 0
            while not lane.idle:
                await asyncio.sleep(0.005)
            assert not pressed()
            assert (len(door.order), door.refused) == (5, {})

    told(first, 0.5, story, batch={"max_rows": 1, "budget": "5s"})


def test_urgent_calls_go_first(first: Made) -> None:
    async def story(plane: DataPlane, model: Laborious) -> None:
        await plane.infer("e", columns(first, 0))
        lane = plane.endpoint("e").lane("")
        door = Answers()
        cells = first.frame.iloc[0].tolist()
        for name, priority in (("running", 0), ("c", 9), ("b", 0), ("a", 1), ("a2", 1)):
            lane.submit(Call(Rows(1, cells=cells), name, door, None, priority=priority))
            await asyncio.sleep(0.01)
        while not lane.idle:
            await asyncio.sleep(0.005)
        assert door.order == ["running", "a", "a2", "b", "c"]

    told(first, 0.1, story, batch={"max_rows": 1, "budget": "30s"})


def test_batches_wait_for_more_rows_only_when_asked_and_run_at_once_when_full(first: Made) -> None:
    async def story(plane: DataPlane, model: Laborious) -> None:
        lane = plane.endpoint("e").lane("")
        door = Answers()
        cells = first.frame.iloc[0].tolist()
        for n in range(3):
            lane.submit(Call(Rows(1, cells=cells), f"thin {n}", door, None))
            await asyncio.sleep(0.01)
        assert door.order == []
        while len(door.order) < 3:
            await asyncio.sleep(0.005)
        assert model.batches == [3]
        for n in range(8):
            lane.submit(Call(Rows(1, cells=cells), f"full {n}", door, None))
        assert lane.waiting == 8
        await asyncio.sleep(0)
        while len(door.order) < 11:
            await asyncio.sleep(0.001)
        assert model.batches == [3, 8]

    told(first, 0.0001, story, batch={"max_rows": 8, "wait": "300ms"})


def test_calls_with_other_params_are_never_in_one_batch(first: Made) -> None:
    async def story(plane: DataPlane, model: Laborious) -> None:
        await plane.infer("e", columns(first, 0))
        lane = plane.endpoint("e").lane("")
        door = Answers()
        cells = first.frame.iloc[0].tolist()
        for n, params in enumerate([b"", b"a", b"b", b"a", b"", b"b", b"a"]):
            rows = Rows(1, cells=cells)
            if params:
                lane.submit_with_params(CallWithParams(params, rows, str(n), door, None))
            else:
                lane.submit(Call(rows, str(n), door, None))
        while len(door.order) < 7:
            await asyncio.sleep(0.001)
        assert list(zip(model.params[1:], model.batches[1:], strict=True)) == [(b"", 2), (b"a", 3), (b"b", 2)]
        assert door.order == ["0", "4", "1", "3", "6", "2", "5"]
        for n in range(3):
            lane.submit(Call(Rows(1, cells=cells), f"plain {n}", door, None))
        while len(door.order) < 10:
            await asyncio.sleep(0.001)
        assert (model.params[-1], model.batches[-1]) == (b"", 3)

    told(first, 0.0001, story, batch={"wait": "300ms"})


@pytest.mark.parametrize("most", [1, 3])
def test_as_many_batches_of_a_slow_model_run_at_once_as_asked(first: Made, most: int) -> None:
    async def story(plane: DataPlane, model: Laborious) -> None:
        await plane.infer("e", columns(first, 0))
        work = []
        for row in range(4):
            work.append(asyncio.create_task(plane.infer("e", columns(first, row))))
            await asyncio.sleep(0.01)
        await asyncio.gather(*work)
        assert model.most_at_once == most

    told(first, 0.2, story, concurrency=most)


def test_answers_are_kept_counted_and_forgotten_by_a_swap(first: Made, second: Made) -> None:
    async def story(plane: DataPlane, model: Laborious) -> None:
        for _ in range(3):
            for row in range(4):
                answer = await plane.infer("e", columns(first, row))
                assert first.probability is not None
                assert np.allclose(answer.columns["probability"], first.probability[row], atol=1e-5)
        assert sum(model.batches) == 4
        assert plane.series()[0].counters.hits == 8
        assert plane.series()[0].counters.requests == 12
        route = Route(version=2, package="q", weight=1.0, mode="stable")
        swapped = [replace_routes(one, route) for one in asked(cache={"rows": 100})]
        await asyncio.to_thread(plane.apply, swapped, Ready(q=second.loaded()))
        answer = await plane.infer("e", columns(first, 0))
        assert second.probability is not None
        assert np.allclose(answer.columns["probability"], second.probability[0], atol=1e-5)

    told(first, 0.001, story, cache={"rows": 100})


def replace_routes(wanted: Wanted, route: Route) -> Wanted:
    return Wanted(endpoint=wanted.endpoint, model=wanted.model, routes=(route,), settings=wanted.settings)


def test_redacted_errors_show_where_and_not_what(first: Made) -> None:
    async def story(plane: DataPlane, model: Laborious) -> None:
        wrong = {**columns(first, 0), "mean radius": ["my secret"]}
        with pytest.raises(Invalid) as refused:
            await plane.infer("e", wrong)
        assert [problem.path for problem in refused.value.problems] == ["inputs.mean radius[0]"]
        assert "secret" not in str(refused.value)
        with pytest.raises(NotFound) as missing:
            await plane.infer("e", columns(first, 0), version="nonesuch")
        assert "nonesuch" in str(missing.value)
        assert "nonesuch" not in str(plane.shown("e", missing.value))
        assert plane.shown("other", missing.value) is missing.value

    told(first, 0.0, story, errors="redacted")
