"""Models are unloaded and loaded again all the time, because memory is short: no request fails for it."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from pathlib import Path

from graph_kit import graph_folder
from load import Load
from serving_kit import Home, worker

from modelkeep.store.blobs import put_tree

MB = 1 << 20
MANY, EACH, FIT = 6, 8, 3
RELOADS = 20


def test_no_request_fails_while_models_come_and_go_under_load(home: Home, tmp_path: Path) -> None:
    for number in range(MANY):
        files = graph_folder(tmp_path / str(number), number + 1.0, EACH)
        home.serve(f"e{number}", (1, put_tree(home.blobs, {p: files.path / p for p in files}), 1.0, "stable"))
    bodies = [
        json.dumps(
            {"inputs": [{"name": name, "shape": [1], "datatype": "FP64", "data": [a]} for name in "ab"]}
        ).encode()
        for a in range(1, 6)
    ]
    with worker(home, ready=False, memory=FIT * EACH * MB) as found:
        found.until(lambda health: len(health["endpoints"]) == MANY, limit=60)
        port = int(found.url.rsplit(":", 1)[1])
        loads = [Load(port, f"/v2/models/e{number}/infer", bodies, keep=True) for number in range(MANY)]
        over = threading.Event()

        async def ask() -> None:
            for load in loads:
                for place in range(2):
                    await load.connect(place)
            while not over.is_set():
                await asyncio.sleep(0.01)
            for load in loads:
                load.going = False
            await asyncio.sleep(0.2)

        thread = threading.Thread(target=lambda: asyncio.run(ask()))
        thread.start()
        try:
            end = time.monotonic() + 60
            while True:
                routes = [one["routes"][0] for one in found.health()["endpoints"]]
                failed = [reply for load in loads for reply in load.failed]
                if failed or (
                    sum(route["loads"] for route in routes) >= RELOADS
                    and all(len(load.latencies) >= 20 for load in loads)
                ):
                    break
                assert time.monotonic() < end, (routes, [len(load.latencies) for load in loads])
                time.sleep(0.02)
        finally:
            over.set()
            thread.join()
        assert failed == []
        assert sum(route["loaded"] for route in routes) < MANY
        for number, load in enumerate(loads):
            assert load.failed == []
            for place, body in load.keep or ():
                (output,) = json.loads(body)["outputs"]
                assert output["data"] == [(number + 1.0) * 2 * (place + 1)]
        assert found.stop() == 0
