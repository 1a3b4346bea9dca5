"""What every engine promises of ``map_reduce``."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from conformance.parts import add, divide, nest, square
from modelkeep.core.errors import Invalid
from modelkeep.core.here import Here
from small import until

LARGE = 20_000
"""Numbers: 160 KB."""


class Sums(NamedTuple):
    """A sum whose last bits tell the order of adding, and the processes that added."""

    numbers: np.ndarray
    places: tuple[int, ...]


def numbers(part: int) -> Sums:
    return Sums(np.random.default_rng(part).normal(size=LARGE) * 10.0 ** (part % 7), ())


def plus(left: Sums, right: Sums) -> Sums:
    return Sums(left.numbers + right.numbers, (*left.places, *right.places, os.getpid()))


def plus_unless_last(left: Sums, right: Sums) -> Sums:
    if len(left.places) + len(right.places) > 9:
        raise OverflowError("too many")
    return plus(left, right)


def plus_dies_once(folder: str, left: Sums, right: Sums) -> Sums:
    try:
        (Path(folder) / "died").touch(exist_ok=False)
    except FileExistsError:
        return plus(left, right)
    os._exit(9)


def numbers_slowly(handle, folder: str, part: int) -> Sums:
    (Path(folder) / f"{part} {time.time_ns()}").touch()
    time.sleep(0.05 if part < 20 else 0.5)
    return Sums(numbers(part).numbers + handle()[0], ())


def words(length: int, part: int) -> str:
    return str(part) * length


class MergingSuite:
    """For any engine: a fixture ``engine``."""

    @pytest.mark.parametrize("count", [1, 21, 65])
    def test_sums_are_the_same_to_the_last_bit_as_here(self, engine, count):
        found, here = (one.map_reduce(numbers, range(count), plus) for one in (engine, Here()))
        assert found.numbers.tobytes() == here.numbers.tobytes()
        assert len(found.places) == count - 1

    def test_neighbours_are_merged_first_whatever_their_size(self, engine):
        work = partial(words, 35_000)  # those of two figures are kept where they are
        for parts in (range(12), [*range(10, 40), *range(10)]):
            assert engine.map_reduce(work, parts, nest) == Here().map_reduce(work, parts, nest)
        assert engine.map_reduce(square, range(21), add) == 2870

    def test_no_parts_are_refused(self, engine):
        with pytest.raises(Invalid, match="nothing to reduce"):
            engine.map_reduce(square, [], add)

    def test_what_a_part_or_a_merge_raises_is_raised(self, engine):
        with pytest.raises(ZeroDivisionError):
            engine.map_reduce(divide, [*range(1, 12), 0], add)
        with pytest.raises(OverflowError, match="too many"):
            engine.map_reduce(numbers, range(20), plus_unless_last)
        assert engine.map_reduce(square, range(4), add) == 14, "and the engine works on"


class KeptSuite(MergingSuite):
    """For engines on two machines: also ``another``, which starts a third one."""

    def test_large_results_are_merged_at_the_workers_and_small_ones_here(self, engine):
        merged = engine.map_reduce(numbers, range(20), plus)
        assert os.getpid() not in merged.places
        few = engine.map_reduce(numbers, range(8), plus)
        assert set(few.places) == {os.getpid()}

    def test_a_worker_that_dies_while_it_merges_is_lost_to_nobody(self, engine, tmp_path):
        found = engine.map_reduce(numbers, range(20), partial(plus_dies_once, str(tmp_path)))
        assert found.numbers.tobytes() == Here().map_reduce(numbers, range(20), plus).numbers.tobytes()

    def test_what_a_lost_machine_kept_is_made_anew(self, engine, another, tmp_path):
        shared = engine.put([0.5])
        work = partial(numbers_slowly, shared, str(tmp_path))
        with ThreadPoolExecutor(1) as pool:
            with another():
                until(lambda: engine.count() > 2, limit=60)
                found = pool.submit(engine.map_reduce, work, range(30), plus)
                until(lambda: len(list(tmp_path.iterdir())) >= 20, limit=60)
            there = found.result(180)
        (tmp_path / "here").mkdir()
        here = Here().map_reduce(partial(numbers_slowly, lambda: [0.5], str(tmp_path / "here")), range(30), plus)
        assert there.numbers.tobytes() == here.numbers.tobytes()
        until(lambda: engine.count() == 2, limit=120)

    def test_ctrl_c_ends_it(self, engine, tmp_path):
        work = partial(numbers_slowly, engine.put([0.5]), str(tmp_path))

        def interrupted():
            until(lambda: len(list(tmp_path.iterdir())) >= 2, limit=60)
            os.kill(os.getpid(), 2)

        threading.Thread(target=interrupted).start()
        with pytest.raises(KeyboardInterrupt):
            engine.map_reduce(work, range(400), plus)
        assert engine.map_reduce(square, range(4), add) == 14, "and the engine works on"
