"""scikit-learn in a process of its own keeps every promise of the port, and survives what happens to it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving_kit import prices

sys.path.insert(0, str(Path(__file__).parents[1] / "conformance"))
sys.path.insert(0, str(Path(__file__).parents[1] / "formats"))
from runtime import Case, RuntimeSuite
from runtime_cases import as_sklearn, sklearn_case

from modelkeep.formats import runtimes
from modelkeep.formats.batch import Layout
from modelkeep.formats.manifest import Folder
from modelkeep.serve.isolated import IsolatedModel
from modelkeep.serve.isolated_keeper import Keeper

TASKS = ("classification", "regression", "anomaly")


@pytest.fixture(scope="module")
def keeper() -> Iterator[Keeper]:
    found = Keeper()
    yield found
    found.close()


def written(files: dict[str, bytes], folder: Path) -> Folder:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return Folder(folder)


class TestIsolatedSklearn(RuntimeSuite):
    runtime = "sklearn"

    @pytest.fixture(autouse=True)
    def _where(self, tmp_path: Path, keeper: Keeper) -> Iterator[None]:
        self.folder, self.keeper, self.made = tmp_path, keeper, []
        yield
        for model in self.made:
            model.close()

    @pytest.fixture(params=TASKS)
    def case(self, request: pytest.FixtureRequest) -> Case:
        return sklearn_case(request.param)

    def load(self, case: Case) -> IsolatedModel:
        files = written(case.files, self.folder / str(time.monotonic_ns()))
        signature = runtimes.signature(files)
        model = IsolatedModel(self.keeper, self.runtime, files.path, signature, trusted=case.trusted)
        self.made.append(model)
        return model


@pytest.fixture
def model(tmp_path: Path, keeper: Keeper) -> Iterator[IsolatedModel]:
    files = written(as_sklearn(prices().files), tmp_path)
    found = IsolatedModel(keeper, "sklearn", files.path, runtimes.signature(files), label="prices@1")
    yield found
    found.close()


def pid_of(model: IsolatedModel, but: Collection[int] = (), limit: float = 20.0) -> int:
    end = time.monotonic() + limit
    while time.monotonic() < end:
        for process in model.status()["processes"]:
            if process["pid"] and process["pid"] not in but:
                return int(process["pid"])
        time.sleep(0.002)
    raise AssertionError(model.status())


def test_no_prediction_fails_while_its_process_is_killed_twenty_times(model: IsolatedModel) -> None:
    rows = Layout(model.signature).pack({name: np.arange(3.0) for name in "abc"})
    expected = model.predict(rows)["prediction"].tolist()
    failed: list[Any] = []
    answered = 0
    stop = threading.Event()

    def ask() -> None:
        nonlocal answered
        while not stop.is_set():
            try:
                if model.predict(rows)["prediction"].tolist() != expected:
                    failed.append("another answer")
            except Exception as error:
                failed.append(error)
            answered += 1

    asking = threading.Thread(target=ask)
    asking.start()
    seen: set[int] = set()
    try:
        for _ in range(20):
            pid = pid_of(model, but=seen)
            os.kill(pid, signal.SIGKILL)
            before = answered
            seen.add(pid)
            while answered < before + 3 and asking.is_alive():
                time.sleep(0.002)
    finally:
        stop.set()
        asking.join()
    assert failed == []
    assert len(seen) == 20
    assert model.status()["restarts"] == 20
    assert "SIGKILL" in model.status()["last_end"]


def test_the_program_that_forks_may_be_killed_too(model: IsolatedModel, keeper: Keeper) -> None:
    rows = {name: np.zeros(1) for name in "abc"}
    before = model.predict(rows)
    parent = int(Path(f"/proc/{pid_of(model)}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(parent, signal.SIGKILL)
    assert model.predict(rows) == before
