"""The data plane in process: the bounded ring, slow models off the loop, overload, swaps between batches."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from serving_kit import Made

from modelkeep.core.clock import SystemClock
from modelkeep.core.errors import Invalid, NotFound, Unavailable
from modelkeep.formats.batch import Batch
from modelkeep.registry.endpoints import Route, Wanted
from modelkeep.serve import queueing
from modelkeep.serve import spool as spooling
from modelkeep.serve.capture import Channel
from modelkeep.serve.columns import Loaded, Rows
from modelkeep.serve.dataplane import DataPlane
from modelkeep.serve.isolated import DEFAULT, Terms
from modelkeep.serve.packages import LocalPackages
from modelkeep.serve.shadow import Shadow
from modelkeep.serve.spool import Spool


class Ready:
    """Packages that are in memory already."""

    def __init__(self, **loaded: Loaded) -> None:
        self.all = loaded
        self.kept: set[str] = set()

    def load(self, digest: str, *, trusted: Sequence[str] = (), terms: Terms = DEFAULT) -> Loaded:
        if digest not in self.all:
            raise NotFound(f"no package {digest}")
        return self.all[digest]

    def on_request(self, digest: str, *, trusted: Sequence[str] = (), terms: Terms = DEFAULT) -> Loaded:
        return self.load(digest, trusted=trusted, terms=terms)

    def keep(self, digests: Iterable[str]) -> None:
        self.kept = set(digests)


class Ponderous:
    """A model that takes its time, as a large kernel machine does."""

    def __init__(self, inner: Any, seconds: float) -> None:
        self.inner = inner
        self.seconds = seconds

    def predict(self, columns: Mapping[str, Any]) -> Mapping[str, Any]:
        time.sleep(self.seconds)
        found: Mapping[str, Any] = self.inner.predict(columns)
        return found


def wanted(*routes: tuple[int, str, float, str]) -> list[Wanted]:
    made = tuple(Route(version=v, package=p, weight=w, mode=m) for v, p, w, m in routes)  # type: ignore[arg-type]
    return [Wanted(endpoint="e", model="m", routes=made)]


def columns(made: Made, row: int) -> dict[str, list[Any]]:
    return {name: [value] for name, value in made.frame.iloc[row].items()}  # type: ignore[misc]


def test_a_slow_model_leaves_the_loop_free_and_its_queue_becomes_batches(first: Made) -> None:
    async def story() -> None:
        plane = DataPlane(asyncio.get_running_loop(), SystemClock())
        slow = replace(first.loaded(), model=Ponderous(first.loaded().model, 0.05))
        await asyncio.to_thread(plane.apply, wanted((1, "p", 1.0, "stable")), Ready(p=slow))
        await plane.infer("e", columns(first, 0))
        work = [asyncio.create_task(plane.infer("e", columns(first, row))) for row in range(40)]
        turns = 0
        while not all(task.done() for task in work):
            await asyncio.sleep(0.001)
            turns += 1
        assert turns > 10
        assert plane.series()[0].totals().batches < 20
        for row, task in enumerate(work):
            assert first.probability is not None
            assert np.allclose(task.result().columns["probability"], first.probability[row], atol=1e-5)
        plane.close()

    asyncio.run(story())


class Gated:
    """A model that begins, and goes on once it may."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.entered, self.open = threading.Event(), threading.Event()

    def predict(self, columns: Mapping[str, Any]) -> Mapping[str, Any]:
        self.entered.set()
        self.open.wait()
        found: Mapping[str, Any] = self.inner.predict(columns)
        return found


def test_a_shadow_that_takes_for_ever_holds_nobody_up_and_drops_what_is_too_much(first: Made) -> None:
    async def story() -> None:
        plane = DataPlane(asyncio.get_running_loop(), SystemClock())
        gate = Gated(first.loaded().model)
        packages = Ready(p=first.loaded(), q=replace(first.loaded(), model=gate))
        await asyncio.to_thread(plane.apply, wanted((1, "p", 1.0, "stable"), (2, "q", 1.0, "shadow")), packages)
        try:
            for row in range(200):
                answer = await plane.infer("e", columns(first, row))
                assert first.probability is not None
                assert np.allclose(answer.columns["probability"], first.probability[row], atol=1e-5)
                await asyncio.to_thread(gate.entered.wait)
            stable, shadow = plane.totals()
            assert (stable.requests, stable.errors, stable.dropped) == (200, 0, 0)
            assert (shadow.requests, shadow.dropped) == (0, 200 - 1 - Shadow.LIMIT)  # one is under way
        finally:
            gate.open.set()
        seen = next(way.shadow for way in plane.endpoint("e").ways if way.shadow)
        while not seen.channel.idle:
            await asyncio.sleep(0.005)
        shadow = plane.totals()[1]
        assert (shadow.requests, shadow.errors, shadow.dropped) == (1 + Shadow.LIMIT, 0, 200 - 1 - Shadow.LIMIT)
        plane.close()

    asyncio.run(story())


