"""Whose turn it is, in every situation: priority, fair share, room, and nobody waits for ever."""

from __future__ import annotations

import math
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from modelkeep.store.scheduling import AGE, Room, Turn, choose, devices, never, standing

GB = 1e9
TURNS = st.lists(
    st.builds(
        Turn,
        id=st.integers(1, 10_000),
        model=st.sampled_from("abc"),
        priority=st.integers(-3, 3),
        cores=st.sampled_from([0.5, 1.0, 2.0, 8.0]),
        since=st.floats(0, 5 * AGE),
        memory=st.sampled_from([0, 0, 1 * GB, 8 * GB]),
        gpu=st.sampled_from([0, 0, 0.25, 0.5, 1.0, 2.0]),
    ),
    max_size=8,
    unique_by=lambda turn: turn.id,
)
USED = st.dictionaries(st.sampled_from("abc"), st.floats(0, 1e6))
ROOMS = st.builds(
    Room,
    jobs=st.integers(1, 5),
    cores=st.sampled_from([1.0, 4.0, float("inf")]),
    memory=st.sampled_from([2 * GB, 10 * GB]),
    gpus=st.sampled_from([(), ("0",), ("0", "1"), ("0", "1", "2")]),
)
NOW = 5 * AGE


def begun(turns, room):
    """As many of these as may run at once, begun one after the other."""
    running = []
    while found := choose(turns, running, {}, room, NOW):
        turns = [turn for turn in turns if turn != found]
        running.append(replace(found, held=devices(found, running, room)))
    return running


@given(TURNS, TURNS, USED, ROOMS)
def test_room_is_never_exceeded_and_only_one_that_waits_is_chosen(waiting, others, used, room):
    running = begun(others, room)
    found = choose(waiting, running, used, room, NOW)
    if found is None:
        return
    assert found in waiting
    assert len(running) < room.jobs
    together = [*running, found]
    assert sum(turn.cores for turn in together) <= room.cores
    assert sum(turn.memory for turn in together) <= room.memory
    given = devices(found, running, room)
    assert len(given) == math.ceil(found.gpu) and set(given) <= set(room.gpus)
    for name in room.gpus:
        holders = [turn for turn in (*running, replace(found, held=given)) if name in turn.held]
        assert sum(min(1.0, turn.gpu) for turn in holders) <= 1, "no GPU is given away twice"


@given(TURNS, TURNS, USED, ROOMS)
def test_who_goes_ahead_takes_nothing_that_those_before_need(waiting, others, used, room):
    running = begun(others, room)
    line = standing(waiting, running, used, room, NOW)
    found = next((turn for turn, why in line if not why), None)
    if found is None:
        return
    before = [turn for turn, _ in line[: [turn for turn, _ in line].index(found)] if not never(turn, room)]
    assert len(running) + len(before) < room.jobs
    assert sum(turn.cores for turn in (*running, *before, found)) <= room.cores or not before
    assert not before or not found.memory or sum(t.memory for t in (*running, *before, found)) <= room.memory
    assert not (found.gpu and any(turn.gpu for turn in before))


@given(TURNS, TURNS, USED, ROOMS)
def test_everyone_in_the_line_is_told_what_it_waits_for(waiting, others, used, room):
    running = begun(others, room)
    line = standing(waiting, running, used, room, NOW)
    assert sorted(turn.id for turn, _ in line) == sorted(turn.id for turn in waiting)
    for turn, why in line:
        assert why.startswith("resources.") == bool(never(turn, room))


@given(TURNS, USED, ROOMS)
def test_an_idle_machine_always_finds_something_to_do_that_can_be_done(waiting, used, room):
    possible = [turn for turn in waiting if not never(turn, room)]
    assert (choose(waiting, [], used, room, NOW) is None) == (not possible)


@given(TURNS, TURNS, USED, ROOMS, st.randoms())
def test_the_order_in_which_jobs_are_listed_does_not_matter(waiting, running, used, room, random):
    mixed = random.sample(waiting, len(waiting))
    assert choose(mixed, running, used, room, NOW) == choose(waiting, running, used, room, NOW)


@given(TURNS.map(lambda turns: [replace(turn, gpu=0) for turn in turns]).filter(bool), USED)
def test_nobody_of_a_higher_priority_that_waited_as_long_is_passed_over(waiting, used):
    found = choose(waiting, [], used, Room(), NOW)
    assert not any(other.priority > found.priority and other.since <= found.since for other in waiting)


