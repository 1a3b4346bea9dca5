"""A serving process that is told to end, with models under way that take for ever."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
import yaml
from isolated_kit import files_of, sleeper
from onnx import TensorProto, helper, numpy_helper
from serving_kit import Home, Made, Worker, tensor, worker

from forks import alive
from modelkeep.app import fleet
from modelkeep.core.errors import Invalid
from modelkeep.formats import adopt
from modelkeep.serve import server
from modelkeep.serve.orders import END, LEAVE
from modelkeep.store.blobs import put_tree

PATIENT = {"batch": {"budget": "600s"}}
EVER = 1e13
"""So many steps take longer than any test."""


def counter(folder: Path) -> dict[str, bytes]:
    """A graph that counts to ``x``, in the serving process itself."""
    step = helper.make_graph(
        [helper.make_node("Identity", ["on"], ["still"]), helper.make_node("Add", ["n", "one"], ["more"])],
        "step",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("n", TensorProto.FLOAT, [None, 1]),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("more", TensorProto.FLOAT, [None, 1]),
        ],
    )
    constants = {"one": np.ones((1, 1), np.float32), "yes": np.array(True)}
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["times"], to=TensorProto.INT64),
        helper.make_node("Sub", ["x", "x"], ["begin"]),
        helper.make_node("Loop", ["times", "yes", "begin"], ["y"], body=step),
    ]
    graph = helper.make_graph(
        nodes,
        "count",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 1])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    folder.mkdir()
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save_model(made, folder / "model.onnx")
    said = {
        "flavors": {"onnx": {"data": "model.onnx"}, "python_function": {"loader_module": "mlflow.onnx"}},
        "signature": {"inputs": '[{"type": "double", "name": "x"}]'},
    }
    (folder / "MLmodel").write_text(yaml.safe_dump(said))
    adopt.adopt(folder)
    return files_of(folder)


def asking(found: Worker, pool: ThreadPoolExecutor, endpoint: str, x: float) -> Future[httpx.Response]:
    request = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP64", "data": [x]}]}
    address = f"{found.url}/v2/models/{endpoint}/infer"
    return pool.submit(lambda: httpx.post(address, json=request, timeout=120))


def until(said: Callable[[], Any], limit: float = 60.0) -> None:
    end = time.monotonic() + limit
    while not said():
        assert time.monotonic() < end
        time.sleep(0.02)


def cpu_seconds(pid: int) -> float:
    return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13])) / 100


def test_a_process_ends_in_time_whatever_its_models_are_at(home: Home, first: Made, tmp_path: Path) -> None:
    files, digest = sleeper(tmp_path / "sleeper")
    home.serve("sleeper", (1, put_tree(home.blobs, files), 1.0, "stable"), trust=[digest], deploy=PATIENT)
    home.serve("counter", (1, put_tree(home.blobs, counter(tmp_path / "counter")), 1.0, "stable"), deploy=PATIENT)
    home.serve("tumours", (1, home.keep(first), 1.0, "stable"))
    with ThreadPoolExecutor() as pool, worker(home, ready=False, drain=2) as found:
        found.until(lambda health: len(health["endpoints"]) == 3, limit=90)
        assert found.infer("tumours", tensor(first, [0])).status_code == 200
        assert asking(found, pool, "sleeper", 0.0).result().status_code == 200
        # of each model one request is under way and one waits
        waiting = [asking(found, pool, "sleeper", EVER) for _ in range(2)]

        def apart() -> dict[str, Any]:
            return next(r["apart"] for e in found.health()["endpoints"] for r in e["routes"] if r["apart"])

        until(lambda: apart()["processes"][0]["state"] == "busy")
        own = apart()["processes"][0]["pid"]
        spent = cpu_seconds(found.process.pid)
        waiting += [asking(found, pool, "counter", EVER) for _ in range(2)]
        until(lambda: cpu_seconds(found.process.pid) > spent + 1)
        assert not any(one.done() for one in waiting)
        found.process.send(signal.SIGTERM)
        answers = [one.result() for one in waiting]
        assert [answer.status_code for answer in answers] == [503] * 4
        assert all("the serving process is ending" in answer.text for answer in answers)
        # a minute is what the batch in the other process may take, and that in this one ends never
        assert found.process.wait(40) == 0
        until(lambda: not alive(own))
    assert home.captured_rows("tumours").num_rows == 1
    assert not list((home.path / "serve").glob("address-*.json"))


def test_what_ends_within_the_limit_is_answered(home: Home, tmp_path: Path) -> None:
    files, digest = sleeper(tmp_path / "sleeper")
    home.serve("sleeper", (1, put_tree(home.blobs, files), 1.0, "stable"), trust=[digest], deploy=PATIENT)
    with ThreadPoolExecutor() as pool, worker(home, ready=False, drain=60) as found:
        found.until(lambda health: health["endpoints"], limit=90)
        slow = asking(found, pool, "sleeper", 1.5)
        until(lambda: found.health()["endpoints"][0]["routes"][0]["apart"]["processes"][0]["state"] == "busy")
        found.process.send(signal.SIGTERM)
        assert slow.result().status_code == 200
        assert found.process.wait(40) == 0
    assert home.captured_rows("sleeper").num_rows == 1


def test_a_limit_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fleet.drain() == 10
    monkeypatch.setenv("MODELKEEP_DRAIN", "25")
    assert fleet.drain() == 25
    for wrong in ("0", "soon", "-1", "1.5", ""):
        monkeypatch.setenv("MODELKEEP_DRAIN", wrong)
        with pytest.raises(Invalid, match=r"MODELKEEP_DRAIN: is .*; expected whole seconds") as refused:
            fleet.drain()
        assert repr(wrong) in str(refused.value)


def test_only_the_same_signal_again_means_more() -> None:
    order = (signal.SIGINT, END, signal.SIGTERM, END)  # Ctrl-C, a supervisor that drains, its end
    assert not any(server.leaves(number, order[:place]) for place, number in enumerate(order))
    assert server.leaves(signal.SIGINT, order)
    assert server.leaves(signal.SIGTERM, [signal.SIGTERM])
    assert server.leaves(LEAVE, [])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_that_is_told_twice_leaves_at_once(
    home: Home, first: Made, tmp_path: Path, number: signal.Signals
) -> None:
    files, digest = sleeper(tmp_path / "sleeper")
    home.serve("sleeper", (1, put_tree(home.blobs, files), 1.0, "stable"), trust=[digest], deploy=PATIENT)
    home.serve("tumours", (1, home.keep(first), 1.0, "stable"))
    with ThreadPoolExecutor() as pool, worker(home, ready=False, drain=600) as found:
        found.until(lambda health: len(health["endpoints"]) == 2, limit=90)
        slow = asking(found, pool, "sleeper", EVER)
        until(lambda: '"state":"busy"' in found.client.get("/modelkeep/health").text)
        assert found.infer("tumours", tensor(first, [0])).status_code == 200
        found.process.send(number)
        found.process.send(END)
        time.sleep(0.5)
        assert not slow.done()
        assert not found.process.ended.is_set()
        found.process.send(number)
        assert slow.result().status_code == 503
        assert found.process.wait(10) == server.LEFT
    assert home.captured_rows("tumours").num_rows == 1
