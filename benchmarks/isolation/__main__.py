"""What a process of its own costs a batch, how long a killed one is away, what many models in one process take.

python -m benchmarks.isolation [--models 100] [--json]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml
from onnx import TensorProto, helper, numpy_helper

from modelkeep.formats import adopt, runtimes
from modelkeep.formats.batch import Batch, Layout
from modelkeep.formats.manifest import Folder
from modelkeep.formats.signature import Field
from modelkeep.serve import memory
from modelkeep.serve.isolated import IsolatedModel
from modelkeep.serve.isolated_keeper import Keeper
from modelkeep.serve.packages import LocalPackages
from modelkeep.store.blobs import open_blobs, put_tree

FEATURES = 30
FUNCTION = "def predict(columns):\n    return {'y': columns['x0']}\n"
MB = 1 << 20


def function(folder: Path) -> tuple[Folder, str]:
    """A function that does nothing, so that what is measured is the way there and back."""
    folder.mkdir()
    (folder / "score.py").write_text(FUNCTION)
    fields = [Field(name=f"x{place}", type="float64") for place in range(FEATURES)]
    digest = adopt.content_of(folder)
    adopt.adopt_function(folder, "score.py", fields, {f.name: [0.5] for f in fields}, trusted=[digest])
    return Folder(folder), digest


def graph(folder: Path, megabytes: float, seed: int) -> Folder:
    """A linear layer with so many megabytes of weights that nothing can fold away."""
    width = max(1, round(megabytes * MB / 4 / FEATURES))
    weights = np.random.default_rng(seed).normal(size=(FEATURES, width)).astype(np.float32)
    made = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("ReduceMax", ["h"], ["y"], axes=[1], keepdims=1),
        ],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, FEATURES])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 1])],
        [numpy_helper.from_array(weights, "w")],
    )
    folder.mkdir()
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save_model(model, folder / "model.onnx")
    (folder / "MLmodel").write_text(yaml.safe_dump({"flavors": {"onnx": {"data": "model.onnx"}}}))
    adopt.adopt(folder)
    return Folder(folder)


def median(what: Callable[[], Any], times: int = 400) -> float:
    """Milliseconds."""
    for _ in range(20):
        what()
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        what()
        taken.append(time.perf_counter() - began)
    return float(np.median(taken)) * 1e3


def crossing(folder: Path) -> list[dict[str, float]]:
    """Milliseconds that a process of its own adds to a batch; and how long after a kill the next answer comes."""
    files, digest = function(folder / "function")
    here = runtimes.load(files, trusted=[digest])
    keeper = Keeper()
    apart = IsolatedModel(keeper, "function", files.path, runtimes.signature(files), trusted=[digest])
    found = []
    for rows in (1, 16, 1000, 16_000):
        columns = {f"x{place}": np.random.default_rng(place).random(rows) for place in range(FEATURES)}
        batch: Batch = Layout(runtimes.signature(files)).pack(columns)
        inside, outside = median(lambda: here.predict(batch)), median(lambda: apart.predict(batch))  # noqa: B023
        found.append({"rows": rows, "here_ms": inside, "apart_ms": outside, "added_ms": outside - inside})
    away = []
    for _ in range(20):
        pid = next(process["pid"] for process in apart.status()["processes"])
        began = time.perf_counter()
        os.kill(pid, signal.SIGKILL)
        apart.predict(batch.take(slice(0, 1)))
        away.append((time.perf_counter() - began) * 1e3)
    found.append({"kills": len(away), "away_median_ms": float(np.median(away)), "away_worst_ms": max(away)})
    apart.close()
    keeper.close()
    return found


def many(folder: Path, count: int, megabytes: float) -> dict[str, float]:
    """Memory that so many models of this size add to one process."""
    blobs = open_blobs(str(folder / "blobs"))
    packages = LocalPackages(folder / "packages", lambda: blobs)
    digests = []
    for number in range(count):
        files = graph(folder / f"{megabytes}-{number}", megabytes, number)
        digests.append(put_tree(blobs, {path: files.path / path for path in files}))
    row = {f"x_{place}": np.array([0.5]) for place in range(FEATURES)}
    packages.load(digests[0]).model.predict(row)
    before, began = memory.resident(), time.perf_counter()
    loaded = [packages.load(digest) for digest in digests[1:]]
    for one in loaded:
        one.model.predict(row)
    took = time.perf_counter() - began
    each = (memory.resident() - before) / (count - 1) / MB
    packages.close()
    return {"models": count, "weights_mb": megabytes, "each_mb": each, "load_ms": took / (count - 1) * 1e3}


def main(arguments: list[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    logging.disable(logging.WARNING)  # of the killed
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = [many(folder, given.models, megabytes) for megabytes in (0.01, 1.0)]
        *rows, kills = crossing(folder)
    if given.json:
        print(json.dumps({"crossing": rows, "kills": kills, "models": models}, indent=2))
        return 0
    print(f"a batch of {FEATURES} numbers a row, to a process of its own and back")
    for row in rows:
        print(f"  {row['rows']:>6} rows  {row['added_ms']:7.3f} ms more than the {row['here_ms']:.3f} ms here")
    print(f"killed {kills['kills']:.0f} times: the next answer after {kills['away_median_ms']:.1f} ms,", end=" ")
    print(f"{kills['away_worst_ms']:.1f} ms at worst")
    for one in models:
        print(f"{one['models']:.0f} models of {one['weights_mb']:g} MB: {one['each_mb']:.2f} MB each,", end=" ")
        print(f"loaded in {one['load_ms']:.1f} ms each")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
