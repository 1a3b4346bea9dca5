"""``kill -9`` at random moments of the tracking server under sixteen writers: what was acknowledged is there."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import random
import signal
import threading
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from forks import Forked, Forks
from modelkeep.registry.verify import verify
from modelkeep.store.blobs import open_blobs
from modelkeep.store.database import Database
from small import until

WRITERS = 16
_ASKED = os.environ.get("MODELKEEP_CHAOS_KILLS")
KILLS = {"sqlite": int(_ASKED or 40), "postgresql": int(_ASKED or 10)}
"""How many kills; the variable is for more of them than every run of the tests has time for."""
MOST = 80
"""Before a kill the server acknowledges up to so many things, however fast the machine is."""
SEED = int(os.environ.get("MODELKEEP_CHAOS_SEED", "20261121"))

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(max(600, 10 * int(_ASKED or 0)))]


@dataclass
class Told:
    """What the server acknowledged, by what identifies it; and batches of which nobody knows."""

    runs: dict[str, str] = field(default_factory=dict)
    metrics: set[tuple[str, str, float]] = field(default_factory=set)
    params: set[tuple[str, str, str]] = field(default_factory=set)
    tags: set[tuple[str, str, str]] = field(default_factory=set)
    versions: set[tuple[str, int]] = field(default_factory=set)
    artifacts: dict[tuple[str, str], bytes] = field(default_factory=dict)
    unknown: set[tuple[str, str]] = field(default_factory=set)

    @property
    def count(self) -> int:
        return sum(map(len, (self.runs, self.metrics, self.params, self.tags, self.versions, self.artifacts)))


class Server:
    """The tracking server: killed and started again, each time on a port that was free."""

    def __init__(self, forks: Forks, folder: Path, env: dict[str, str]) -> None:
        self.port = 0
        self.writers: list[Writer] = []
        self._forks, self._folder, self._env = forks, folder, env
        self._process: Forked | None = None

    def start(self) -> None:
        words = ["up", "--no-serve", "--no-loop", "--port", "0", "--json"]
        process = self._process = self._forks.run(words, self._folder, self._env)

        def told() -> str:
            assert not process.ended.is_set(), process.told()
            line, end, _ = process.out.read_text().partition("\n")
            return line if end else ""

        address = json.loads(until(told, limit=120, pause=0.005))["control"]
        self.port = int(address.rpartition(":")[2])

    def acknowledges(self, more: int) -> None:
        """Wait until the writers were told of so many more things that they are done."""
        enough = self.acknowledged + more
        until(lambda: self.acknowledged >= enough, limit=120, pause=0.001)

    @property
    def acknowledged(self) -> int:
        return sum(writer.told.count for writer in self.writers)

    def end(self, number: signal.Signals) -> int:
        assert self._process is not None
        self.port = 0
        self._process.send(number)
        return self._process.wait()


class Writer(threading.Thread):
    """Does one thing after another, forever, on one connection."""

    def __init__(self, number: int, server: Server, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.told = Told()
        self.number, self._server, self._halt = number, server, stop
        self._count = 0
        self._run = ""
        self._model = ""
        self._line: http.client.HTTPConnection | None = None
        self._chance = random.Random(SEED + number)
        self.failures: list[str] = []

    def run(self) -> None:
        doings = (self._batch, self._metric, self._param, self._tag, self._version, self._artifact, self._end)
        while not self._halt.is_set():
            try:
                if not self._run:
                    self._begin()
                self._count += 1
                self._chance.choice(doings)()
            except (OSError, http.client.HTTPException):
                if self._line is not None:
                    self._line.close()
                self._line = None
                self._halt.wait(0.01)
            except AssertionError as error:
                self.failures.append(str(error))

    def ask(self, method: str, path: str, content: Any) -> dict[str, Any]:
        if self._line is None:
            port = self._server.port
            if not port:
                raise ConnectionRefusedError("it is not there")
            self._line = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self._line.request(method, f"/api/2.0/{path}", body, {"content-type": "application/json"})
        answer = self._line.getresponse()
        said = answer.read()
        assert answer.status == 200, f"{method} {path}: {answer.status} {said[:300]!r}"
        return dict(json.loads(said))

    def _begin(self) -> None:
        name = f"w{self.number}-{self._count}"
        made = self.ask("POST", "mlflow/runs/create", {"experiment_id": "0", "run_name": name})
        self._run = made["run"]["info"]["run_id"]
        self.told.runs[self._run] = name

    def _end(self) -> None:
        self.ask("POST", "mlflow/runs/update", {"run_id": self._run, "status": "FINISHED"})
        self._run = ""

    def _metric(self) -> None:
        key, value = f"m{self._count}", self._count / 7
        self.ask(
            "POST", "mlflow/runs/log-metric", {"run_id": self._run, "key": key, "value": value, "timestamp": 1}
        )
        self.told.metrics.add((self._run, key, value))

    def _param(self) -> None:
        key = f"p{self._count}"
        self.ask("POST", "mlflow/runs/log-parameter", {"run_id": self._run, "key": key, "value": key})
        self.told.params.add((self._run, key, key))

    def _tag(self) -> None:
        key = f"t{self._count}"
        self.ask("POST", "mlflow/runs/set-tag", {"run_id": self._run, "key": key, "value": key})
        self.told.tags.add((self._run, key, key))

    def _batch(self) -> None:
        run, key = self._run, f"b{self._count}"
        self.told.unknown.add((run, key))
        metrics = [{"key": key, "value": float(step), "timestamp": step, "step": step} for step in range(20)]
        pairs = [{"key": key, "value": key}]
        self.ask(
            "POST", "mlflow/runs/log-batch", {"run_id": run, "metrics": metrics, "params": pairs, "tags": pairs}
        )
        self.told.unknown.discard((run, key))
        self.told.params.add((run, key, key))
        self.told.tags.add((run, key, key))
        self.told.metrics.add((run, key, 19.0))

    def _version(self) -> None:
        if not self._model:
            name = f"model{self.number}-{self._count}"
            self.ask("POST", "mlflow/registered-models/create", {"name": name})
            self._model = name
        made = self.ask("POST", "mlflow/model-versions/create", {"name": self._model, "source": "s3://b/m"})
        self.told.versions.add((self._model, int(made["model_version"]["version"])))

    def _artifact(self) -> None:
        content = hashlib.sha256(f"{self.number} {self._count}".encode()).digest() * 300
        path = f"f{self._count}.bin"
        self.ask("PUT", f"mlflow-artifacts/artifacts/0/{self._run}/artifacts/{path}", content)
        self.told.artifacts[self._run, path] = content


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_what_the_tracking_server_acknowledged_survives(
    database: str, tmp_path: Path, forks: Forks, request: pytest.FixtureRequest
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    url = f"sqlite:///{home}/modelkeep.db" if database == "sqlite" else request.getfixturevalue("postgres_url")
    server = Server(forks, tmp_path, {"MODELKEEP_HOME": str(home), "MODELKEEP_DATABASE": url})
    chance, stop = random.Random(SEED), threading.Event()
    writers = server.writers = [Writer(number, server, stop) for number in range(WRITERS)]
    for writer in writers:
        writer.start()
    try:
        for _ in range(KILLS[database]):
            server.start()
            server.acknowledges(chance.randrange(MOST))
            time.sleep(chance.uniform(0.0, 0.05))
            assert server.end(signal.SIGKILL) == -signal.SIGKILL
        server.start()
        server.acknowledges(MOST)
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    server.end(signal.SIGTERM)
    assert [failure for writer in writers for failure in writer.failures] == []
    assert server.acknowledged > 10 * KILLS[database]
    _prove(writers, url, home)


def _prove(writers: list[Writer], url: str, home: Path) -> None:
    blobs = open_blobs(str(home / "blobs"))
    with closing(Database.open(url)) as db:
        assert verify(db, blobs) == []
        with db.read() as conn:

            def all_of(query: str) -> set[Any]:
                return {tuple(row) for row in conn.execute(text(query))}

            runs = dict(all_of("SELECT run_id, name FROM runs"))
            metrics = all_of(
                "SELECT runs.run_id, latest_metrics.key, value FROM latest_metrics JOIN runs ON runs.id = run"
            )
            points = {
                (run, key): count
                for run, key, count in all_of(
                    "SELECT runs.run_id, key, count(*) FROM metrics JOIN runs ON runs.id = run GROUP BY 1, 2"
                )
            }
            params = all_of("SELECT runs.run_id, params.key, value FROM params JOIN runs ON runs.id = run")
            tags = all_of("SELECT runs.run_id, tags.key, value FROM tags JOIN runs ON runs.id = run")
            versions = all_of("SELECT models.name, version FROM versions JOIN models ON models.id = model")
            files = {
                (run, path): digest
                for run, path, digest in all_of(
                    "SELECT runs.run_id, path, digest FROM run_artifacts JOIN runs ON runs.id = run"
                )
            }
    for told in (writer.told for writer in writers):
        assert told.runs.items() <= runs.items()
        assert told.metrics <= metrics
        assert told.params <= params
        assert told.tags <= tags
        assert told.versions <= versions
        for place, content in told.artifacts.items():
            assert blobs.read(files[place]) == content
        for run, key in told.unknown:  # all of a batch or nothing of it
            whole = (run, key, key) in params
            assert ((run, key, key) in tags, points.get((run, key), 0)) == (whole, 20 if whole else 0)
