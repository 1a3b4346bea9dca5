"""``kill -9`` at random moments of ``up`` under traffic: what was answered holds, and the rollout goes on."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest

from forks import Forked, Forks, alive, children_of
from modelkeep.core.clock import FileClock
from modelkeep.monitor import ingest
from modelkeep.registry import captures, endpoints, events, findings, models
from small import Project, until

KILLS = 25
SEED = int(os.environ.get("MODELKEEP_CHAOS_SEED", "20261122"))
START = 1.7e9
STEP = 601.0
VERSION = ["version.registered", "rollout.started", "rollout.advanced", "version.promoted"]

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400)]


class Traffic:
    """Predictions, and their labels, for as long as something answers; remembers what was acknowledged."""

    def __init__(self) -> None:
        self.answered: set[str] = set()
        self.labelled: dict[str, str] = {}
        self.count = 0
        self._at: Forked | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def towards(self, process: Forked) -> None:
        self._at = process

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with httpx.Client(timeout=5) as client:
            while not self._stop.wait(0.005):
                at = addresses(self._at)
                try:
                    if at:
                        self._predict_and_label(client, at)
                except httpx.HTTPError:
                    self._stop.wait(0.02)

    def _predict_and_label(self, client: httpx.Client, at: dict[str, str]) -> None:
        self.count += 1
        name = f"p{self.count}"
        inputs = [("x", "FP64", 0.5), ("z", "FP64", self.count % 7 / 7), ("place", "BYTES", "a")]
        body = {
            "id": name,
            "inputs": [{"name": n, "shape": [1], "datatype": kind, "data": [value]} for n, kind, value in inputs],
        }
        answer = client.post(f"{at['serving']}/v2/models/late/infer", json=body)
        if answer.status_code == 200:
            self.answered.add(name)
            value = self.count % 2
            label = {"prediction_id": name, "label": value}
            posted = client.post(f"{at['control']}/api/modelkeep/labels", json=label)
            if posted.status_code == 200:
                self.labelled[name] = str(value)


def addresses(process: Forked | None) -> dict[str, str]:
    if process is None or process.ended.is_set():
        return {}
    lines = process.out.read_text().splitlines()
    return dict(json.loads(lines[0])) if lines and lines[0].endswith("}") else {}


def start(project: Project, forks: Forks, clock: FileClock) -> Forked:
    words = ["up", "--port", "0", "--serve-port", "0", "--json"]
    return forks.run(words, project.folder, {"MODELKEEP_CLOCK": f"file:{clock.path}"})


def rollout_under_way(project: Project) -> bool:
    with project.opened() as keep, keep.db.read() as conn:
        served = endpoints.get(conn, "late")
        return served is not None and served.rollout is not None


def test_up_is_killed_and_goes_on(project: Project, forks: Forks, monkeypatch: pytest.MonkeyPatch) -> None:
    luck = random.Random(SEED)
    clock = FileClock(project.folder / "clock")
    clock.set(START)
    monkeypatch.setenv("MODELKEEP_CLOCK", f"file:{clock.path}")
    project.write(count=300)
    project.declare(lambda said: said.update(deploy={"rollout": ["canary 20% 10m", "canary 50% 10m"]}))
    project.apply()
    traffic, moments, made = Traffic(), [], 1
    try:
        for number in range(KILLS):
            if not rollout_under_way(project):
                made += 1
                project.declare(lambda said, made=made: said["train"]["params"].update(C=1.0 + made / 50))
                assert project.apply().version == made
            process = start(project, forks, clock)
            traffic.towards(process)
            if number % 2:  # half of them at any moment, half of them once it serves
                answered = len(traffic.answered)
                until(lambda answered=answered: len(traffic.answered) > answered + 3)
            delay = luck.uniform(0, 1.0)
            time.sleep(delay / 2)
            clock.set(clock.now() + STEP)
            time.sleep(delay / 2)
            children = children_of(process.pid)
            assert process.kill() == -signal.SIGKILL, process.told()
            moments.append(f"{delay:.3f}")
            until(lambda children=children: not any(alive(child) for child in children))
        print(f"seed {SEED}, killed after seconds: {', '.join(moments)}; {len(traffic.answered)} answers")
        process = start(project, forks, clock)
        traffic.towards(process)
        _end(project, clock)
    finally:
        traffic.close()
    process.send(signal.SIGTERM)
    assert process.wait() == 0, process.told()
    _is_whole(project, forks, traffic, made)


def _end(project: Project, clock: FileClock) -> None:
    """Let the last rollout come to its end."""

    def ended() -> bool:
        clock.set(clock.now() + STEP)
        time.sleep(0.3)
        return not rollout_under_way(project)

    until(ended)


def _is_whole(project: Project, forks: Forks, traffic: Traffic, made: int) -> None:
    with project.opened() as keep:
        ingest.take_in(keep.home / "capture", keep.db, keep.blobs)
        with keep.db.read() as conn:
            assert events.verify(conn) == []
            labels = captures.labels_for(conn, sorted(traffic.labelled))
            parts = captures.between(conn, "late", 0.0, float("inf"))
            windows = findings.windows(conn, "late", limit=100_000)
            assert models.alias(conn, "late", "champion") == made
            assert models.alias(conn, "late", "challenger") is None
            happened = {
                version: [event.kind for event in events.history(conn, f"late@{version}")]
                for version in range(1, made + 1)
            }
            happened = {
                version: [kind for kind in kinds if not kind.startswith("finding.")]
                for version, kinds in happened.items()
            }
        ids = [
            name
            for part in parts
            if part.digest
            for name in ingest.rows_of(keep.blobs, part, ["prediction_id"]).column(0).to_pylist()
        ]
    assert labels == traffic.labelled
    assert len(traffic.labelled) > KILLS
    assert [name for name, times in Counter(ids).items() if times > 1] == []
    assert set(ids) <= {f"p{number}" for number in range(1, traffic.count + 1)}
    # a serving process whose parent is killed is asked to end, and writes what it holds before it does
    assert traffic.answered - set(ids) == set()
    seen = Counter((window.version, window.mode, window.start) for window in windows)
    assert [window for window, times in seen.items() if times > 1] == []
    assert happened.pop(1) == ["version.registered", "version.promoted"]
    assert happened == dict.fromkeys(range(2, made + 1), VERSION)
    assert list((Path(project.folder) / ".modelkeep" / "capture").glob("*.bad")) == []
    code, told = forks.done(["doctor", "--json"], project.folder)
    assert code == 0, told
