"""What a machine has, and what its containers leave of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modelkeep.core import machine
from modelkeep.core.machine import Machine, Need


def written(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


GROUPS = {
    "a container": {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "50000 100000"},
    "a service below another": {
        "proc/self/cgroup": "0::/system.slice/up.service",
        "sys/fs/cgroup/system.slice/up.service/cpu.max": "max 100000",
        "sys/fs/cgroup/system.slice/cpu.max": "100000 100000",
    },
    "version 1": {
        "proc/self/cgroup": "4:cpu,cpuacct:/docker/7\n3:memory:/docker/7",
        "sys/fs/cgroup/cpu,cpuacct/docker/7/cpu.cfs_quota_us": "90000",
        "sys/fs/cgroup/cpu,cpuacct/docker/7/cpu.cfs_period_us": "100000",
    },
    "version 1, the group not to be seen": {
        "proc/self/cgroup": "4:cpu:/docker/7",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
    },
}


@pytest.mark.parametrize("files", GROUPS.values(), ids=GROUPS)
def test_a_quota_of_time_is_worth_cores(files, tmp_path):
    assert machine.cores(written(tmp_path, files)) == 1


def test_without_a_quota_all_cores_that_this_process_may_run_on_are_its(tmp_path):
    free = {"proc/self/cgroup": "4:cpu:/\n0::/", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1"}
    for files in ({}, free, {"proc/self/cgroup": "0::/x", "sys/fs/cgroup/x/cpu.max": "max 100000"}):
        assert machine.cores(written(tmp_path, files)) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    "files",
    [
        {"sys/fs/cgroup/memory.max": "5000000"},
        {
            "proc/self/cgroup": "0::/a/b",
            "sys/fs/cgroup/a/b/memory.max": "max",
            "sys/fs/cgroup/a/memory.max": "5000000",
        },
        {"proc/self/cgroup": "3:memory:/d", "sys/fs/cgroup/memory/d/memory.limit_in_bytes": "5000000"},
    ],
)
def test_the_least_limit_of_memory_counts(files, tmp_path):
    whole = machine.memory(tmp_path)
    assert machine.memory(written(tmp_path, files)) == 5_000_000 < whole


def test_gpus_are_those_that_may_be_seen_or_that_the_driver_lists(tmp_path, monkeypatch):
    monkeypatch.delenv(machine.VISIBLE, raising=False)
    assert machine.gpus(tmp_path) == ()
    driver = {f"proc/driver/nvidia/gpus/0000:0{number}:00.0/information": "" for number in (1, 2)}
    written(tmp_path, driver)
    assert machine.gpus(tmp_path) == ("0", "1")
    for said, meant in (
        ("", ()),
        ("3", ("3",)),
        ("1, GPU-8f2a", ("1", "GPU-8f2a")),
        ("0,-1,1", ("0",)),
        ("-1", ()),
    ):
        monkeypatch.setenv(machine.VISIBLE, said)
        assert machine.gpus(tmp_path) == meant


def test_parts_are_counted_by_what_runs_out_first():
    whole = Machine(8, 16e9, ("0", "1"))
    assert whole.parts(Need()) == 8
    assert whole.parts(Need(memory=4e9)) == 4
    assert whole.parts(Need(memory=4e9, gpu=1)) == 2
    assert whole.parts(Need(0.5, gpu=0.4)) == 4, "a GPU holds two of them whole"
    assert whole.parts(Need(), jobs=3) == 2
    assert whole.parts(Need(6), jobs=3) == 1, "more than its share, but it fits"
    assert whole.parts(Need(99)) == 1
    assert whole.parts(Need(), most=12) == 12 and whole.parts(Need(2), most=12) == 4


def test_what_parts_need_together():
    assert Need(2, 1e9).times(3) == Need(6, 3e9)
    assert [Need(gpu=0.4).times(parts).gpu for parts in (1, 2, 3, 4, 5)] == [0.4, 0.8, 2, 2, 3]
    assert Need(gpu=2).times(3).gpu == 6
    assert Need(gpu=0.1).times(10).gpu == 1
