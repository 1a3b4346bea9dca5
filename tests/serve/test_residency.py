"""Many models in little memory: loaded when they are asked, unloaded when others are, never failing for it."""

from __future__ import annotations

import asyncio
import random
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from graph_kit import graph_folder
from serving_kit import Home, Made, tensor, worker

from modelkeep.core import clock
from modelkeep.core.errors import Damaged, Unavailable
from modelkeep.registry import endpoints, models
from modelkeep.registry.endpoints import Route, Wanted
from modelkeep.serve.columns import Loaded
from modelkeep.serve.dataplane import DataPlane
from modelkeep.serve.packages import LocalPackages
from modelkeep.serve.residency import NoRoom, Residency, Resident
from modelkeep.store.blobs import Blobs, open_blobs, put_tree

MB = 1 << 20
MANY = 8
EACH = 8
ROW = {"a": np.array([1.0]), "b": np.array([2.0])}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Blobs, list[str]]:
    """Eight graphs of eight megabytes."""
    folder = tmp_path_factory.mktemp("graphs")
    blobs = open_blobs(str(folder / "blobs"))
    made = [graph_folder(folder / str(number), number + 1.0, EACH) for number in range(MANY)]
    return blobs, [put_tree(blobs, {path: files.path / path for path in files}) for files in made]


@pytest.fixture
def packages(tmp_path: Path, store: tuple[Blobs, list[str]]) -> Iterator[LocalPackages]:
    found = LocalPackages(tmp_path / "packages", lambda: store[0], memory=3 * EACH * MB)
    yield found
    found.close()


def said(loaded: Loaded) -> float:
    return float(loaded.model.predict(ROW)["y"][0, 0])


def test_models_come_and_go_and_every_answer_is_right(
    packages: LocalPackages, store: tuple[Blobs, list[str]]
) -> None:
    loaded = [packages.load(digest) for digest in store[1]]
    assert 0 < sum(one.here for one in loaded) < MANY, "once memory is full, the rest waits to be asked"
    packages.keep(store[1])
    for place in [0, 1, 2, 3, 4, 5, 6, 7, 0, 7, 3]:
        assert said(loaded[place]) == 3.0 * (place + 1)
        assert loaded[place].here and not loaded[place].waits
    assert packages.residency.unloads > 0
    assert packages.residency.held <= packages.residency.budget
    here = [place for place in range(MANY) if loaded[place].here]
    assert {3, 7} <= set(here) and len(here) < MANY, "those asked last"
    again = packages.load(store[1][5])
    assert again is loaded[5] and again.here, "what is asked for anew is loaded before it is swapped in"


def test_threads_that_want_one_model_load_it_once(packages: LocalPackages, store: tuple[Blobs, list[str]]) -> None:
    loaded = [packages.on_request(digest) for digest in store[1]]
    assert not any(one.here for one in loaded)
    wrong: list[Any] = []

    def ask(seed: int) -> None:
        chosen = random.Random(seed)
        for _ in range(30):
            place = chosen.randrange(MANY)
            if said(loaded[place]) != 3.0 * (place + 1):
                wrong.append(place)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert packages.residency.held <= packages.residency.budget


def test_a_single_model_may_be_larger_than_the_budget(tmp_path: Path, store: tuple[Blobs, list[str]]) -> None:
    small = LocalPackages(tmp_path, lambda: store[0], memory=1)
    first, second = small.on_request(store[1][0]), small.on_request(store[1][1])
    assert (said(first), said(second)) == (3.0, 6.0)
    assert (first.here, second.here) == (False, True)


def test_loading_once_is_enough_for_all_who_wait() -> None:
    calls: list[int] = []
    entered = threading.Barrier(4)

    class Slow:
        def predict(self, columns: Any) -> Any:
            return {"n": len(calls)}

    def load() -> Slow:
        calls.append(1)
        return Slow()

    one = Resident(Residency(), load, "slow", apart=False)

    def ask() -> None:
        entered.wait()
        assert one.predict({})["n"] == 1

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == one.loads == 1


