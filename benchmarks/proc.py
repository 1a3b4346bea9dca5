"""What processes take, from /proc. One that has ended takes nothing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")


def family(root: int) -> list[int]:
    """A process and what it started, and what that started, as far as it runs still."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        if stat := _stat(int(folder.name)):
            children.setdefault(int(stat[1]), []).append(int(folder.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def resident(root: int) -> float:
    """Resident mebibytes of a process and what it started."""
    return sum(_bytes(pid, "status", "VmRSS") for pid in family(root)) / 2**20


def proportional(root: int) -> float:
    """Mebibytes of a process and what it started; a page that several share counts once (PSS)."""
    return held(family(root))


def held(pids: Sequence[int]) -> float:
    """Mebibytes of these processes; a page that several share counts once (PSS)."""
    return sum(_bytes(pid, "smaps_rollup", "Pss") for pid in pids) / 2**20


def peak(pid: int) -> int:
    """Bytes that one process held at most, so far."""
    return _bytes(pid, "status", "VmHWM")


def spent(roots: Sequence[int]) -> float:
    """Processor seconds of these processes and what they started."""
    return sum(processor(pid) for root in roots for pid in family(root))


def processor(pid: int) -> float:
    """Processor seconds of one process."""
    stat = _stat(pid)
    return (int(stat[11]) + int(stat[12])) / _TICK if stat else 0.0


def _stat(pid: int) -> list[str]:
    """The fields after the program's name: state, parent, ..."""
    return _read(pid, "stat").rpartition(")")[2].split()


def _bytes(pid: int, file: str, name: str) -> int:
    lines = _read(pid, file).splitlines()
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:")), 0)


def _read(pid: int, file: str) -> str:
    try:
        return Path(f"/proc/{pid}/{file}").read_text()
    except OSError:
        return ""
