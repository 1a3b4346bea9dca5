"""Runs a command and says how much memory each of its processes held at most (Linux).

python peak.py modelkeep apply
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from pathlib import Path


def family(root: int) -> set[int]:
    """A process and all that it started, as far as they live."""
    parents = {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(place.parent.name)] = int(place.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has ended
    found, more = {root}, {root}
    while more:
        more = {child for child, parent in parents.items() if parent in more} - found
        found |= more
    return found


def watch(root: int, stop: threading.Event) -> dict[int, int]:
    """VmHWM of each process in bytes: what the kernel counted, so that looking seldom misses little."""
    peaks: dict[int, int] = {}
    while not stop.wait(0.2):
        for process in family(root):
            try:
                found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{process}/status").read_text())
            except OSError:
                continue
            if found:
                peaks[process] = max(peaks.get(process, 0), int(found[1]) << 10)
    return peaks


def main() -> int:
    stop = threading.Event()
    running = subprocess.Popen(sys.argv[1:])
    peaks: list[dict[int, int]] = []
    thread = threading.Thread(target=lambda: peaks.append(watch(running.pid, stop)))
    thread.start()
    code = running.wait()
    stop.set()
    thread.join()
    held = sorted(peaks[0].values(), reverse=True)
    print(f"{len(held)} processes; the largest held {', '.join(f'{size / 1e6:,.0f} MB' for size in held[:5])}")
    return code


if __name__ == "__main__":
    sys.exit(main())