def test_what_cannot_be_loaded_is_tried_again(tmp_path: Path, store: tuple[Blobs, list[str]]) -> None:
    away = True

    def blobs() -> Blobs:
        if away:
            raise Unavailable("the store is away")
        return store[0]

    packages = LocalPackages(tmp_path, blobs)
    digest = store[1][0]
    for _ in range(2):
        with pytest.raises(Unavailable):
            packages.load(digest)
        with pytest.raises(Unavailable):
            packages.on_request(digest)
    away = False
    lazy = packages.on_request(digest)
    away = True
    with pytest.raises(Unavailable):
        said(lazy)
    away = False
    assert said(lazy) == 3.0
    shutil.rmtree(tmp_path / digest)
    assert said(lazy) == 3.0, "what is loaded needs no copy"


def test_requests_to_models_that_are_not_loaded_never_fail(tmp_path: Path, store: tuple[Blobs, list[str]]) -> None:
    async def serve() -> list[float]:
        packages = LocalPackages(tmp_path / "packages", lambda: store[0], memory=3 * EACH * MB)
        plane = DataPlane(asyncio.get_running_loop(), clock.SystemClock())
        wanted = [
            Wanted(
                endpoint=f"e{place}",
                model=f"m{place}",
                routes=(Route(version=1, package=digest, weight=1.0, mode="stable"),),
            )
            for place, digest in enumerate(store[1])
        ]
        await asyncio.to_thread(plane.apply, wanted, packages, 1)
        assert plane.faults == {}
        order = [random.Random(1).randrange(MANY) for _ in range(100)]
        answers = await asyncio.gather(*(plane.infer(f"e{place}", {"a": [1.0], "b": [2.0]}) for place in order))
        assert [float(one.columns["y"][0, 0]) for one in answers] == [3.0 * (place + 1) for place in order]
        await asyncio.to_thread(plane.close)
        await asyncio.to_thread(packages.close)
        return [packages.residency.held]

    held = asyncio.run(serve())
    assert held[0] <= 3 * EACH * MB


