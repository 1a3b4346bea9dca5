"""Who is let in, who goes first, who is given up: the queue, the cost it goes by, and the cache."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from serving_kit import Made

from modelkeep.core.errors import Overloaded, TooLate
from modelkeep.formats.batch import Batch as Blocks
from modelkeep.serve.cache import Cache
from modelkeep.serve.calls import Call, CallWithParams
from modelkeep.serve.columns import Inputs, Rows
from modelkeep.serve.cost import Cost
from modelkeep.serve.limits import Limits
from modelkeep.serve.queueing import Queue
from modelkeep.serve.turns import WINDOW, Turns


def call(count: int = 1, *, priority: int = 0, deadline: float | None = None, name: str = "") -> Call:
    return Call(Rows(count, cells=[]), name, door=None, sink=None, deadline=deadline, priority=priority)  # type: ignore[arg-type]


def queue(budget: float, per_row: float) -> Queue[Call]:
    """A queue whose batches take ``per_row`` seconds a row and nothing else."""
    cost = Cost()
    for rows in (1, 8, 64) * 40:
        cost.observe(rows, rows * per_row)
    found: Queue[Call] = Queue("e", Limits(budget=budget), cost)
    found.in_loop = False
    return found


@given(
    fixed=st.floats(1e-5, 1.0),
    per_row=st.floats(1e-7, 1e-2),
    sizes=st.lists(st.integers(1, 500), min_size=80, max_size=120),
)
@settings(max_examples=60, deadline=None)
def test_the_cost_of_a_batch_is_learned(fixed: float, per_row: float, sizes: list[int]) -> None:
    sizes = [*sizes, 1, 500] * 2
    cost = Cost()
    for rows in sizes:
        cost.observe(rows, fixed + per_row * rows)
    expected = fixed + per_row * 250
    assert expected / 2 < cost.estimate(250) < expected * 2
    within = cost.rows_within(fixed + per_row * 100)
    assert within == 1 or fixed + per_row * within < 4 * (fixed + per_row * 100)


def test_one_stall_does_not_change_the_picture_and_batches_do_not_leap() -> None:
    cost = Cost()
    assert cost.estimate(1) == float("inf")
    for _ in range(50):
        cost.observe(1, 1e-3)
    assert cost.rows_within(1.0) == 8
    cost.observe(1, 30.0)
    assert cost.estimate(1) < 3e-3


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 40)), max_size=60), st.integers(1, 50))
@settings(max_examples=200, deadline=None)
def test_every_call_let_in_comes_out_once_the_urgent_first(given: list[tuple[int, int]], most: int) -> None:
    waiting = queue(budget=1e6, per_row=1e-9)
    for place, (priority, count) in enumerate(given):
        assert not waiting.put(call(count, priority=priority, name=str(place)))
    out: list[Call] = []
    while waiting.calls:
        calls, rows = waiting.take(most)
        assert calls
        assert rows == sum(one.rows.count for one in calls)
        assert rows <= most or len(calls) == 1
        out += calls
    assert waiting.rows == 0
    assert [int(one.id) for one in out] == sorted(range(len(given)), key=lambda place: given[place][0])


def test_calls_that_cannot_be_answered_within_the_budget_are_refused() -> None:
    waiting = queue(budget=0.117, per_row=0.01)
    for _ in range(7):
        assert not waiting.put(call())
    with pytest.raises(Overloaded) as refused:
        waiting.put(call())
    assert 0 < refused.value.retry_after < 1
    assert waiting.full(perf_counter()) is not None
    waiting.take(5)
    assert waiting.full(perf_counter()) is None
    assert not waiting.put(call())


def test_the_batch_under_way_counts() -> None:
    waiting = queue(budget=0.117, per_row=0.01)
    waiting.free_at = perf_counter() + 60
    with pytest.raises(Overloaded) as refused:
        waiting.put(call())
    assert 50 < refused.value.retry_after < 61


def test_a_version_slower_than_its_budget_answers_one_while_one_waits() -> None:
    waiting = queue(budget=0.001, per_row=0.5)
    assert not waiting.put(call())
    assert not waiting.put(call())
    with pytest.raises(Overloaded):
        waiting.put(call())


def test_an_urgent_call_takes_the_place_of_the_last_least_urgent_one() -> None:
    waiting = queue(budget=0.117, per_row=0.01)
    for name, priority in zip("abcdefg", (5, 9, 5, 9, 5, 5, 5), strict=True):
        assert not waiting.put(call(name=name, priority=priority))
    assert [one.id for one in waiting.put(call(name="first", priority=1))] == ["d"]
    assert [one.id for one in waiting.put(call(2, name="second", priority=1))] == ["b", "g"]
    with pytest.raises(Overloaded):
        waiting.put(call(priority=9))
    assert [one.id for one in waiting.take(1000)[0]] == ["first", "second", "a", "c", "e", "f"]


def test_deadlines() -> None:
    waiting = queue(budget=10, per_row=1e-4)
    now = perf_counter()
    with pytest.raises(TooLate):
        waiting.put(call(deadline=now - 1))
    waiting.put(call(deadline=now + 1, name="soon"))
    waiting.put(call(deadline=now + 100, name="later"))
    waiting.put(call(name="any time"))
    assert waiting.give_up(now) == []
    assert [one.id for one in waiting.give_up(now + 2)] == ["soon"]
    assert [one.id for one in waiting.calls] == ["later", "any time"]
    assert waiting.rows == 2


def test_what_urgent_calls_keep_waiting_is_given_up_after_the_budget() -> None:
    waiting = queue(budget=0.5, per_row=1e-4)
    waiting.put(call(name="low", priority=9))
    waiting.put(call(name="high", priority=1))
    assert waiting.outwaited(perf_counter()) == []
    assert {one.id for one in waiting.outwaited(perf_counter() + 1)} == {"low", "high"}


def test_what_cannot_be_answered_in_time_any_more_is_given_up_only_where_others_are_refused() -> None:
    waiting = queue(budget=0.5, per_row=1e-3)
    waiting.put(call(10))
    waiting.put(call(330))
    late = perf_counter() + 0.6
    assert waiting.outwaited(late) == [], "a machine that stalled answers late"
    with pytest.raises(Overloaded):
        waiting.put(call(40))
    assert waiting.outwaited(perf_counter()) == []
    assert len(waiting.outwaited(perf_counter() + 0.3)) == 2, "their batch would end too late"
    assert waiting.rows == 0


def test_what_took_longer_than_expected_makes_room_smaller_and_is_forgotten() -> None:
    waiting = queue(budget=1.0, per_row=1e-3)
    waiting.put(call(500))
    (one,), _ = waiting.take(1000)
    waiting.answered(one, one.began + 0.25)
    assert waiting.bias == 1.0
    waiting.answered(one, one.began + 2.0)
    assert 1.0 < waiting.bias < 2.0
    with pytest.raises(Overloaded):
        for _ in range(7):
            waiting.put(call(100))
    assert waiting.rows < 600
    for _ in range(200):
        waiting.answered(call(1), perf_counter())
    assert waiting.bias == 1.0
    waiting.take(1000)
    for _ in range(6):
        assert not waiting.put(call(100))


def test_every_batch_costs_what_a_batch_costs() -> None:
    cost = Cost()
    for rows in (1, 10, 100) * 40:
        cost.observe(rows, 0.01 + 1e-5 * rows)
    waiting: Queue[Call] = Queue("e", Limits(budget=1.0, max_rows=10), cost)
    waiting.take(10)
    assert waiting.excess(0.0, 100, 100, 10) - waiting.excess(0.0, 0, 0, 10) == pytest.approx(0.1, rel=0.2)


def test_large_calls_are_let_in_before_anything_is_known_of_large_batches() -> None:
    cost = Cost()
    cost.observe(1, 1e-4)
    waiting: Queue[Call] = Queue("e", Limits(budget=1.0), cost)
    for _ in range(2):
        for _ in range(8):
            assert not waiting.put(call(500))
        waiting.take(cost.rows_within(0.25))
        waiting.take(16_384)


def test_what_stands_in_sockets_counts() -> None:
    turns = Turns()
    waiting = Queue("e", Limits(budget=0.1), queue(budget=0.1, per_row=1e-4).cost, turns)
    waiting.take(10)
    assert waiting.surely(1) and waiting.full(perf_counter()) is None
    turns.standing = 0.02
    assert not waiting.surely(1) and waiting.full(perf_counter()) is None
    turns.standing = 0.04
    assert waiting.full(perf_counter()) is not None


def test_only_what_stands_over_several_turns_is_a_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("modelkeep.serve.turns.perf_counter", lambda: now)

    async def story() -> None:
        nonlocal now
        turns = Turns()

        async def turn(takes: float, sleeps: float = 0.0) -> float:
            """One turn that is at work for so long, after the loop has slept."""
            nonlocal now
            now += sleeps
            turns.begin()
            assert not turns.over
            turns.worked(now, now + takes)
            now += takes
            await asyncio.sleep(0)
            assert turns.over
            return turns.standing

        assert [await turn(takes) for takes in (0.001, 0.5, 0.001, 0.001, 0.001, 0.001)] == pytest.approx(
            [0.0] * 4 + [0.001] * 2
        )
        for _ in range(WINDOW):
            await turn(0.05)
        assert await turn(0.05) == pytest.approx(0.05)
        assert await turn(0.05, sleeps=1.0) == 0.0, "a loop that sleeps has nothing to read"
        for _ in range(WINDOW):
            now += 0.3
            turns.worked(now - 0.001, now)  # woken by a thread, with nothing to read meanwhile
            assert await turn(0.0) == 0.0 or turns.standing < 0.01

    asyncio.run(story())


@given(
    st.lists(st.tuples(st.sampled_from([b"", b"a", b"b"]), st.integers(1, 6)), max_size=30),
    st.integers(1, 12),
)
@settings(max_examples=200, deadline=None)
def test_a_batch_is_of_equal_params_and_nobody_overtakes_his_like(
    waiting: list[tuple[bytes, int]], most: int
) -> None:
    line = queue(1000.0, 1e-6)
    calls: list[Call] = [
        CallWithParams(params, Rows(count, cells=[]), str(place), None, None)
        if params
        else call(count, name=str(place))
        for place, (params, count) in enumerate(waiting)
    ]
    line.varied = any(params for params, _ in waiting)
    for one in calls:
        line.put(one)
    taken: list[Call] = []
    while line.calls:
        head = line.calls[0]
        batch, rows = line.take(most)
        assert batch[0] is head, "who came first goes first"
        assert len({one.params for one in batch}) == 1
        assert rows == sum(one.rows.count for one in batch)
        assert rows <= most or len(batch) == 1
        assert line.rows == sum(one.rows.count for one in line.calls)
        taken += batch
    assert line.take(most) == ([], 0)
    assert not line.varied, "calls without params are looked at no more"
    assert sorted(map(id, taken)) == sorted(map(id, calls))
    for params in (b"", b"a", b"b"):
        mine = [one for one in calls if one.params == params]
        assert [one for one in taken if one.params == params] == mine


# the cache


class Counting:
    """A model that says how many rows it was given."""

    def __init__(self, made: Made) -> None:
        self.inner = made.loaded().model
        self.rows = 0

    def predict(self, inputs: Blocks) -> dict[str, Any]:
        self.rows += inputs.rows
        return dict(self.inner.predict(inputs))


def stacked(inputs: Inputs, made: Made, rows: list[int]) -> Blocks:
    part = made.frame.iloc[rows].astype(object).where(made.frame.iloc[rows].notna(), None)
    return inputs.stack([inputs.named({name: part[name].tolist() for name in inputs.names})])


@given(
    st.lists(st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=4), min_size=1, max_size=6), max_size=8)
)
@settings(max_examples=40, deadline=None)
def test_what_is_kept_answers_as_the_model_does(mixed: Made, batches: list[list[list[int]]]) -> None:
    inputs, model, cache = mixed.loaded().inputs, Counting(mixed), Cache(1000, 1 << 20)
    seen: set[tuple[int, ...]] = set()
    for requests in batches:
        batch = stacked(inputs, mixed, [row for request in requests for row in request])
        before = model.rows
        outputs, hits, computed = cache.predict(batch, [len(request) for request in requests], model.predict)
        fresh = [request for request in requests if tuple(request) not in seen]
        assert computed == model.rows - before == sum(map(len, fresh))
        assert hits == len(requests) - len(fresh)
        seen.update(map(tuple, requests))
        expected = model.inner.predict(batch)
        assert list(outputs["label"]) == list(expected["label"])
        assert np.allclose(outputs["probability"], expected["probability"], atol=1e-6)


def test_the_cache_stays_within_its_bounds_and_forgets_the_oldest(first: Made) -> None:
    inputs, model, cache = first.loaded().inputs, Counting(first), Cache(10, 1 << 20)
    for row in [*range(10), 0, *range(10, 15)]:
        cache.predict(stacked(inputs, first, [row]), [1], model.predict)
    assert cache.rows == 10
    assert cache.predict(stacked(inputs, first, [0]), [1], model.predict)[1] == 1
    assert cache.predict(stacked(inputs, first, [1]), [1], model.predict)[1] == 0
    cache.predict(stacked(inputs, first, list(range(20))), [20], model.predict)
    assert cache.rows == 10
    small = Cache(1000, 2000)
    for row in range(30):
        small.predict(stacked(inputs, first, [row]), [1], model.predict)
        assert small.size <= 2000
    assert 0 < small.rows < 30


def test_params_belong_to_what_is_kept(first: Made) -> None:
    inputs, model, cache = first.loaded().inputs, Counting(first), Cache(1000, 1 << 20)
    for params, computed in ((b"", 2), (b"a", 2), (b"b", 2), (b"a", 0), (b"", 0)):
        batch = stacked(inputs, first, [0, 1])
        batch.params = params
        assert cache.predict(batch, [1, 1], model.predict)[2] == computed
    assert stacked(inputs, first, [0, 1]).take([1]).params == b""
    batch.params = b"c"
    assert batch.take([1]).params == b"c", "what is not kept is asked with its params"
    turned = structs.replace(inputs.signature, inputs=inputs.signature.inputs[::-1])
    for shadow in (inputs, Inputs(turned)):
        assert shadow.again(batch).params == b"c", "so is a version in the shadow"
