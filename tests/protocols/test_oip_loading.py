"""Models that memory has no room for: the index says so, loading brings them in."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from serving_kit import Home, Made

from modelkeep.core import clock
from modelkeep.core.errors import Unavailable
from modelkeep.protocols.oip import about
from modelkeep.registry.endpoints import Route, Wanted
from modelkeep.serve.dataplane import DataPlane
from modelkeep.serve.packages import LocalPackages


def test_loading_brings_in_what_is_not_in_memory(
    tmp_path: Path, home: Home, tumour_model: Made, flight_model: Made, price_model: Made
) -> None:
    digests = [home.keep(made) for made in (tumour_model, flight_model, price_model)]
    wanted = [
        Wanted(
            endpoint=f"e{place}",
            model=f"m{place}",
            routes=(Route(version=1, package=digest, weight=1.0, mode="stable"),),
        )
        for place, digest in enumerate(digests)
    ]

    async def serve() -> None:
        packages = LocalPackages(tmp_path / "packages", lambda: home.blobs, memory=1)  # room for one at a time
        plane = DataPlane(asyncio.get_running_loop(), clock.SystemClock())
        await asyncio.to_thread(plane.apply, wanted, packages, 1)

        def ready() -> list[str]:
            return [one["name"] for one in about.index(plane, ready=True)]

        try:
            assert len(ready()) == 1
            states = {one["name"]: one for one in about.index(plane)}
            assert states.keys() == {"e0", "e1", "e2"}
            for name in ("e0", "e2", "e1"):
                await asyncio.to_thread(about.load, plane, name)
                assert ready() == [name]
            assert "next request loads it" in {one["name"]: one for one in about.index(plane)}["e0"]["reason"]
            answer = await plane.infer("e2", {name: [1.0] for name in "abc"})
            assert answer.columns["prediction"].shape == (1,)
            assert ready() == ["e2"]
            with pytest.raises(Unavailable):  # no registry is followed here
                about.unload(plane, "e2")
        finally:
            await asyncio.to_thread(plane.close)
            await asyncio.to_thread(packages.close)

    asyncio.run(serve())
