"""Threads keep the promises of the engine port, and who asks for results works too."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

from modelkeep.train.linear.threads import Threads

TESTS = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(TESTS))

from conformance.engine import EngineSuite  # noqa: E402


class TestThreads(EngineSuite):
    @pytest.fixture(params=[1, 2, 5])
    def engine(self, request):
        with Threads(request.param) as engine:
            yield engine


def test_who_asks_is_one_of_the_workers():
    """Three parts that wait for each other are under way at once in three threads, and this is one of them."""
    together = threading.Barrier(3, timeout=60)

    def meet(_: int) -> threading.Thread:
        together.wait()
        return threading.current_thread()

    with Threads(3) as engine:
        seen = list(engine.map(meet, range(3)))
    assert len(set(seen)) == 3
    assert threading.current_thread() in seen


def test_an_error_in_the_own_thread_waits_for_its_turn():
    """Results before it come first, whoever worked on them."""

    def fails(part: int) -> int:
        if part == 3:
            raise ValueError("part 3")
        return part

    with Threads(2) as engine:
        results = engine.map(fails, range(6))
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ValueError, match="part 3"):
            next(results)
