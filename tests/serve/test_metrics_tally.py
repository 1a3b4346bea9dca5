"""Counts of several processes, added up by whichever is asked."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from serving_kit import Home, Made, Worker, tensor, worker

from modelkeep.serve.metrics import BOUNDS_MS, Totals, together
from modelkeep.serve.tally import Tally

PROCESS = """
import sys, msgspec
from pathlib import Path
from modelkeep.serve.metrics import Totals
from modelkeep.serve.tally import Tally

lines = msgspec.json.decode(sys.argv[2], type=list[Totals])
tally = Tally(Path(sys.argv[1]), lambda: lines)
tally.start()
tally.tell()
print("counted", flush=True)
sys.stdin.read()
"""


def line(requests: int, version: int = 1, *, pending: int = 0) -> Totals:
    buckets = [requests] * (len(BOUNDS_MS) + 1)
    fields = dict.fromkeys(Totals.__struct_fields__, 0) | {"endpoint": "e", "model": "m", "mode": "stable"}
    fields |= {
        "version": version,
        "requests": requests,
        "pending": pending,
        "buckets": buckets,
        "seconds": requests,
        "sizes": {4: {"count": requests, "input": 0.0, "infer": 2.0, "output": 0.0}},
    }
    return msgspec.convert(fields, Totals)


def process(folder: Path, *lines: Totals) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROCESS, str(folder), msgspec.json.encode(lines).decode()]
    found = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert found.stdout is not None
    assert found.stdout.readline() == "counted\n"
    return found


def end(one: subprocess.Popen[str], *, kill: bool = False) -> None:
    if kill:
        one.kill()
    one.communicate()


def requests(tally: Tally) -> dict[int, int]:
    return {one.version: one.requests for one in tally.elsewhere()}


def test_series_are_added_up() -> None:
    found = together([line(3), line(4), line(5, version=2)])
    assert [(one.version, one.requests, one.seconds, one.buckets[-1]) for one in found] == [
        (1, 7, 7.0, 7),
        (2, 5, 5.0, 5),
    ]
    assert [(one.sizes[4].count, one.sizes[4].infer) for one in found] == [(7, 4.0), (5, 2.0)]


def test_sums_never_shrink_while_anybody_counts(tmp_path: Path) -> None:
    tally = Tally(tmp_path, lambda: [line(1)])
    tally.start()
    try:
        assert tally.elsewhere() == []
        first = process(tmp_path, line(10, pending=4))
        second = process(tmp_path, line(100, pending=1), line(5, version=2))
        assert requests(tally) == {1: 110, 2: 5}
        assert sum(one.pending for one in tally.elsewhere()) == 5
        end(first, kill=True)
        assert requests(tally) == {1: 110, 2: 5}
        assert sum(one.pending for one in tally.elsewhere()) == 1  # nothing waits in a process that is gone
        third = process(tmp_path, line(1000))
        assert requests(tally) == {1: 1110, 2: 5}
        assert len(list(tmp_path.glob("*-[0-9]*.json"))) == 3  # that of the first was put away
        end(second)
        end(third)
        assert requests(tally) == {1: 1110, 2: 5}
    finally:
        tally.stop()


def test_counting_begins_anew_when_nobody_is_left(tmp_path: Path) -> None:
    end(process(tmp_path, line(10)))
    tally = Tally(tmp_path, lambda: [line(1)])
    tally.start()
    tally.stop()
    assert tally.elsewhere() == []


@pytest.mark.parametrize("content", [b"", b"{half", b'[{"endpoint": 1}]', b"\xff"])
def test_files_that_are_no_counts_are_passed_over(tmp_path: Path, content: bytes) -> None:
    tally = Tally(tmp_path, list)
    tally.start()
    name = next(tmp_path.glob("*-[0-9]*.json")).name
    (tmp_path / f"{name.rpartition('-')[0]}-1.json").write_bytes(content)
    assert tally.elsewhere() == []
    tally.stop()


def answered(one: Worker) -> int:
    """Requests that are said to have been answered, whichever process is asked; -1 while two places differ.

    What another process counts may arrive between the two questions.
    """
    stats = one.client.get("/v2/models/tumours/stats").json()["model_stats"]
    said = sum(line["inference_stats"]["success"]["count"] for line in stats)
    line = f'modelkeep_requests_total{{endpoint="tumours",model="tumours-model",version="1",mode="stable"}} {said}'
    return int(said) if line in one.client.get("/metrics").text else -1


def test_whichever_process_is_asked_tells_of_all(home: Home, first: Made) -> None:
    home.serve("tumours", (1, home.keep(first), 1.0, "stable"))
    with worker(home) as left:
        with worker(home) as right:
            for row in range(9):
                assert (left if row % 3 else right).infer("tumours", tensor(first, [row])).status_code == 200
            until(lambda: answered(left) == answered(right) == 9)
            right.stop()
        until(lambda: answered(left) == 9)
        left.infer("tumours", tensor(first, [0]))
        until(lambda: answered(left) == 10)


def until(said: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not said():
        assert time.monotonic() < end
        time.sleep(0.05)
