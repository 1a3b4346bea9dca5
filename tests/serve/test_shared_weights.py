"""Large weights: mapped from their file and shared by processes, verified before, and the same answers."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pandas as pd
import pytest
from onnx import TensorProto, helper, numpy_helper
from serving_kit import Home, Made, made_of, tensor, worker
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from modelkeep.core.errors import Damaged
from modelkeep.formats import manifest, runtimes
from modelkeep.formats.feed import Feed, Part
from modelkeep.formats.graph_runtime import GraphModel
from modelkeep.formats.signature import Field, Signature

WEIGHTS = manifest.WEIGHTS


@pytest.fixture(scope="module")
def network() -> Made:
    """18 MB in the middle."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(40, 3)), columns=["a", "b", "c"])
    network = MLPRegressor(hidden_layer_sizes=(1500, 1500), max_iter=1, random_state=0)
    return made_of(make_pipeline(StandardScaler(), network), frame, frame["a"].to_numpy(), "regression", ())


def mapped(pid: int, name: str) -> Counter[str]:
    """Bytes that a process has of a mapped file, as the kernel counts them."""
    found: Counter[str] = Counter()
    inside = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(f"/{name}")
        elif inside and line.endswith(" kB"):
            what, size, _ = line.split()
            found[what.rstrip(":")] += int(size) * 1024
    return found


def test_two_serving_processes_share_the_weights(home: Home, network: Made) -> None:
    size = len(network.files[WEIGHTS])
    assert size >= 1500 * 1500 * 8
    assert len(network.files[manifest.ONNX]) < 1 << 20
    home.serve("net", (1, home.keep(network), 1.0, "stable"))
    with worker(home) as one, worker(home) as other:
        for process in (one, other):
            answer = process.infer("net", tensor(network, range(10)))
            found = next(part["data"] for part in answer.json()["outputs"] if part["name"] == "prediction")
            np.testing.assert_allclose(found, network.labels[:10], rtol=1e-6, atol=1e-9)
        for process in (one, other):
            found = mapped(process.process.pid, WEIGHTS)
            assert found["Rss"] >= 0.95 * size  # they are used where they lie
            assert found["Shared_Clean"] + found["Shared_Dirty"] >= 0.95 * size
            assert found["Anonymous"] == 0  # and no page was copied
            assert found["Pss"] <= 0.6 * size


def test_out_of_a_folder_or_not_they_are_verified_and_answer_alike(network: Made, tmp_path: Path) -> None:
    for name, data in network.files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(data)
    given = {name: network.frame[name].to_numpy() for name in network.frame}
    inside, outside = runtimes.load(manifest.Folder(tmp_path)), runtimes.load(network.files)
    np.testing.assert_array_equal(inside.predict(given)["prediction"], outside.predict(given)["prediction"])
    np.testing.assert_allclose(inside.predict(given)["prediction"], network.labels, rtol=1e-6, atol=1e-9)
    wrong = bytearray(network.files[WEIGHTS])
    wrong[-1] ^= 1
    (tmp_path / WEIGHTS).write_bytes(wrong)
    for files in (manifest.Folder(tmp_path), {**network.files, WEIGHTS: bytes(wrong)}):
        with pytest.raises(Damaged, match="has digest"):
            runtimes.load(files)


def test_weights_of_foreign_graphs_in_single_precision_are_not_copied_either(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).normal(size=(2000, 2500)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "foreign",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2000])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2500])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    onnx.save_model(model, str(tmp_path / "model.onnx"), save_as_external_data=True, location="weights.bin")
    names = tuple(f"x_{place}" for place in range(2000))
    fields = tuple(Field(name=name, type="float64") for name in names)
    said = Signature(inputs=fields, outputs=(Field(name="y", type="float64", shape=(2500,)),), task="regression")
    feed = Feed(kind="tensors", parts=(Part(name="x", dtype="float32", shape=(2000,), columns=names),))
    files = {name: manifest.entry((tmp_path / name).read_bytes()) for name in ("model.onnx", "weights.bin")}
    (tmp_path / "signature.json").write_bytes(msgspec.json.encode(said))
    files["signature.json"] = manifest.entry((tmp_path / "signature.json").read_bytes())
    about = manifest.Manifest(
        format=1, runtime="graph", task="regression", files=files, model="model.onnx", feed=feed
    )
    (tmp_path / "manifest.json").write_bytes(msgspec.json.encode(about))
    loaded = runtimes.load(manifest.Folder(tmp_path))
    assert isinstance(loaded, GraphModel)
    found = loaded.predict({name: np.ones(1) for name in names})["y"]
    np.testing.assert_allclose(found[0], weights.sum(axis=0), rtol=1e-3, atol=1e-3)
    assert mapped(os.getpid(), "weights.bin")["Rss"] >= 0.95 * weights.nbytes