def test_a_shadow_is_never_loaded_in_the_place_of_a_version_that_answers(
    tmp_path: Path, store: tuple[Blobs, list[str]]
) -> None:
    def route(place: int, mode: str) -> Route:
        return Route(version=place, package=store[1][place], weight=1.0, mode=mode)  # type: ignore[arg-type]

    def wants(shadow: int | None = None) -> list[Wanted]:
        shadows = () if shadow is None else (route(shadow, "shadow"),)
        return [
            Wanted(endpoint="e0", model="m0", routes=(*shadows, route(0, "stable"))),
            Wanted(endpoint="e1", model="m1", routes=(route(1, "stable"),)),
        ]

    async def serve() -> None:
        packages = LocalPackages(tmp_path / "packages", lambda: store[0], memory=1 << 40)
        plane = DataPlane(asyncio.get_running_loop(), clock.SystemClock())
        residency = packages.residency

        async def apply(wanted: list[Wanted]) -> None:
            await asyncio.to_thread(plane.apply, wanted, packages, 1)

        def here() -> set[int]:
            return {place for place in range(MANY) if packages.on_request(store[1][place]).here}

        async def ask() -> None:
            """Both endpoints, until the shadow has seen it, or dropped it."""
            for name, answer in (("e0", 3.0), ("e1", 6.0)):
                found = await plane.infer(name, {"a": [1.0], "b": [2.0]})
                assert float(found.columns["y"][0, 0]) == answer
            while any(way.shadow and not way.shadow.channel.idle for way in plane.endpoint("e0").ways):
                await asyncio.sleep(0.005)

        def shadow() -> Any:
            return next(line for line in plane.totals() if line.mode == "shadow")

        await apply(wants())
        residency.budget = residency.held + (EACH // 2) * MB  # half of what another takes
        await apply(wants(shadow=2))
        assert "e0 shadow 2" in plane.faults and "MODELKEEP_MODELS_MEMORY" in plane.faults["e0 shadow 2"]
        await ask()
        assert (here(), residency.unloads) == ({0, 1}, 0)

        residency.budget = 1 << 40
        await apply(wants(shadow=2))
        await ask()
        assert plane.faults == {} and here() == {0, 1, 2}
        assert (shadow().requests, shadow().dropped) == (1, 0)

        residency.budget = 1  # room for one that answers, whatever it takes, and none beside it
        await asyncio.to_thread(packages.load, store[1][3])
        assert here() == {3}
        await ask()
        assert here() == {1}
        assert (shadow().requests, shadow().dropped, shadow().errors) == (1, 1, 0)
        await asyncio.to_thread(plane.close)
        await asyncio.to_thread(packages.close)

    asyncio.run(serve())


def test_shadows_are_unloaded_before_versions_that_answer() -> None:
    class Nothing:
        def predict(self, columns: Any) -> Any:
            return {}

    residency = Residency(250 * MB)
    first, shadow, second = (
        Resident(residency, Nothing, name, apart=False, least=100 * MB) for name in ("first", "shadow", "second")
    )
    first.predict({})
    shadow.bring(shadow=True)
    shadow.watch({})  # seen last, but asked by nobody
    assert first.here and shadow.here and not residency.full
    second.predict({})
    assert (first.here, shadow.here, second.here) == (True, False, True)
    with pytest.raises(NoRoom, match=r"a shadow takes 1\d\d MB"):
        shadow.watch({})
    assert (first.here, shadow.here, second.here, residency.unloads) == (True, False, True, 1)
    shadow.predict({})  # now somebody asks for it by number
    assert (first.here, shadow.here, second.here) == (False, True, True)


def test_external_weights_are_verified_before_they_are_mapped(tmp_path: Path) -> None:
    from modelkeep.formats import runtimes

    files = graph_folder(tmp_path / "graph", 2.0, 2, external=True)
    assert (files.path / "weights.bin").stat().st_size >= MB
    assert runtimes.load(files).predict(ROW)["y"].tolist() == [[6.0]]
    data = bytearray((files.path / "weights.bin").read_bytes())
    data[100] ^= 1
    (files.path / "weights.bin").write_bytes(data)
    with pytest.raises(Damaged, match=r"weights\.bin"):
        runtimes.load(files)


def test_versions_without_a_route_can_be_asked_for_where_all_are_offered(
    home: Home, first: Made, second: Made
) -> None:
    packages = {1: home.keep(first), 2: home.keep(second), 3: home.keep(first)}
    for package in packages.values():
        home.db.write(
            lambda conn, package=package: models.register(
                conn,
                "m",
                run_id="",
                package=package,
                lineage=None,
                evaluation={},
                runtime="onnx",
                note="",
                now=1.0,
            )
        )
    route = (Route(version=2, package=packages[2], weight=1.0, mode="stable"),)

    def serve(versions: str) -> None:
        wanted = Wanted(endpoint="e", model="m", routes=route, settings={"deploy": {"versions": versions}})
        home.db.write(lambda conn: endpoints.put(conn, wanted))

    serve("routed")
    with worker(home) as found:

        def ask(ref: str) -> httpx.Response:
            return found.client.post(f"/v2/models/e/versions/{ref}/infer", json=tensor(first, [0]))

        assert [ask(ref).status_code for ref in ("1", "2", "3", "old")] == [404, 200, 404, 404]
        assert "deploy.versions: all" in ask("old").json()["error"]

        # an alias of what is routed to needs no such setting, in no protocol
        home.db.write(lambda conn: models.set_alias(conn, "m", "live", 2, 1.2))
        while (answer := ask("live")).status_code == 404:
            time.sleep(0.02)
        assert answer.json()["model_version"] == "2"
        row = first.frame.iloc[:1].to_dict("records")
        labelled = found.client.post("/v1/models/e/labels/live:predict", json={"instances": row})
        assert labelled.status_code == 200, labelled.text
        home.db.write(lambda conn: models.delete_alias(conn, "m", "live", 1.5))
        while ask("live").status_code == 200:
            time.sleep(0.02)
        serve("all")
        found.until(lambda health: len(health["endpoints"][0]["routes"]) == 3)
        assert [ask(ref).json()["model_version"] for ref in ("1", "2", "3")] == ["1", "2", "3"]
        home.db.write(lambda conn: models.set_alias(conn, "m", "old", 1, 2.0))
        while (answer := ask("old")).status_code == 404:
            time.sleep(0.02)
        assert answer.json()["model_version"] == "1"
        assert {found.infer("e", tensor(first, [row])).json()["model_version"] for row in range(20)} == {"2"}
