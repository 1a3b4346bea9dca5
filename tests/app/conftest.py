"""One ``modelkeep up``, as a real process over a small real model."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from forks import Forked, Forks
from small import Project, until

CHECKED = {"encode": {"columns": ["place"], "method": "onehot", "unseen": "error"}}


@dataclass
class Up:
    """A running ``up``."""

    project: Project
    process: Forked
    control: str
    serving: str
    client: httpx.Client

    def predict(self, **values: object) -> httpx.Response:
        """One row; what is not given is ordinary."""
        row = {"x": 0.5, "z": 0.1, "place": "a", **values}
        kinds = {float: "FP64", str: "BYTES", int: "INT64"}
        inputs = [
            {"name": name, "shape": [1], "datatype": kinds[type(value)], "data": [value]}
            for name, value in row.items()
            if value is not None
        ]
        return self.client.post(f"{self.serving}/v2/models/late/infer", json={"inputs": inputs})

    def get(self, path: str) -> httpx.Response:
        return self.client.get(f"{self.control}{path}")

    def post(self, path: str, **options: object) -> httpx.Response:
        return self.client.post(f"{self.control}{path}", **options)  # type: ignore[arg-type]

    def ready(self) -> bool:
        try:
            return bool(self.client.get(f"{self.serving}/modelkeep/health").json()["ready"])
        except httpx.HTTPError:
            return False

    def stop(self) -> int:
        self.process.send(signal.SIGTERM)
        return self.process.wait(30)


def start(project: Project, forks: Forks, *words: str) -> Up:
    """Start ``up`` on free ports and wait until everything answers."""
    process = forks.run(["up", "--port", "0", "--serve-port", "0", "--json", *words], project.folder)
    until(lambda: process.out.read_text().count("\n") or process.ended.is_set())
    assert not process.ended.is_set(), process.told()
    told = json.loads(process.out.read_text().splitlines()[0])
    found = Up(project, process, told["control"], told["serving"], httpx.Client(timeout=10))
    if told["serving"]:
        until(found.ready)
    return found


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Iterator[Up]:
    """Two versions, the second champion; served."""
    project = Project(Path(tmp_path_factory.mktemp("up")) / "project")
    project.write()
    project.said["features"][2] = CHECKED
    project.declare()
    project.apply()
    project.declare(lambda said: said["train"]["params"].update(C=0.5))
    project.apply()
    found = start(project, forks)
    yield found
    found.client.close()
    assert found.stop() == 0, found.process.told()
