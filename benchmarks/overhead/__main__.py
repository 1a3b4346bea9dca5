"""Run the plain script and `modelkeep apply` in turn, whole processes, and print medians and ratios.

python -m benchmarks.overhead [--runs 5] [--months 12] [--json]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FLIGHTS = ROOT / "examples" / "flights"
WALL_BUDGET = 1.3
MEMORY_BUDGET = 1.5
CALM = {"GOMP_SPINCOUNT": "1000"}
"""What `modelkeep` sets for itself, given to the plain script too: otherwise, on a machine that does anything
else, its threads would spin for each other and the ratio would flatter apply."""


@dataclass(frozen=True)
class Cost:
    """One process and what it started: wall seconds, peak resident mebibytes, seconds of processor time."""

    wall: float
    memory: float
    cpu: float


def run(command: list[str], folder: Path, environment: dict[str, str]) -> Cost:
    """Run a command to its end. Its peak memory is the kernel's own figure (``wait4``)."""
    log = folder / "output.txt"
    start = time.perf_counter()
    child = os.fork()
    if child == 0:
        with log.open("wb") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        os.chdir(folder)
        os.execvpe(command[0], command, environment)
    _, status, usage = os.wait4(child, 0)
    wall = time.perf_counter() - start
    if status:
        sys.exit(f"{' '.join(command)} failed:\n{log.read_text(errors='replace')[-3000:]}")
    return Cost(wall, usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime)


def plain(data: Path) -> Cost:
    with tempfile.TemporaryDirectory() as name:
        script = ROOT / "benchmarks" / "overhead" / "plain.py"
        return run([sys.executable, str(script), str(data), name], Path(name), {**CALM, **os.environ})


def apply(data: Path) -> Cost:
    """`modelkeep apply` of examples/flights in a folder and a home that did not exist before."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(FLIGHTS / "modelkeep.yaml", folder)
        (folder / "data").symlink_to(data)
        environment = {**CALM, **os.environ, "MODELKEEP_HOME": str(folder / ".modelkeep")}
        return run([str(Path(sys.executable).with_name("modelkeep")), "apply"], folder, environment)


def median(costs: list[Cost]) -> Cost:
    return Cost(*(statistics.median(getattr(cost, name) for cost in costs) for name in ("wall", "memory", "cpu")))


def prepare(folder: Path, months: int) -> None:
    spec = importlib.util.spec_from_file_location("prepare_flights", FLIGHTS / "prepare.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.write_months(folder, range(1, months + 1))


def measure(runs: int, months: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as name:
        data = Path(name)
        prepare(data, months)
        ours: list[Cost] = []
        theirs: list[Cost] = []
        for _ in range(runs):
            theirs.append(plain(data))
            ours.append(apply(data))
    a, b = median(theirs), median(ours)
    return {
        "months": months,
        "runs": runs,
        "plain": asdict(a),
        "apply": asdict(b),
        "ratio": {"wall": b.wall / a.wall, "memory": b.memory / a.memory, "cpu": b.cpu / a.cpu},
        "all": {"plain": [asdict(cost) for cost in theirs], "apply": [asdict(cost) for cost in ours]},
    }


def show(found: dict[str, object]) -> None:
    print(f"{found['months']} months of flights, median of {found['runs']} runs each, in turn")
    print(f"{'':8}{'wall s':>10}{'peak MiB':>12}{'cpu s':>10}")
    for name in ("plain", "apply", "ratio"):
        row = found[name]
        assert isinstance(row, dict)
        print(f"{name:8}{row['wall']:>10.2f}{row['memory']:>12.2f}{row['cpu']:>10.2f}")
    print(f"budget  {WALL_BUDGET:>10.2f}{MEMORY_BUDGET:>12.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="What apply costs over a plain script.")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--months", type=int, default=12, choices=range(1, 13))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = measure(arguments.runs, arguments.months)
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        show(found)


if __name__ == "__main__":
    main()
