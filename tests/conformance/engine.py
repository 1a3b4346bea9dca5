"""What every engine promises. Subclass ``EngineSuite`` with an ``engine`` fixture; all its tests must pass."""

from __future__ import annotations

import importlib
import os
import secrets
import socket
import sys
import threading
import time
import traceback
from functools import partial
from threading import Lock

import numpy as np
import pyarrow as pa
import pytest

from conformance.parts import (
    begin,
    die,
    die_once,
    divide,
    fail_as_user,
    hold,
    mebibytes,
    reach,
    refuse,
    rows,
    slow_when_small,
    slowly,
    square,
    total,
    wait_for_second,
)
from modelkeep.core.errors import Invalid, ModelkeepError, Refused, Unavailable, UserCodeFailed
from modelkeep.core.plugins import load_function
from modelkeep.engines import versions
from modelkeep.engines.opening import open_engine
from modelkeep.spec.declaration import Resources
from small import until


class Steps:
    """Progress that is remembered."""

    def __init__(self) -> None:
        self.told: list[tuple[str, float, float | None]] = []

    def step(self, name: str, done: float, total: float | None = None, note: str = "") -> None:
        self.told.append((name, done, total))


class EngineSuite:
    """The promises of ``core.ports.Engine``.

    Attributes:
        many: Parts of a stream that must not be held whole.
    """

    many = 1000

    def test_results_keep_the_order_of_the_parts(self, engine):
        assert list(engine.map(slow_when_small, range(9))) == list(range(9))

    def test_no_parts_no_results(self, engine):
        assert list(engine.map(square, [])) == []

    def test_parts_may_be_a_stream_that_is_not_held_whole(self, engine):
        drawn = 0

        def stream():
            nonlocal drawn
            for value in range(self.many):
                drawn += 1
                yield value

        results = engine.map(square, stream())
        assert next(results) == 0
        assert drawn <= engine.slots() * 8 + 1
        assert sum(results) == sum(value * value for value in range(self.many))

    def test_two_maps_may_be_under_way_at_once(self, engine):
        pairs = zip(engine.map(square, range(12)), engine.map(slow_when_small, range(12)), strict=True)
        assert list(pairs) == [(value * value, value) for value in range(12)]

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

    def test_workers_reach_this_machine_where_the_engine_says(self, engine):
        word = secrets.token_bytes(16)
        with socket.create_server((engine.host, 0)) as listener:

            def answer():
                while True:
                    try:
                        listener.accept()[0].sendall(word)
                    except OSError:
                        return

            threading.Thread(target=answer, daemon=True).start()
            address = listener.getsockname()
            assert list(engine.map(partial(reach, address), [word] * 4)) == [True] * 4
            listener.shutdown(socket.SHUT_RDWR)

    def test_progress_hears_of_every_part(self, engine):
        steps = Steps()
        assert list(engine.map(square, [1, 2, 3], progress=steps, name="squares")) == [1, 4, 9]
        assert steps.told == [("squares", 1, 3), ("squares", 2, 3), ("squares", 3, 3)]
        assert list(engine.map(square, iter([1]), progress=steps)) == [1]
        assert steps.told[-1] == ("parts", 1, None), "how many a stream holds is not known"

    def test_who_stops_asking_cancels_the_rest(self, engine, tmp_path):
        results = engine.map(partial(begin, str(tmp_path)), range(10_000))
        assert next(results) == 0
        results.close()
        assert list(engine.map(square, [3])) == [9], "and the engine works on"
        assert len(list(tmp_path.iterdir())) <= engine.slots() * 8 + 1

    def test_ctrl_c_comes_through(self, engine):
        def interrupted():
            yield 1
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            list(engine.map(square, interrupted()))
        assert list(engine.map(square, [3])) == [9]


class LostWorkerSuite:
    """For engines whose workers are processes of their own."""

    def test_what_a_lost_worker_held_is_done_again(self, engine, tmp_path):
        assert list(engine.map(partial(die_once, str(tmp_path)), range(12))) == list(range(12))

    def test_a_part_that_always_kills_is_named_after_a_few_tries(self, engine):
        results = engine.map(die, range(8))
        assert [next(results) for _ in range(3)] == [0, 1, 2], "its neighbours are done all the same"
        with pytest.raises(Unavailable, match="a worker died"):
            next(results)
        assert list(engine.map(square, [2])) == [4], "and the engine works on"

    def test_work_that_cannot_be_sent_says_so(self, engine):
        with pytest.raises(Invalid, match="cannot be sent to another process"):
            list(engine.map(square, [Lock()]))

    def test_a_part_that_is_far_slower_than_the_others_is_begun_twice(self, engine, tmp_path):
        assert list(engine.map(partial(wait_for_second, str(tmp_path)), range(6))) == list(range(6))

    def test_large_objects_are_not_sent_with_every_part(self, engine):
        handle = engine.put(np.ones(4_000_000))
        assert len(engine.pack(partial(total, handle), 0).content) < 2_000
        assert list(engine.map(partial(total, handle), [0, 1])) == [2e6, 2e6]
        assert [len(made) for made in engine.map(mebibytes, [3, 1])] == [3 << 20, 1 << 20]


