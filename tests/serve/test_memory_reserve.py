"""What is left of the machine is watched: models that rest go when it is too little, those with traffic never."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from graph_kit import graph_folder
from hypothesis import given
from hypothesis import strategies as st
from serving_kit import Home, Worker, worker

from modelkeep.app import serve
from modelkeep.core import machine
from modelkeep.core.errors import Invalid
from modelkeep.registry import models
from modelkeep.serve import pressure
from modelkeep.store.blobs import put_tree

MB = 1 << 20
LIMIT = 1000 * MB
EACH = 4


@dataclass
class Model:
    used: float
    taken: int


@given(
    left=st.integers(0, 200),
    wanted=st.integers(0, 200),
    models=st.lists(st.builds(Model, st.floats(0, 100), st.integers(0, 50)), max_size=20),
)
def test_the_oldest_go_and_no_more_than_needed(left: int, wanted: int, models: list[Model]) -> None:
    now = 100.0
    gone = pressure.chosen(left, wanted, models, now)
    stay = [one for one in models if not any(one is other for other in gone)]
    assert all(now - one.used >= pressure.REST for one in gone)
    assert all(one.used <= other.used for one in gone for other in stay)
    assert not gone or left + sum(one.taken for one in gone[:-1]) < wanted
    enough = left + sum(one.taken for one in gone) >= wanted
    assert enough or all(now - one.used < pressure.REST for one in stay)


def test_a_reserve_is_a_share_or_bytes() -> None:
    assert pressure.reserve("5%", 1000) == 50
    assert pressure.reserve("2.5 %".replace(" ", ""), 1000) == 25
    assert pressure.reserve("123456", 1000) == 123456
    assert pressure.reserve("0", 1000) == 0
    for wrong in ("", "much", "-1", "100%", "5.5", "5%%", "\u0665"):
        with pytest.raises(Invalid, match=r"MODELKEEP_MODELS_RESERVE: is .* expected a share of the machine"):
            pressure.reserve(wrong, 1000)


def test_a_reserve_that_is_none_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(pressure.SETTING, "a lot")
    with pytest.raises(Invalid, match="'a lot'"):
        serve.Doors("127.0.0.1", 0, 0)


class Group:
    """A control group's folder, as the kernel writes it."""

    def __init__(self, root: Path) -> None:
        self._folder = root / "sys/fs/cgroup/box"
        self._folder.mkdir(parents=True)
        (root / "proc/self").mkdir(parents=True)
        (root / "proc/self/cgroup").write_text("0::/box\n")
        (root / "proc/meminfo").write_text(f"MemTotal: {64 << 20} kB\nMemAvailable: {32 << 20} kB\n")
        (self._folder / "memory.max").write_text(f"{LIMIT}\n")
        (self._folder / "memory.stat").write_text(f"anon 1\ninactive_file {100 * MB}\n")
        self.left(500)

    def left(self, megabytes: int) -> None:
        (self._folder / "memory.current").write_text(f"{LIMIT - (megabytes - 100) * MB}\n")


def test_what_is_left_is_the_least_of_machine_and_groups(tmp_path: Path) -> None:
    group = Group(tmp_path)
    assert machine.available(tmp_path) == 500 * MB
    group.left(0)
    assert machine.available(tmp_path) == 0
    (tmp_path / "proc/meminfo").write_text("MemAvailable: 7 kB\n")
    group.left(400)
    assert machine.available(tmp_path) == 7 << 10
    assert 0 < machine.available() <= machine.memory()


def asked(found: Worker, version: int) -> float:
    inputs = [{"name": name, "shape": [1], "datatype": "FP64", "data": [1.0]} for name in ("a", "b")]
    response = found.client.post(f"/v2/models/e/versions/{version}/infer", json={"inputs": inputs})
    assert response.status_code == 200, response.text
    value: float = response.json()["outputs"][0]["data"][0]
    return value


def loaded(health: dict[str, Any]) -> set[int]:
    return {one["version"] for one in health["endpoints"][0]["routes"] if one["loaded"]}


def test_a_serving_process_lets_go_what_rests_and_keeps_what_is_routed_to(tmp_path: Path) -> None:
    home, group = Home(tmp_path / "home"), Group(tmp_path / "machine")
    packages = [
        put_tree(home.blobs, {path: files.path / path for path in files})
        for files in (graph_folder(tmp_path / str(number), float(number), EACH) for number in (1, 2, 3))
    ]
    home.serve("e", (1, packages[0], 1.0, "stable"), deploy={"versions": "all"})

    for package in packages:
        home.db.write(
            lambda conn, package=package: models.register(
                conn,
                "e-model",
                run_id="",
                package=package,
                lineage=None,
                evaluation={},
                runtime="onnx",
                note="",
                now=1.0,
            )
        )
    with worker(home, machine=tmp_path / "machine") as found:
        found.until(lambda health: len(health["endpoints"][0]["routes"]) == 3)
        assert [asked(found, version) for version in (1, 2, 3)] == [2.0, 4.0, 6.0]
        assert loaded(found.health()) == {1, 2, 3}
        group.left(48)  # of the 50 that 5 % are; one model takes 4
        found.until(lambda health: loaded(health) == {1, 3})  # the one asked longest ago
        group.left(60)
        assert asked(found, 2) == 4.0  # it comes back
        group.left(10)
        found.until(lambda health: loaded(health) == {1})  # both, and not the one with traffic
        assert asked(found, 1) == 2.0
        told = found.client.get("/metrics").text
        assert 'modelkeep_unloads_total{reason="pressure"} 3' in told
        assert 'modelkeep_unloads_total{reason="budget"} 0' in told
        assert "unloaded" in found.process.told()
        group.left(500)
        assert asked(found, 3) == 6.0
