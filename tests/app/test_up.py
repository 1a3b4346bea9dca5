"""``modelkeep up`` as a real process: it starts, serves, swaps, stops, and says why when it cannot."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from pathlib import Path

import grpc
import httpx
import pytest

from conftest import Up, start
from forks import Forks, alive, children_of
from modelkeep.registry import captures
from small import Project, until


def test_ready_predicts_and_stops_cleanly(project: Project, forks: Forks) -> None:
    project.apply()
    up = start(project, forks)
    answer = up.predict()
    assert answer.status_code == 200, answer.text
    assert answer.json()["model_version"] == "1"
    assert answer.json()["id"]
    told = json.loads((project.folder / ".modelkeep" / "up.json").read_text())
    assert (told["control"], told["serving"], told["pid"]) == (up.control, up.serving, up.process.pid)
    with grpc.insecure_channel(told["grpc"]) as channel:
        assert channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=10) == b"\x08\x01"  # SERVING
    children = children_of(up.process.pid)
    assert len(children) == 1
    assert up.stop() == 0, up.process.told()
    assert not any(alive(child) for child in children)
    for address in (up.control, up.serving):
        with pytest.raises(httpx.ConnectError):
            httpx.get(address)
    assert "Traceback" not in up.process.told()
    again = start(project, forks)
    with project.opened() as keep:

        def taken() -> int:
            with keep.db.read() as conn:
                return captures.total_rows(conn, "late")

        until(lambda: taken() == 1)
    again.process.send(signal.SIGINT)
    assert again.process.wait(30) == 0


def test_a_category_never_seen_is_answered_where_that_is_declared(project: Project, forks: Forks) -> None:
    project.said["features"][2]["encode"]["unseen"] = "ignore"
    project.declare()
    project.apply()
    up = start(project, forks, "--no-loop")
    assert up.predict(place="nowhere").status_code == 200
    assert up.stop() == 0


def test_a_second_up_on_the_same_home_is_told_of_the_first(up: Up, forks: Forks) -> None:
    second = forks.run(["up", "--port", "0", "--serve-port", "0", "--json"], up.project.folder)
    assert second.wait() == 1
    error = json.loads(second.out.read_text())["error"]
    assert error["kind"] == "conflict"
    assert f"process {up.process.pid} is already running modelkeep up" in error["message"]
    assert up.predict().status_code == 200


@pytest.mark.parametrize("option", ["--port", "--serve-port", "--grpc-port"])
def test_a_port_that_is_taken(project: Project, forks: Forks, option: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ports = {"--port": "0", "--serve-port": "0", "--grpc-port": "0"} | {option: str(port)}
        words = [word for pair in ports.items() for word in pair]
        process = forks.run(["up", *words, "--json"], project.folder)
        assert process.wait() == 4
    error = json.loads(process.out.read_text())["error"]
    assert error["kind"] == "unavailable"
    assert f"{option} {port} on 127.0.0.1" in error["message"]
    assert f"{option} 0" in error["hint"]
    assert "Traceback" not in process.told()


def test_a_port_is_for_one_of_them_only(project: Project, forks: Forks) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    process = forks.run(["up", "--port", "0", "--serve-port", port, "--grpc-port", port, "--json"], project.folder)
    assert process.wait() == 4
    assert f"--grpc-port {port} on 127.0.0.1" in json.loads(process.out.read_text())["error"]["message"]


def test_other_machines_are_refused(project: Project, forks: Forks) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.com"):
        process = forks.run(["up", "--host", host, "--json"], project.folder)
        assert process.wait() == 1
        assert "authentication" in json.loads(process.out.read_text())["error"]["message"]
    assert not (project.folder / ".modelkeep").exists()


def test_without_serving_and_without_loop(project: Project, forks: Forks) -> None:
    project.apply()
    up = start(project, forks, "--no-serve", "--no-loop")
    assert up.serving == ""
    assert children_of(up.process.pid) == []
    assert up.get("/api/modelkeep/status").json()["loop"]["ticks"] == 0
    assert up.stop() == 0


def test_a_serving_process_that_dies_is_started_again(project: Project, forks: Forks) -> None:
    project.apply()
    up = start(project, forks)
    (first,) = children_of(up.process.pid)
    os.kill(first, signal.SIGKILL)
    until(lambda: children_of(up.process.pid) not in ([], [first]))
    until(up.ready, told=up.process.told)
    assert up.predict().status_code == 200
    assert up.stop() == 0


def test_a_new_champion_is_swapped_in_under_load_without_a_failure(project: Project, forks: Forks) -> None:
    project.apply()
    up = start(project, forks)
    stop, failed, seen = threading.Event(), [], []

    def drive() -> None:
        body = {
            "inputs": [
                {"name": "x", "shape": [1], "datatype": "FP64", "data": [0.5]},
                {"name": "z", "shape": [1], "datatype": "FP64", "data": [0.1]},
                {"name": "place", "shape": [1], "datatype": "BYTES", "data": ["a"]},
            ]
        }
        with httpx.Client(timeout=20) as client:
            while not stop.is_set():
                try:
                    answer = client.post(f"{up.serving}/v2/models/late/infer", json=body)
                    if answer.status_code == 200:
                        seen.append(answer.json()["model_version"])
                    else:
                        failed.append(answer.text)
                except httpx.HTTPError as error:
                    failed.append(repr(error))

    drivers = [threading.Thread(target=drive) for _ in range(4)]
    for driver in drivers:
        driver.start()
    try:
        for version in (2, 3):
            project.declare(lambda said, version=version: said["train"]["params"].update(C=version / 10))
            code, _ = forks.done(["apply", "--json"], project.folder)
            assert code == 0
            until(lambda version=version: seen and seen[-1] == str(version))
        time.sleep(0.2)
    finally:
        stop.set()
        for driver in drivers:
            driver.join()
    assert failed == []
    assert set(seen) == {"1", "2", "3"}
    assert len(seen) > 100
    assert up.stop() == 0, up.process.told()


def test_a_renewal_runs_by_itself_from_new_rows_to_champion(project: Project, forks: Forks) -> None:
    project.declare(lambda said: said.update(update={"when": ["new_rows >= 100"]}))
    project.apply()
    up = start(project, forks)
    project.write("two", 150, first=10_000)

    def champion() -> int:
        return int(up.get("/api/modelkeep/models/late/versions/champion").json()["version"])

    until(lambda: champion() == 2, limit=90, pause=0.1)
    until(lambda: up.predict().json()["model_version"] == "2")
    kinds = [event["kind"] for event in up.get("/api/modelkeep/events").json()["events"]]
    story = ["data.snapshot", "renewal.started", "version.registered", "version.promoted"]
    assert kinds[2:6] == story
    until(lambda: up.get("/api/modelkeep/jobs").json()[0]["state"] == "done")
    assert up.stop() == 0, up.process.told()
    log = Path(project.folder) / ".modelkeep" / "logs" / "job-1.log"
    assert "Traceback" not in log.read_text()