class StoppedSuite:
    """For engines that can stop a part that has begun."""

    def test_what_nobody_waits_for_makes_room_for_what_follows(self, engine, tmp_path):
        held = [engine.submit(engine.pack(partial(hold, str(tmp_path)), part)) for part in range(6)]
        until(lambda: list(tmp_path.glob("began*")), limit=120)
        for running in held:
            running.cancel()
        assert list(engine.map(square, range(4))) == [0, 1, 4, 9]
        until(partial(still, tmp_path), limit=20)
        assert not list(tmp_path.glob("ended*")), "nobody waited for the end of what was cancelled"


def still(folder):
    """Whether nobody touches files there; to be asked again and again."""
    told = [{path: path.stat().st_mtime_ns for path in folder.iterdir()} for _ in range(2) if not time.sleep(0.5)]
    return told[0] == told[1]


class RemoteSuite(LostWorkerSuite, StoppedSuite):
    """For engines on other machines: fixtures ``address``, an ``engine`` there, ``lose`` to kill a machine."""

    def test_functions_need_no_name(self, engine):
        offset = 7
        assert list(engine.map(lambda value: value + offset, [1, 2])) == [8, 9]

    def test_the_users_own_modules_travel_with_the_work(self, engine, address, tmp_path):
        """The newest code counts, also for workers that have seen an older one."""
        for factor in (2, 3):
            (tmp_path / "own_steps.py").write_text(
                f"from own_constants import FACTOR\ndef scaled(x):\n    return x * FACTOR + {factor}\n"
            )
            (tmp_path / "own_constants.py").write_text(f"FACTOR = {factor}\n")
            for name in ("own_steps", "own_constants"):
                sys.modules.pop(name, None)
            importlib.invalidate_caches()
            scaled = load_function("own_steps:scaled", base=tmp_path, path="features")
            with open_engine(address, code=tmp_path) as own:
                assert list(own.map(scaled, [1, 10])) == [2 * factor, 11 * factor]

    def test_a_worker_of_another_version_is_refused_with_its_first_part(self, engine):
        terms = engine._terms
        engine._terms = terms._replace(versions=(*dict(terms.versions, numpy="1.9.0").items(),))
        try:
            with pytest.raises(Refused, match=r"numpy 1\.9\.0 here and \d"):
                list(engine.map(square, [1]))
        finally:
            engine._terms = terms

    def test_a_worker_of_another_version_is_told_when_the_engine_is_opened(self, engine, address, monkeypatch):
        """The workers are as they are; this process says that it has something else."""
        real, this = versions.report, os.getpid()
        monkeypatch.setattr(
            versions, "report", lambda: {**real(), "numpy": "1.9.0"} if os.getpid() == this else real()
        )
        with pytest.raises(Refused, match=r"numpy 1\.9\.0 here and \d"):
            open_engine(address, limit=60)

    @pytest.mark.parametrize("needs", [{"cpu": 4096}, {"memory": "400TB"}, {"gpu": 1}], ids=str)
    def test_resources_that_no_machine_has_are_refused_by_the_field_and_without_waiting(
        self, engine, address, needs
    ):
        [(field, asked)] = needs.items()
        told = (
            rf"resources.{field}: no \w+ of {address} has (any|more than \S+) \w+, and one part asks for {asked}"
        )
        with pytest.raises(Refused, match=told) as refused:
            open_engine(address, resources=Resources(**needs), limit=600)
        assert refused.value.hint.startswith("ask for less, or ")

    def test_a_machine_is_lost_in_the_middle_and_the_result_is_still_right(self, engine, lose):
        """Last, for the machine does not come back."""
        handle = engine.put(np.arange(1000.0))
        results = engine.map(slowly, range(24))
        found = [next(results) for _ in range(3)]
        lose()
        assert [*found, *results] == [value * value for value in range(24)]
        assert sum(engine.map(partial(total, handle), range(2))) == 499_500.0, "what was shared is still there"
