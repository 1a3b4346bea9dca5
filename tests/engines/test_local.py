"""The local engine keeps the promises of the port, in processes and inline."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))  # workers import the suite's functions by name from here

from conformance.engine import EngineSuite, LostWorkerSuite  # noqa: E402
from conformance.linear import LinearSuite  # noqa: E402
from conformance.merging import MergingSuite  # noqa: E402
from conformance.parts import square  # noqa: E402
from conformance.searches import SearchSuite  # noqa: E402
from modelkeep.core import machine  # noqa: E402
from modelkeep.core.errors import Invalid  # noqa: E402
from modelkeep.engines.local import LocalEngine  # noqa: E402


class TestInline(EngineSuite, MergingSuite):
    @pytest.fixture
    def engine(self):
        with LocalEngine(1) as engine:
            yield engine

    def test_functions_need_no_name(self, engine):
        assert list(engine.map(lambda value: value + 1, [1])) == [2]


@pytest.fixture(scope="module")
def processes():
    with LocalEngine(2) as engine:
        yield engine


class TestProcesses(EngineSuite, LostWorkerSuite, MergingSuite, SearchSuite, LinearSuite):
    @pytest.fixture
    def engine(self, processes):
        return processes

    @pytest.fixture
    def opened(self, processes):
        return processes


def pid(_: int) -> int:
    time.sleep(0.02)
    return os.getpid()


def threads(_: int) -> str:
    return os.environ["OMP_NUM_THREADS"]


def gpus(_: int) -> tuple[str, int]:
    time.sleep(0.02)
    return os.environ["CUDA_VISIBLE_DEVICES"], os.getpid()


def test_work_is_spread_over_processes_that_share_the_cores_and_the_gpus():
    with LocalEngine(2, gpus=("3", "5")) as engine:
        pids = set(engine.map(pid, range(20)))
        assert len(pids) == 2
        assert os.getpid() not in pids
        seen = set(engine.map(gpus, range(20)))
        assert {names for names, _ in seen} == {"3", "5"} and len(seen) == 2
        cores = machine.cores()
        assert set(engine.map(threads, range(4))) == {str(max(1, cores // 2))}


def test_closing_ends_the_workers_and_forgets_what_was_shared():
    engine = LocalEngine(2)
    handle = engine.put(list(range(10)))
    folder = engine._folder
    (first, *_) = engine.map(pid, range(2))
    assert folder.exists() and handle() == list(range(10))
    engine.close()
    assert not folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)
    assert list(engine.map(square, [3])) == [9], "it starts anew when used again"
    engine.close()


def test_no_worker_outlives_a_killed_owner():
    script = (
        f"import sys; sys.path.insert(0, {str(TESTS / 'engines')!r})\n"
        "import os, signal\n"
        "from test_local import pid, LocalEngine\n"
        "if __name__ == '__main__':\n"
        "    engine = LocalEngine(2)\n"
        "    print(*set(engine.map(pid, range(8))), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=False)
    workers = [int(word) for word in done.stdout.split()]
    assert workers
    until = time.monotonic() + 10
    while time.monotonic() < until and any(alive(worker) for worker in workers):
        time.sleep(0.05)
    assert not any(alive(worker) for worker in workers)


def alive(worker: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{worker}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False


def test_no_workers_is_refused():
    with pytest.raises(Invalid, match="at least 1"):
        LocalEngine(0)
