"""What a command and all that it starts cost, by what Linux says of them every tenth of a second."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks import proc


@dataclass(frozen=True)
class Cost:
    """Seconds by the clock and of processor time; most bytes held at once by all processes, and by the largest."""

    wall: float
    cpu: float
    memory: int
    process: int


def run(command: list[str], folder: Path, environment: dict[str, str]) -> Cost:
    """Run a command to its end. Processes that live for less than a tenth of a second may be missed."""
    begin = time.perf_counter()
    spent: dict[int, float] = {}
    together = largest = 0
    with (folder / "output.txt").open("wb") as output:
        running = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        while running.poll() is None:
            together = max(together, round(proc.proportional(running.pid) * 2**20))
            for process in proc.family(running.pid):
                spent[process] = proc.processor(process) or spent.get(process, 0.0)
                largest = max(largest, proc.peak(process))
            time.sleep(0.1)
    if running.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{(folder / 'output.txt').read_text(errors='replace')[-3000:]}")
    return Cost(time.perf_counter() - begin, sum(spent.values()), together, largest)
