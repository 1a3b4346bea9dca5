"""What every engine promises. Subclass ``EngineSuite`` with an ``engine`` fixture; all its tests must pass.

The functions stand at the top of this module because engines send them to other processes by name.
"""

from __future__ import annotations

import os
import signal
import time
import traceback
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from modelkeep.core.errors import Invalid, ModelkeepError, Problem, UserCodeFailed


def square(value: int) -> int:
    return value * value


def slow_when_small(value: int) -> int:
    time.sleep(0.05 if value < 2 else 0.0)
    return value


def add(left: int, right: int) -> int:
    return left + right


def widen(left: tuple[int, int], right: tuple[int, int]) -> tuple[int, int]:
    return min(left[0], right[0]), max(left[1], right[1])


def divide(value: int) -> float:
    return 1 / value


def refuse(value: int) -> int:
    if value == 2:
        raise Invalid([Problem("rows[2]", "is wrong"), Problem("rows[3]", "too")], hint="mend it")
    return value


def fail_as_user(value: int) -> int:
    raise UserCodeFailed("the user's function failed", traceback=f"line {value}")


def total(handle, index: int) -> float:
    return float(np.sum(handle()[index::2]))


def rows(handle, column: str) -> int:
    return int(handle().column(column).length())


class EngineSuite:
    """The promises of ``core.ports.Engine``."""

    def test_results_keep_the_order_of_the_parts(self, engine):
        assert list(engine.map(slow_when_small, range(9))) == list(range(9))

    def test_no_parts_no_results(self, engine):
        assert list(engine.map(square, [])) == []

    def test_parts_may_be_a_stream_that_is_not_held_whole(self, engine):
        drawn = 0

        def stream():
            nonlocal drawn
            for value in range(1000):
                drawn += 1
                yield value

        results = engine.map(square, stream())
        assert next(results) == 0
        assert drawn <= 100
        assert sum(results) == sum(value * value for value in range(1000))

    def test_two_maps_may_be_under_way_at_once(self, engine):
        pairs = zip(engine.map(square, range(20)), engine.map(slow_when_small, range(20)), strict=True)
        assert list(pairs) == [(value * value, value) for value in range(20)]

    def test_reduce_merges_all(self, engine):
        assert engine.reduce(add, range(1, 101)) == 5050
        assert engine.reduce(widen, [(value, value) for value in (3, 9, -4, 5, 1)]) == (-4, 9)
        assert engine.reduce(add, [7]) == 7
        with pytest.raises(Invalid, match="nothing to reduce"):
            engine.reduce(add, [])

    def test_an_error_is_the_same_error_with_where_it_happened(self, engine):
        results = engine.map(divide, [1, 0, 2])
        assert next(results) == 1.0
        with pytest.raises(ZeroDivisionError) as caught:
            next(results)
        assert "in divide" in "".join(traceback.format_exception(caught.value))
        assert list(engine.map(square, [3])) == [9], "and the engine works on"

    def test_our_own_errors_keep_what_they_say(self, engine):
        with pytest.raises(Invalid) as caught:
            list(engine.map(refuse, range(4)))
        assert [problem.path for problem in caught.value.problems] == ["rows[2]", "rows[3]"]
        assert caught.value.hint == "mend it"
        with pytest.raises(UserCodeFailed) as failed:
            list(engine.map(fail_as_user, [5]))
        assert failed.value.traceback == "line 5"
        assert isinstance(failed.value, ModelkeepError)

    def test_a_large_object_is_shared(self, engine):
        array = np.arange(1_000_000, dtype=np.float64)
        handle = engine.put(array)
        assert sum(engine.map(partial(total, handle), range(2))) == array.sum()
        table = engine.put(pa.table({"a": range(1000)}))
        assert list(engine.map(partial(rows, table), ["a", "a"])) == [1000, 1000]
        plain = engine.put([1.0, 2.0, 3.0])
        assert list(engine.map(partial(total, plain), [0, 1])) == [4.0, 2.0]


def die_once(folder: str, value: int) -> int:
    """Kills its worker the first time it sees 3."""
    mark = Path(folder) / "died"
    if value == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return value


def die(value: int) -> int:
    if value == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return value


class LostWorkerSuite:
    """For engines whose workers are processes of their own."""

    def test_what_a_lost_worker_held_is_done_again(self, engine, tmp_path):
        assert list(engine.map(partial(die_once, str(tmp_path)), range(12))) == list(range(12))

    def test_a_part_that_always_kills_is_named_after_a_few_tries(self, engine):
        results = engine.map(die, range(8))
        assert [next(results) for _ in range(3)] == [0, 1, 2], "its neighbours are done all the same"
        with pytest.raises(ModelkeepError, match="a worker died"):
            next(results)
        assert list(engine.map(square, [2])) == [4], "and the engine works on"

    def test_work_that_cannot_be_sent_says_so(self, engine):
        with pytest.raises(Invalid, match="cannot be sent to another process"):
            list(engine.map(lambda value: value, [1]))
