"""Several real serving processes on one port: up, down, to zero, killed; no connection and no count is lost."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from isolated_kit import sleeper
from load import Load
from serving_kit import ROOT, Home, Made, tensor

from modelkeep.app import fleet
from modelkeep.app.fleet import Bounds, Fleet
from modelkeep.core.errors import Unavailable
from modelkeep.store.blobs import put_tree

PATH = "/v2/models/tumours/infer"


def until(said: Callable[[], bool], limit: float = 20.0) -> None:
    end = time.monotonic() + limit
    while not said():
        assert time.monotonic() < end
        time.sleep(0.02)


class Running:
    """A fleet whose bounds the test moves."""

    def __init__(self, home: Home, bounds: Bounds) -> None:
        self.home = home
        self.wanted = bounds
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        arguments = ["--home", str(home.path), "--database", home.url, "--blobs", home.blobs_url]
        arguments += ["--port", str(self.port), "--capture-every", "0.1"]
        self.fleet = Fleet(
            "modelkeep.app.serving", arguments, host="127.0.0.1", port=self.port, bounds=lambda: self.wanted
        )

    def asks(self, request: object) -> int:
        """Status of one request over a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("POST", PATH, json.dumps(request))
            return connection.getresponse().status
        finally:
            connection.close()

    @property
    def pids(self) -> list[int]:
        return [member.process.pid for member in self.fleet.members]

    def serving(self, count: int, limit: float = 20.0) -> None:
        """Wait until so many processes hold all the sockets between them."""

        def holds() -> bool:
            slots = [member.slots for member in self.fleet.members if not member.retiring]
            return (
                len(self.fleet.members) == count
                and all(slots)
                and len(set().union(*slots)) == sum(map(len, slots))
            )

        until(holds, limit)

    def metrics(self) -> float:
        """Requests that whoever answers has counted."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=20) as answer:
            return counted(answer.read().decode())

    def under_load(self, made: Made, connections: int, rows: int = 1) -> AbstractContextManager[Load]:
        bodies = [json.dumps(tensor(made, range(row, row + rows))).encode() for row in range(50)]
        return self.loaded(PATH, bodies, connections)

    @contextmanager
    def loaded(self, path: str, bodies: list[bytes], connections: int) -> Iterator[Load]:
        load = Load(self.port, path, bodies)
        loop = asyncio.new_event_loop()
        stop = asyncio.Event()

        async def drive() -> None:
            for n in range(connections):
                await load.connect(n)
            await stop.wait()
            load.going = False
            await asyncio.sleep(0.3)

        thread = threading.Thread(target=lambda: loop.run_until_complete(drive()))
        thread.start()
        try:
            yield load
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join()
            loop.close()


@pytest.fixture
def running(home: Home, first: Made, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Bounds], Running]]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    home.serve("tumours", (1, home.keep(first), 1.0, "stable"))
    made: list[Running] = []

    def start(bounds: Bounds) -> Running:
        made.append(Running(home, bounds))
        return made[-1]

    yield start
    for one in made:
        one.fleet.stop()


def test_processes_come_go_and_die_under_load_and_nothing_is_lost(
    running: Callable[[Bounds], Running], first: Made
) -> None:
    found = running(Bounds(1, 3, 600))
    found.serving(1)
    with found.under_load(first, 12) as load:
        found.wanted = Bounds(2, 3, 600)
        found.serving(2)
        # the kernel chooses whose a connection becomes, so there must be new ones until each has had one
        until(
            lambda: (
                found.asks(tensor(first, [0])) == 200
                and all(member.standing.requests > 0 for member in found.fleet.members)
            )
        )
        found.wanted = Bounds(1, 1, 600)
        found.serving(1)
        before = len(load.latencies)
        until(lambda: len(load.latencies) > before + 100)
        assert load.failed == []
    assert load.failed == []


def test_connections_to_a_killed_process_are_taken_by_another(
    running: Callable[[Bounds], Running], first: Made
) -> None:
    found = running(Bounds(2, 2, 600))
    found.serving(2)
    os.kill(found.pids[0], signal.SIGKILL)
    for row in range(40):  # the kernel still spreads connections over all the sockets
        assert found.asks(tensor(first, [row])) == 200
    found.serving(2)
    assert found.fleet.starts == 3


def test_a_process_without_models_gets_connections_only_when_no_other_has_any(
    running: Callable[[Bounds], Running], first: Made, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = running(Bounds(1, 2, 600))
    found.serving(1)
    monkeypatch.setattr(fleet, "PATIENCE", 0.0)
    database, away = home.path / "modelkeep.db", home.path / "away.db"
    database.rename(away)
    (home.path / "serve" / "state.json").unlink()
    found.wanted = Bounds(2, 2, 600)
    until(lambda: len(found.pids) == 2 and found.fleet.members[1].standing.busy > 0)
    assert [found.asks(tensor(first, [row])) for row in range(20)] == [200] * 20
    assert not found.fleet.members[1].slots
    found.fleet.members[0].process.kill()
    assert found.asks(tensor(first, [0])) == 503  # it says so itself
    away.rename(database)
    until(lambda: found.asks(tensor(first, [0])) == 200)


def test_without_requests_there_is_no_process_and_the_first_request_waits_for_one(
    running: Callable[[Bounds], Running], first: Made
) -> None:
    found = running(Bounds(0, 1, 0.5))
    assert found.pids == []
    for _ in range(2):
        assert found.asks(tensor(first, [3])) == 200
        assert len(found.pids) == 1
        until(lambda: found.pids == [])
    assert found.fleet.starts == 2


def counted(text: str) -> float:
    return sum(
        float(line.split()[-1]) for line in text.splitlines() if line.startswith("modelkeep_requests_total{")
    )


def test_whoever_is_scraped_tells_of_all_also_of_those_that_ended(
    running: Callable[[Bounds], Running], first: Made
) -> None:
    found = running(Bounds(2, 2, 600))
    found.serving(2)
    for row in range(30):
        assert found.asks(tensor(first, [row])) == 200
    until(lambda: found.metrics() == 30)
    found.wanted = Bounds(1, 1, 600)
    found.serving(1)
    assert found.metrics() == 30
    assert found.asks(tensor(first, [0])) == 200
    assert found.metrics() == 31


def test_load_starts_a_second_process(
    running: Callable[[Bounds], Running], first: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "BUSY", 0.2)  # other work on the machine leaves less than it would take
    monkeypatch.setattr(fleet, "PRESSED_FOR", 0.3)
    monkeypatch.setattr(fleet, "SETTLE", 0.5)
    found = running(Bounds(1, 2, 600))
    found.serving(1)
    with found.under_load(first, 8, 500) as load:
        found.serving(2)
    assert load.failed == []


def test_requests_that_wait_start_a_second_process_which_ends_after_quiet(
    running: Callable[[Bounds], Running],
    first: Made,
    home: Home,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fleet, "BUSY", 1000.0)  # so that nothing but waiting can start one
    monkeypatch.setattr(fleet, "PRESSED_FOR", 0.3)
    monkeypatch.setattr(fleet, "SETTLE", 0.5)
    files, digest = sleeper(tmp_path / "sleeper")
    deploy = {"batch": {"budget": "1s", "max_rows": 1}}
    home.serve("sleeper", (1, put_tree(home.blobs, files), 1.0, "stable"), trust=[digest], deploy=deploy)
    found = running(Bounds(1, 2, 1.0))
    found.serving(1)
    request = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP64", "data": [0.2]}]}
    with found.loaded("/v2/models/sleeper/infer", [json.dumps(request).encode()], 6):
        found.serving(2, 60)
    assert found.fleet.starts == 2
    # nothing asks for fewer: it is only that there is little to do
    end, told = time.monotonic() + 60, set()
    while len(found.pids) > 1:
        told.add(found.asks(tensor(first, [0])))
        assert time.monotonic() < end
    found.serving(1)
    assert told == {200}
    assert found.fleet.starts == 2 and found.fleet.bounds == Bounds(1, 2, 1.0)


def test_a_port_that_is_taken_is_refused(home: Home) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(Unavailable, match="cannot listen"):
            Fleet("modelkeep.app.serving", [], host="127.0.0.1", port=other.getsockname()[1])
