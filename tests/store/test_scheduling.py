"""Whose turn it is, in every situation: priority, fair share, room, and nobody waits for ever."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from modelkeep.store.scheduling import AGE, Room, Turn, choose

TURNS = st.lists(
    st.builds(
        Turn,
        id=st.integers(1, 10_000),
        model=st.sampled_from("abc"),
        priority=st.integers(-3, 3),
        cores=st.sampled_from([0.5, 1.0, 2.0, 8.0]),
        since=st.floats(0, 5 * AGE),
    ),
    max_size=8,
    unique_by=lambda turn: turn.id,
)
USED = st.dictionaries(st.sampled_from("abc"), st.floats(0, 1e6))
ROOMS = st.builds(Room, jobs=st.integers(1, 5), cores=st.sampled_from([1.0, 4.0, float("inf")]))
NOW = 5 * AGE


@given(TURNS, TURNS, USED, ROOMS)
def test_room_is_never_exceeded_and_only_one_that_waits_is_chosen(waiting, running, used, room):
    found = choose(waiting, running, used, room, NOW)
    if found is None:
        return
    assert found in waiting
    assert len(running) < room.jobs
    assert not running or sum(turn.cores for turn in [*running, found]) <= room.cores


@given(TURNS, USED)
def test_an_idle_machine_always_finds_something_to_do(waiting, used):
    assert (choose(waiting, [], used, Room(cores=1.0), NOW) is None) == (not waiting)


@given(TURNS, TURNS, USED, ROOMS, st.randoms())
def test_the_order_in_which_jobs_are_listed_does_not_matter(waiting, running, used, room, random):
    mixed = random.sample(waiting, len(waiting))
    assert choose(mixed, running, used, room, NOW) == choose(waiting, running, used, room, NOW)


@given(TURNS.filter(bool), USED)
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
    assert choose([large, small], [Turn(0, "c", cores=2)], {}, Room(jobs=3, cores=4), 0.0) is None
    assert choose([large, small], [], {}, Room(jobs=3, cores=2), 0.0) == large, (
        "alone it runs, whatever it asks for"
    )