def test_too_many_waiting_are_refused_at_once(first: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queueing, "MAX_WAITING", 10)

    async def story() -> None:
        plane = DataPlane(asyncio.get_running_loop(), SystemClock())
        await asyncio.to_thread(plane.apply, wanted((1, "p", 1.0, "stable")), Ready(p=first.loaded()))
        found = await asyncio.gather(
            *(plane.infer("e", columns(first, row)) for row in range(30)), return_exceptions=True
        )
        refused = [one for one in found if isinstance(one, Unavailable)]
        assert len(refused) == 20
        assert (await plane.infer("e", columns(first, 0))).version == 1
        plane.close()

    asyncio.run(story())


def test_a_request_queued_before_a_swap_is_answered_by_what_it_was_queued_for(first: Made, second: Made) -> None:
    async def story() -> None:
        plane = DataPlane(asyncio.get_running_loop(), SystemClock())
        slow = replace(first.loaded(), model=Ponderous(first.loaded().model, 0.1))
        packages = Ready(a=slow, b=second.loaded())
        await asyncio.to_thread(plane.apply, wanted((1, "a", 1.0, "stable")), packages)
        await plane.infer("e", columns(first, 0))
        early = [asyncio.create_task(plane.infer("e", columns(first, row))) for row in range(5)]
        await asyncio.sleep(0.01)
        await asyncio.to_thread(plane.apply, wanted((2, "b", 1.0, "stable")), packages)
        assert packages.kept == {"b"}
        assert (await plane.infer("e", columns(first, 0))).version == 2
        assert [answer.version for answer in await asyncio.gather(*early)] == [1] * 5
        plane.close()

    asyncio.run(story())


def test_errors_say_what_to_do(first: Made) -> None:
    async def story() -> None:
        plane = DataPlane(asyncio.get_running_loop(), SystemClock())
        with pytest.raises(Unavailable):
            plane.endpoint("e")
        await asyncio.to_thread(plane.apply, wanted((1, "p", 1.0, "stable")), Ready(p=first.loaded()))
        await asyncio.to_thread(plane.apply, wanted((2, "gone", 1.0, "stable")), Ready())
        assert "gone" in plane.faults["e"]
        assert (await plane.infer("e", columns(first, 0))).version == 1
        with pytest.raises(NotFound, match="there are: e"):
            plane.endpoint("f")
        with pytest.raises(Invalid) as caught:
            await plane.infer("e", {**columns(first, 0), "mean radius": ["wide"]})
        assert [problem.path for problem in caught.value.problems] == ["inputs.mean radius[0]"]
        plane.close()

    asyncio.run(story())


def test_a_full_ring_drops_and_counts(first: Made, tmp_path: Path) -> None:
    loaded = first.loaded()
    channel = Channel("e", "m", 1, "stable", loaded.signature, limit=100)
    one = loaded.inputs.stack([Rows(30, cells=first.frame.iloc[:30].to_numpy().reshape(-1).tolist())])
    outputs = dict(loaded.model.predict(one))

    def offer(name: str) -> None:
        latency = np.ones(1, np.float32)
        channel.offer(one, outputs, time=1.0, ids=[name], counts=[30], keys=None, latency=latency)

    for name in "abcde":
        offer(name)
    assert (channel.held, channel.dropped) == (90, 60)
    spool = Spool(tmp_path, SystemClock())
    spool.add(channel)
    spool.flush()
    offer("f")
    spool.retire(channel)
    spool.close()
    assert channel.held == 0
    assert len(list(tmp_path.glob("*.arrow"))) == 2
    assert spool._retired == []


