"""Ask our gRPC server and those that one writes with grpcio the same, on one core, and print rates and ratios.

python -m benchmarks.serving_grpc [--quick] [--json]

Server on core 0, load on core 1. Ours does all it does in production (signature checks, routing, ids, metrics,
capture); the others answer a constant, or run the same graph and nothing else. Predictions are checked before
anything is timed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from benchmarks import stop_well
from benchmarks.serving import models, ours
from benchmarks.serving.generator import LOAD_CORE, SERVER_CORE, pinned
from modelkeep.protocols.grpc.messages import message

PATH = "/inference.GRPCInferenceService/ModelInfer"
SHAPES = ((16, 1), (1, 16), (16, 4), (64, 1))
_REQUEST, _RESPONSE = message("inference.ModelInferRequest"), message("inference.ModelInferResponse")


def body(case: models.Case, rows: int, *, named: bool = False) -> bytes:
    """A request for the first rows: one tensor, or one for each input."""
    block = np.array(case.rows[:rows])
    if named:
        tensors = [{"name": name, "datatype": "FP64", "shape": [rows]} for name in case.columns]
        raw = [np.ascontiguousarray(column).tobytes() for column in block.T]
    else:
        tensors, raw = [{"name": "rows", "datatype": "FP64", "shape": list(block.shape)}], [block.tobytes()]
    made: bytes = _REQUEST(model_name="bench", inputs=tensors, raw_input_contents=raw).SerializeToString()
    return made


def check(port: int, case: models.Case, data: bytes, rows: int) -> None:
    """Whether the answer is the model's own."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        told = _RESPONSE.FromString(channel.unary_unary(PATH)(data, timeout=20))
    found = np.frombuffer(told.raw_output_contents[1]).reshape(rows, 2)
    if not np.allclose(found, case.probability[:rows], atol=1e-4):
        sys.exit("a server predicts something else")


@contextmanager
def peer(kind: str, what: str) -> Iterator[tuple[int, int]]:
    """A server of ``peers``; its port and process."""
    command = [sys.executable, "-m", "benchmarks.serving_grpc.peers", kind, what]
    with subprocess.Popen(pinned(SERVER_CORE, command), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline()), process.pid
        finally:
            process.kill()


@contextmanager
def served(folder: Path) -> Iterator[tuple[int, int]]:
    """Our serving process; the port of its gRPC, and its number."""
    command = [sys.executable, "-m", "modelkeep.app.serving", "--home", str(folder), "--port", "0"]
    command += ["--database", f"sqlite:///{folder / 'modelkeep.db'}", "--blobs", str(folder / "blobs")]
    process = subprocess.Popen(pinned(SERVER_CORE, [*command, "--grpc-port", "0"]), stdout=subprocess.DEVNULL)
    try:
        told = folder / "serve" / f"address-{process.pid}.json"
        while not told.exists():
            if process.poll() is not None:
                sys.exit("our serving process ended at once")
            time.sleep(0.01)
        port = int(json.loads(told.read_bytes())["grpc"].rpartition(":")[2])
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            ready = channel.unary_unary("/inference.GRPCInferenceService/ServerReady")
            while ready(b"", timeout=10, wait_for_ready=True) != b"\x08\x01":
                time.sleep(0.01)
        yield port, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)


def spent(pid: int) -> float:
    """Seconds of processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(at: tuple[int, int], data: bytes, shape: tuple[int, int], seconds: float) -> dict[str, Any]:
    """One run of the load on a port and process; ``cpu`` is the server's microseconds per call."""
    port, pid = at
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        command = [sys.executable, "-m", "benchmarks.serving_grpc.load", str(port), PATH]
        command += [*map(str, shape), str(seconds), file.name]
        before = spent(pid)
        done = subprocess.run(pinned(LOAD_CORE, command), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"the load failed: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    if found["other"]:
        sys.exit(f"{found['other']} calls had another end than an answer")
    found["cpu"] = (spent(pid) - before) / found.pop("all") * 1e6
    return found


def main() -> None:
    stop_well()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving_grpc", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one second for each figure, one shape of load")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    seconds, shapes = (1.0, SHAPES[:1]) if options.quick else (4.0, SHAPES)
    case = models.make("logistic")
    one, named, many = body(case, 1), body(case, 1, named=True), body(case, 500)
    results: list[dict[str, Any]] = []

    def run(server: str, at: tuple[int, int], what: str, data: bytes, rows: int) -> None:
        if what != "constant":
            check(at[0], case, data, rows)
        for shape in shapes:
            found = measure(at, data, shape, seconds)
            results.append({"server": server, "what": what, "connections": shape[0], "calls": shape[1], **found})
            if not options.json:
                said = f"{server:28} {what:22} {shape[0]:3} x {shape[1]:<3}{found['rate']:9,.0f}/s"
                times = f"p50 {found['p50']:6.2f} ms  p99 {found['p99']:6.2f} ms"
                print(f"{said}  {times}  processor {found['cpu']:6.1f} us a call", flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models.save(case, folder / "peers")
        for kind in ("aio", "uvloop", "threads"):
            with peer(kind, "constant") as at:
                run(f"grpcio, {kind}", at, "constant", one, 1)
            with peer(kind, str(folder / "peers")) as at:
                run(f"grpcio, {kind}", at, "1 row", one, 1)
        with served(ours.home(folder / "home", case)) as at:
            run("modelkeep", at, "1 row", one, 1)
            run("modelkeep", at, "1 row, 30 tensors", named, 1)
            run("modelkeep", at, "500 rows", many, 500)
    best = max(one["rate"] for one in results if one["server"] != "modelkeep" and one["what"] == "1 row")
    mine = max(one["rate"] for one in results if one["server"] == "modelkeep" and one["what"] == "1 row")
    if options.json:
        print(json.dumps({"results": results, "ratio": mine / best}, indent=1))
    else:
        print(f"best of modelkeep / best of grpcio, one row: {mine / best:.1f}")


if __name__ == "__main__":
    main()
