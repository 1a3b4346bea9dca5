"""What a command and all that it starts cost, by what Linux says of them every tenth of a second."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")


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
            held = 0
            for process in _family(running.pid):
                try:
                    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
                    rolled = Path(f"/proc/{process}/smaps_rollup").read_text()
                    status = Path(f"/proc/{process}/status").read_text()
                except OSError:
                    continue  # it has ended
                spent[process] = (int(fields[11]) + int(fields[12])) / _TICK
                held += _kilobytes("Pss", rolled)
                largest = max(largest, _kilobytes("VmHWM", status))
            together = max(together, held)
            time.sleep(0.1)
    if running.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{(folder / 'output.txt').read_text(errors='replace')[-3000:]}")
    return Cost(time.perf_counter() - begin, sum(spent.values()), together, largest)


def _kilobytes(name: str, text: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+)", text, re.MULTILINE)
    return int(found[1]) << 10 if found else 0


def _family(root: int) -> set[int]:
    parents = {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(place.parent.name)] = int(place.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, more = {root}, {root}
    while more:
        more = {child for child, parent in parents.items() if parent in more} - found
        found |= more
    return found
