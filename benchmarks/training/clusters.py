"""What a task costs on each engine, and from which table on it is worth it; all of them on this machine."""

from __future__ import annotations

import operator
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from benchmarks.training.clicks import BITS, Batch
from modelkeep.core.errors import ModelkeepError
from modelkeep.core.ports import Engine
from modelkeep.engines.opening import open_engine
from modelkeep.train.linear.blocks import FilePart, Split
from modelkeep.train.linear.losses import Objective
from modelkeep.train.linear.whole import Wholes

ENGINES = ("local://1", "local", "ray", "dask", "spark")
TASKS = 200
KEEPS = {"MALLOC_TRIM_THRESHOLD_": "268435456", "MALLOC_MMAP_THRESHOLD_": "33554432"}
"""As docs/how-to/dask.md says: Dask's workers would ask the system anew for each array they work with."""
PARTS = 4
"""Of every table: pieces grow with what they are of."""
SIZES = (16_384, 65_536, 262_144, 1_048_576, 4_194_304)
"""Rows of a part of the tables tried; there are fewer of their own, which come again."""


def measure(batches: list[Batch], folder: Path, names: list[str], *, quick: bool) -> list[dict[str, Any]]:
    """Per engine: seconds to open, per task, and per full-batch gradient of tables of growing size."""
    sizes = SIZES[: 2 if quick else len(SIZES)]
    again = batches * -(-max(sizes) // sum(len(y) for _, y in batches))
    x, y = sparse.vstack([x for x, _ in again], format="csr"), np.concatenate([y for _, y in again])
    kept = {size: FilePart.keep(str(folder / f"part{size}"), x[:size], y[:size]) for size in sizes}
    del x, y, again
    found: list[dict[str, Any]] = []
    for name in names:
        begin = time.perf_counter()
        try:
            with _engine(name) as engine:
                opened = time.perf_counter() - begin
                found.append({"engine": name, "open": opened} | _timed(engine, kept, quick=quick))
        except ModelkeepError as error:
            found.append({"engine": name, "failed": str(error)})
    for entry in found:
        for rival in ("local://1", "local"):
            base = next(other for other in found if other["engine"] == rival)
            won = [s for s in sizes if entry.get("gradient", {}).get(s, np.inf) < base["gradient"][s]]
            entry[f"beats {rival} from rows"] = PARTS * won[0] if won else None
    return found


def _timed(engine: Engine, kept: dict[int, FilePart], *, quick: bool) -> dict[str, Any]:
    tasks = TASKS // 4 if quick else TASKS
    list(engine.map(operator.neg, range(8)))  # the workers are up
    begin = time.perf_counter()
    assert list(engine.map(operator.neg, range(tasks))) == [-at for at in range(tasks)]
    each = (time.perf_counter() - begin) / tasks
    weights, seconds = np.zeros(((1 << BITS) + 1, 1)), {}
    for size, part in kept.items():
        wholes = Wholes([part] * PARTS, engine, Split())
        with wholes.of(Objective("logistic", 0.0, 0.0)) as whole:
            tried = []
            for _ in range(3):  # the first has the workers import what they need
                begin = time.perf_counter()
                whole(weights)
                tried.append(time.perf_counter() - begin)
            seconds[size] = min(tried)
    return {"task": each, "gradient": seconds}


@contextmanager
def _engine(name: str) -> Iterator[Engine]:
    with ExitStack() as stack:
        address = stack.enter_context(_dask()) if name == "dask" else name
        engine = open_engine(address, limit=60)
        stack.callback(engine.close)
        yield engine


@contextmanager
def _dask() -> Iterator[str]:
    """A scheduler and two workers of one thread each."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    base = [sys.executable, "-m"]
    scheduler = [*base, "distributed.cli.dask_scheduler", "--host=127.0.0.1", f"--port={port}", "--no-dashboard"]
    worker = [*base, "distributed.cli.dask_worker", f"tcp://127.0.0.1:{port}", "--nthreads=1", "--no-dashboard"]
    commands = [scheduler, *[[*worker, "--host=127.0.0.1"]] * 2]
    env = os.environ | KEEPS
    with ExitStack() as stack:
        for command in commands:
            child = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            stack.callback(child.wait)
            stack.callback(child.terminate)
        yield f"dask://127.0.0.1:{port}"