def test_models_take_turns():
    """Of two models that ask all the time, each gets half, whoever asked first."""
    waiting = [Turn(number, "greedy") for number in range(1, 21)] + [
        Turn(number, "modest") for number in range(21, 31)
    ]
    used: dict[str, float] = {}
    order = []
    while waiting:
        turn = choose(waiting, [], used, Room(), 0.0)
        waiting.remove(turn)
        used[turn.model] = used.get(turn.model, 0.0) + 60.0
        order.append(turn.model)
    assert order[:20].count("modest") == 10


def test_what_runs_counts_before_what_ran():
    waiting = [Turn(1, "a"), Turn(2, "b")]
    assert choose(waiting, [Turn(0, "a")], {"b": 1e6}, Room(jobs=2), 0.0).model == "b"


def test_waiting_outweighs_priority_in_the_end():
    urgent, patient = Turn(2, "a", priority=2, since=3 * AGE), Turn(1, "b", since=0.0)
    assert choose([urgent, patient], [], {}, Room(), 3 * AGE) == patient
    early = Turn(2, "a", priority=2, since=AGE)
    assert choose([early, patient], [], {}, Room(), 1.5 * AGE) == early


def test_a_large_job_is_not_overtaken_by_small_ones():
    large, small = Turn(1, "a", cores=4), Turn(2, "b", cores=1)
    busy, room = [Turn(7, "c", cores=2)], Room(jobs=3, cores=4)
    assert [why for _, why in standing([large, small], busy, {}, room, 0.0)] == [
        "cpu: asks for 4, 2 of 4 are free",
        "its turn, after job 1",
    ]
    assert choose([large, small], [], {}, room, 0.0) == large


def test_who_needs_nothing_that_the_next_one_waits_for_goes_ahead():
    room = Room(jobs=4, cores=4, memory=8 * GB, gpus=("0",))
    busy = [Turn(7, "c", gpu=1, held=("0",))]
    learner, small, heavy = Turn(1, "a", gpu=1, memory=6 * GB), Turn(2, "b"), Turn(3, "b", memory=4 * GB)
    wide, other = Turn(4, "b", cores=2), Turn(5, "b", gpu=0.5)
    line = dict(standing([learner, small, heavy, wide, other], busy, {}, room, 0.0))
    assert line[learner] == "gpu: asks for 1, 0 of 1 are free"
    assert line[small] == ""
    assert line[heavy] == line[wide] == "its turn, after job 1"
    assert line[other] == "gpu: asks for 0.5, 0 of 1 are free"


def test_a_large_job_begins_though_small_ones_never_stop_coming():
    """Small jobs of models that used less go before it, until it has waited an hour; then room is kept for it."""
    room, now, running, number = Room(jobs=4, cores=4, memory=8 * GB), 0.0, [], 1
    large = Turn(1, "large", cores=4, memory=8 * GB)
    waiting = [large]
    while large in waiting:
        assert now < 2 * AGE, "it starves"
        now += 60
        running = [(turn, ends) for turn, ends in running if ends > now]
        while len(waiting) < 6:
            number += 1
            waiting.append(Turn(number, f"small {number}", memory=1 * GB, since=now))
        while found := choose(waiting, [turn for turn, _ in running], {"large": 1e6}, room, now):
            waiting.remove(found)
            running.append((found, now + 90 + 60 * (found.id % 4)))
    assert number > 40


def test_what_can_never_be_is_said_with_what_there_is():
    room = Room(jobs=2, cores=4, memory=8 * GB, gpus=("0",))
    assert never(Turn(1, "a", cores=4, memory=8 * GB, gpu=1), room) == ""
    for turn, said in (
        (Turn(1, "a", cores=6), "resources.cpu: one part asks for 6, and this machine has 4"),
        (Turn(1, "a", memory=64 * GB), "resources.memory: one part asks for 64.0 GB, and this machine has 8.0 GB"),
        (Turn(1, "a", gpu=2), "resources.gpu: one part asks for 2, and this machine has 1"),
    ):
        assert never(turn, room) == said
        small = Turn(2, "b")
        assert choose([turn, small], [], {}, room, 0.0) == small, "and it is in nobody's way"


def test_shares_of_a_gpu_are_put_together_so_that_whole_ones_stay_free():
    room = Room(jobs=9, gpus=("0", "1"))
    half = Turn(1, "a", gpu=0.5, held=("1",))
    assert devices(Turn(2, "b", gpu=0.5), [half], room) == ("1",)
    assert devices(Turn(2, "b", gpu=1), [half], room) == ("0",)
    assert devices(Turn(2, "b", gpu=2), [half], room) is None
    assert devices(Turn(2, "b"), [half], room) == ()
    tenths = [Turn(number, "a", gpu=0.1, held=("0",)) for number in range(9)]
    assert devices(Turn(99, "b", gpu=0.1), tenths, Room(gpus=("0",))) == ("0",)