@pytest.mark.parametrize("requests", [1, 3, 1000])
def test_outputs_that_params_changed_are_captured(
    first: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, requests: int
) -> None:
    monkeypatch.setattr(spooling, "PIECE_REQUESTS", requests)
    loaded = first.loaded()
    channel = Channel("e", "m", 1, "stable", loaded.signature)
    one = loaded.inputs.stack([loaded.inputs.named(columns(first, 0))])
    given: list[dict[str, Any]] = [
        {"score": np.array([1.5])},
        {"score": np.array([2.5]), "many": np.array([[1.0, 2.0]])},
        {"text": np.array(["a"], dtype=object), "score": np.array(["b"], dtype=object)},
        {"score": np.array([3.5]), "many": np.array([[1.0, 2.0, 3.0]])},
    ]
    for name, outputs in zip("abcd", given, strict=True):
        latency = np.ones(1, np.float32)
        channel.offer(one, outputs, time=1.0, ids=[name], counts=[1], keys=None, latency=latency)
    spool = Spool(tmp_path, SystemClock())
    spool.add(channel)
    spool.flush()
    (path,) = tmp_path.glob("*.arrow")
    found = pa.ipc.open_file(path).read_all()
    assert channel.lost == 0
    assert found["out.score"].to_pylist() == [1.5, 2.5, None, 3.5], "of the type that was seen first"
    assert found["out.many"].to_pylist() == [None, [1.0, 2.0], None, [1.0, 2.0, 3.0]]
    assert found["out.text"].to_pylist() == [None, None, "a", None]
    spool.close()


def test_a_batch_under_way_at_a_swap_is_captured(first: Made, second: Made, tmp_path: Path) -> None:
    slow = replace(first.loaded(), model=Ponderous(first.loaded().model, 0.3))

    async def story() -> None:
        spool = Spool(tmp_path, SystemClock())
        plane = DataPlane(asyncio.get_running_loop(), SystemClock(), spool)
        packages = Ready(one=slow, two=second.loaded())
        await asyncio.to_thread(plane.apply, wanted((1, "one", 1.0, "stable")), packages)
        await plane.infer("e", columns(first, 0))  # from now on it is known to be slow, and runs in a thread
        under_way = asyncio.create_task(plane.infer("e", columns(first, 1), id="under-way"))
        await asyncio.sleep(0.05)
        await asyncio.to_thread(plane.apply, wanted((2, "two", 1.0, "stable")), packages)
        for _ in range(3):
            await asyncio.to_thread(spool.flush)
        assert not under_way.done()
        assert (await under_way).version == 1
        await asyncio.to_thread(spool.flush)
        found = [pa.ipc.open_file(path).read_all() for path in tmp_path.glob("*.arrow")]
        assert "under-way" in [name for table in found for name in table["prediction_id"].to_pylist()]
        assert spool._retired == []
        plane.close()

    asyncio.run(story())


def test_a_copy_with_one_wrong_byte_is_fetched_anew(first: Made, tmp_path: Path) -> None:
    from modelkeep.store.blobs import open_blobs, put_tree

    blobs = open_blobs(str(tmp_path / "blobs"))
    digest = put_tree(blobs, first.files)
    packages = LocalPackages(tmp_path / "packages", lambda: blobs)
    packages.load(digest)
    graph = tmp_path / "packages" / digest / "model.onnx"
    right = graph.read_bytes()
    graph.write_bytes(right[:100] + bytes([right[100] ^ 1]) + right[101:])
    packages.keep(())
    packages.load(digest)
    assert graph.read_bytes() == right
    assert [path.name for path in (tmp_path / "packages").iterdir()] == [digest]


def test_missing_and_infinite_values_are_captured_as_they_were(first: Made, tmp_path: Path) -> None:
    loaded = first.loaded()
    channel = Channel("e", "m", 1, "stable", loaded.signature)
    one = loaded.inputs.stack([Rows(4, cells=first.frame.iloc[:4].to_numpy().reshape(-1).tolist())])
    gone, infinite = channel.order[0], channel.order[1]
    block = one.numbers.copy()
    block[0, 1], block[1, 1:3] = np.nan, (np.inf, -np.inf)
    latency = np.ones(1, np.float32)
    for numbers in (block, np.asfortranarray(block)):
        changed = Batch(one.layout, numbers, one.strings)
        channel.offer(changed, {}, time=1.0, ids=["a"], counts=[4], keys=None, latency=latency)
    spool = Spool(tmp_path, SystemClock())
    spool.add(channel)
    spool.close()
    (path,) = tmp_path.glob("*.arrow")
    found = pa.ipc.open_file(path).read_all()
    expected = block.astype(object)
    expected[0, 1] = None
    for place, name in enumerate(channel.order):
        assert found[f"in.{name}"].to_pylist() == [*expected[place], *expected[place]]
    assert (found[f"in.{gone}"].null_count, found[f"in.{infinite}"].null_count) == (2, 0)
