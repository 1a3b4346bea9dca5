"""What may happen to the process of a model happens, and nothing else suffers from it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from isolated_kit import forker_of, pid_of, written

from forks import alive, children_of
from modelkeep.core.errors import ModelkeepError, Refused, Unavailable, UserCodeFailed
from modelkeep.formats import adopt, runtimes
from modelkeep.formats.manifest import Folder
from modelkeep.formats.signature import Field
from modelkeep.serve import isolated, isolated_wire
from modelkeep.serve.isolated import IsolatedModel, Terms
from modelkeep.serve.isolated_keeper import Keeper

SCORE = """
import os, sys, time
import numpy as np

def predict(columns):
    x = columns["x"]
    kind = columns["kind"][0]
    if kind == "die":
        os._exit(7)
    if kind == "die once":
        flag = __file__ + ".died"
        if not os.path.exists(flag):
            open(flag, "w").close()
            os.kill(os.getpid(), 9)
    if kind == "hang":
        time.sleep(3600)
    if kind == "raise":
        raise ValueError("no such row: " + str(x[0]))
    if kind == "eat":
        return {"y": x + np.ones(300_000_000).sum()}
    if kind == "few":
        return {"y": x[:1]}
    if kind == "odd":
        return {"y": np.array([object()] * len(x))}
    if kind == "print":
        print("spoken", file=sys.stderr)
    return {"y": x * 2, "text": columns["kind"]}
