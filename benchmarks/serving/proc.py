"""What processes take, from /proc."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path


def resident(pid: int) -> float:
    """Resident mebibytes of a process and what it started."""
    pages = sum(int((folder / "statm").read_text().split()[1]) for folder in _tree(pid))
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def spent(pids: Sequence[int]) -> float:
    """Processor seconds of these processes and what they started, as far as it runs still."""
    stats = [_stat(folder) for pid in pids for folder in _tree(pid)]
    return sum(int(one[11]) + int(one[12]) for one in stats) / os.sysconf("SC_CLK_TCK")


def _stat(folder: Path) -> list[str]:
    """The fields after the program's name: state, parent, ..."""
    return (folder / "stat").read_text().rpartition(")")[2].split()


def _tree(root: int) -> Iterator[Path]:
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            children.setdefault(int(_stat(folder)[1]), []).append(int(folder.name))
        except OSError:
            continue
    found = [root]
    for pid in found:
        found += children.get(pid, [])
        yield Path(f"/proc/{pid}")
