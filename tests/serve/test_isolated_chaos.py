"""A real serving process under load while the processes of a model are killed: no request notices."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from isolated_kit import forker_of
from load import Load
from prometheus_client.parser import text_string_to_metric_families
from serving_kit import Home, Made, Worker, prices, tensor, worker

from forks import alive, children_of
from modelkeep.store.blobs import put_tree

sys.path.insert(0, str(Path(__file__).parents[1] / "formats"))
from runtime_cases import as_sklearn

pytestmark = pytest.mark.chaos
KILLS = 20
PATIENT = {"batch": {"budget": "60s"}}


def apart(found: Worker, endpoint: str) -> dict[str, Any]:
    return next(one["routes"][0]["apart"] for one in found.health()["endpoints"] if one["endpoint"] == endpoint)


def running(found: Worker, endpoint: str, but: set[int]) -> int:
    """A process of the endpoint's model that was not killed yet; waits for it."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        for process in apart(found, endpoint)["processes"]:
            if process["pid"] and process["pid"] not in but:
                return int(process["pid"])
        time.sleep(0.01)
    raise AssertionError(apart(found, endpoint))


async def ask(load: Load, over: threading.Event) -> None:
    """Load until it is over."""
    for number in range(8):
        await load.connect(number)
    while not over.is_set():
        await asyncio.sleep(0.01)
    load.going = False
    await asyncio.sleep(0.2)


def test_nothing_fails_while_processes_of_a_model_are_killed(home: Home, first: Made) -> None:
    """Twenty times -9 on its process, and twice on the program that forks it; another model never waits."""
    made = prices()
    # patient: a machine that is busy elsewhere is no reason to turn a request away
    home.serve("prices", (1, put_tree(home.blobs, as_sklearn(made.files)), 1.0, "stable"), deploy=PATIENT)
    home.serve("tumours", (1, home.keep(first), 1.0, "stable"))
    chosen = random.Random(7)
    with worker(home, ready=False) as found:
        found.until(lambda health: len(health["endpoints"]) == 2, limit=90)
        port = int(found.url.rsplit(":", 1)[1])
        bodies = [json.dumps(tensor(made, [row])).encode() for row in range(50)]
        load = Load(port, "/v2/models/prices/infer", bodies, keep=True)
        over = threading.Event()
        thread = threading.Thread(target=lambda: asyncio.run(ask(load, over)))
        thread.start()
        killed: set[int] = set()
        try:
            for number in range(KILLS):
                assert load.failed == []
                pid = running(found, "prices", killed)
                if number in (7, 14):
                    os.kill(forker_of(lambda: running(found, "prices", killed)), signal.SIGKILL)
                else:
                    os.kill(pid, signal.SIGKILL)
                killed.add(pid)
                # it outlives who forked it by some answers; what it leaves unanswered is asked again only once
                end = time.monotonic() + 30
                while alive(pid) and time.monotonic() < end:
                    time.sleep(0.001)
                answered = len(load.latencies)
                assert found.infer("tumours", tensor(first, [0])).status_code == 200
                while len(load.latencies) < answered + 20 + chosen.randrange(30) and not load.failed:
                    time.sleep(0.005)
        finally:
            over.set()
            thread.join()
        assert load.failed == []
        assert apart(found, "prices")["restarts"] >= KILLS
        assert len(load.latencies) > KILLS * 20
        for place, body in load.keep or ():
            said = json.loads(body)["outputs"][0]["data"]
            assert np.allclose(said, [made.labels[place]], atol=1e-9)
        told = found.client.get("/metrics").text
        families = {family.name: family.samples for family in text_string_to_metric_families(told)}
        restarts = {one.labels["endpoint"]: one.value for one in families["modelkeep_process_restarts"]}
        assert restarts.keys() == {"prices"} and restarts["prices"] >= KILLS
        assert all(one.value > 0 for one in families["modelkeep_process_memory_bytes"])
        last = running(found, "prices", killed)
        parent = forker_of(lambda: last)
        left = [parent, *children_of(parent)]
        assert last in left
        assert found.stop() == 0
        end = time.monotonic() + 10
        while any(map(alive, left)) and time.monotonic() < end:
            time.sleep(0.01)
        assert not any(map(alive, left))