"""
FIELDS = [Field(name="x", type="float64", required=False), Field(name="kind", type="string", required=False)]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], str]:
    folder = tmp_path_factory.mktemp("function")
    (folder / "score.py").write_text(SCORE)
    sample = {"x": [1.0], "kind": ["fine"]}
    with pytest.raises(Refused) as refused:
        adopt.adopt_function(folder, "score.py", FIELDS, sample)
    digest = refused.value.hint.split()[-1]
    adopt.adopt_function(folder, "score.py", FIELDS, sample, trusted=[digest])
    return dict(Folder(folder)), digest


class Made:
    """Makes models of the package, and ends them."""

    def __init__(self, keeper: Keeper, folder: Path, package: tuple[dict[str, bytes], str]) -> None:
        self.keeper, self.folder, self.package = keeper, folder, package
        self.models: list[IsolatedModel] = []

    def __call__(self, *, limit: float = 60.0, trust: bool = True, **terms: Any) -> IsolatedModel:
        files, digest = self.package
        folder = written(files, self.folder / str(len(self.models)))
        model = IsolatedModel(
            self.keeper,
            "function",
            folder.path,
            runtimes.signature(folder),
            trusted=[digest] if trust else [],
            terms=Terms(**terms),
            limit=limit,
            label="score@1",
        )
        self.models.append(model)
        return model


@pytest.fixture
def made(keeper: Keeper, tmp_path: Path, package: tuple[dict[str, bytes], str]) -> Iterator[Made]:
    found = Made(keeper, tmp_path, package)
    yield found
    for model in found.models:
        model.close()


def rows(kind: str | None = "fine", *values: float) -> dict[str, Any]:
    x = np.array(values or (1.0, 2.0))
    return {"x": x, "kind": np.array([kind] * len(x), dtype=object)}


def fine(model: IsolatedModel) -> bool:
    found = model.predict(rows())
    return found["y"].tolist() == [2.0, 4.0] and found["text"].tolist() == ["fine", "fine"]


def test_no_prediction_fails_while_its_process_is_killed_twenty_times(made: Made) -> None:
    model = made()
    failed: list[Any] = []
    answered = 0
    stop = threading.Event()

    def ask() -> None:
        nonlocal answered
        while not stop.is_set():
            try:
                if not fine(model):
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
    assert model.status()["restarts"] == 20
    assert "SIGKILL" in model.status()["last_end"]


def test_the_program_that_forks_may_be_killed_too(made: Made) -> None:
    model, other = made(), made()
    for last in (False, False, True):
        assert fine(model) and fine(other)
        parent = forker_of(lambda: pid_of(model))
        family = [parent, *children_of(parent)]
        for pid in family if last else [parent]:  # at last with its deputy
            os.kill(pid, signal.SIGKILL)
    assert fine(model) and fine(other)


def test_a_batch_in_a_process_that_dies_is_tried_once_more(made: Made) -> None:
    model = made()
    assert model.predict(rows("die once"))["y"].tolist() == [2.0, 4.0]
    assert model.status()["restarts"] == 1


def test_a_batch_that_kills_is_given_up_after_the_second_process(made: Made) -> None:
    model = made()
    with pytest.raises(ModelkeepError, match=r"score@1 ended while it predicted: exit code 7; it was tried twice"):
        model.predict(rows("die"))
    assert model.status()["restarts"] == 2
    assert fine(model)


def test_what_may_not_be_repeated_is_not(made: Made) -> None:
    model = made(repeatable=False)
    with pytest.raises(ModelkeepError, match=r"ended while it predicted: signal SIGKILL\n"):
        model.predict(rows("die once"))
    assert fine(model)


def test_a_process_that_hangs_is_ended(made: Made) -> None:
    model = made(limit=0.3)
    with pytest.raises(ModelkeepError, match=r"took longer than 0\.3 s for 2 rows"):
        model.predict(rows("hang"))
    assert fine(model)


def test_memory_beyond_the_limit_fails_the_request_and_not_the_process(made: Made) -> None:
    model = made(memory=512 << 20)
    pid = pid_of(model)
    with pytest.raises(ModelkeepError, match="ran out of memory") as failed:
        model.predict(rows("eat"))
    assert "deploy.memory" in failed.value.hint
    assert fine(model)
    assert pid_of(model) == pid


def test_a_process_that_holds_more_than_it_may_is_ended(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(memory=512 << 20)
    first = pid_of(model)
    held = isolated.Process.own_memory
    monkeypatch.setattr(isolated.Process, "own_memory", lambda p: (600 << 20) if p.pid == first else held(p))
    pid_of(model, but=[first])
    assert model.status()["last_end"] == "it held 600 MB, the limit is 512 MB"
    assert fine(model)


def test_errors_cross_as_they_are(made: Made) -> None:
    model = made()
    with pytest.raises(UserCodeFailed, match=r"ValueError: no such row: 5\.0"):
        model.predict(rows("raise", 5.0))
    with pytest.raises(ModelkeepError, match=r"gave 'y' of shape \(1,\) for 2 rows"):
        model.predict(rows("few"))
    assert str(model.predict(rows("odd"))["y"][0]).startswith("<object object")
    with pytest.raises(ModelkeepError, match="not Unicode"):
        model.predict(rows("\ud800"))
    assert model.status()["restarts"] == 0
    with pytest.raises(Refused, match=r"would run the code in score\.py"):
        made(trust=False)


def test_everything_crosses(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated_wire, "KEPT", 1 << 20)
    model = made()
    for given in (np.array([np.nan, np.inf, -0.0]), np.arange(70_000.0)):
        found = model.predict({"x": given, "kind": np.array(["日本 \0", None, ""] * len(given))[: len(given)]})
        np.testing.assert_array_equal(found["y"], given * 2)
        assert found["text"].tolist()[:3] == ["日本 \0", None, ""]
    wide = rows("x" * 3_000_000)
    assert model.predict(wide)["text"].tolist() == wide["kind"].tolist()
    tall = np.arange(300_000.0)
    kinds = np.full(len(tall), "k", dtype=object)
    assert model.predict({"x": tall, "kind": kinds})["y"][-1] == 2 * tall[-1]
    assert model.predict(rows())["y"].tolist() == [2.0, 4.0]


def test_many_threads_share_several_processes(made: Made) -> None:
    model = made(processes=3)
    wrong: list[float] = []

    def ask(number: float) -> None:
        for _ in range(50):
            if model.predict(rows("fine", number, number))["y"].tolist() != [2 * number] * 2:
                wrong.append(number)

    threads = [threading.Thread(target=ask, args=(float(number),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    seen: set[int] = set()
    while len(seen) < 3:  # the first to be ready answers already
        seen.add(pid_of(model, but=seen))


def test_a_model_that_is_closed_or_forgotten_leaves_no_process(made: Made, keeper: Keeper) -> None:
    model = made()
    pid = pid_of(model)
    model.close()
    with pytest.raises(Unavailable):
        model.predict(rows())
    model = made()
    other = pid_of(model)
    made.models.clear()
    del model
    end = time.monotonic() + 10
    while (alive(pid) or alive(other)) and time.monotonic() < end:
        time.sleep(0.01)
    assert not alive(pid) and not alive(other)


def test_processes_end_with_the_one_they_belong_to(made: Made) -> None:
    """Killed by -9 in the middle of a prediction that would take an hour."""
    made()
    code = f"""
import sys, threading, time
sys.path[:0] = {sys.path!r}
from test_isolated_process import *
from modelkeep.formats.manifest import Folder
model = IsolatedModel(Keeper(), "function", Path({str(made.folder / "0")!r}),
    runtimes.signature(Folder(Path({str(made.folder / "0")!r}))), trusted=[{made.package[1]!r}])
threading.Thread(target=model.predict, args=(rows("hang"),), daemon=True).start()
while model.status()["processes"][0]["state"] != "busy":
    time.sleep(0.01)
print(pid_of(model), flush=True)
time.sleep(3600)
"""
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    parent = forker_of(lambda: pid)
    owner.kill()
    owner.wait()
    owner.stdout.close()
    end = time.monotonic() + 10
    while (alive(pid) or alive(parent)) and time.monotonic() < end:
        time.sleep(0.01)
    assert not alive(pid) and not alive(parent)
