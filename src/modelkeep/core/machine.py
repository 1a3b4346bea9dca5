"""What this machine, or the container that this process is in, has for work: cores, memory, GPUs."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

VISIBLE = "CUDA_VISIBLE_DEVICES"
"""The environment variable that says which GPUs a process may use, by number or UUID."""

_ROOT = Path("/")


class Need(NamedTuple):
    """What one part of some work keeps busy; or several together.

    Attributes:
        cpu: Cores.
        memory: Bytes; 0 is not counted.
        gpu: GPUs: a share of one below 1, whole ones above; 0 is not counted.
    """

    cpu: float = 1.0
    memory: float = 0.0
    gpu: float = 0.0

    def times(self, parts: int) -> Need:
        """What so many parts need together. A GPU holds as many shares as fit on it whole."""
        each, shared = self.per_gpu(), 0 < self.gpu < 1
        gpu = float(math.ceil(parts / each)) if shared and parts > each else self.gpu * parts
        return Need(self.cpu * parts, self.memory * parts, gpu)

    def per_gpu(self) -> int:
        """How many parts one GPU holds, when they need less than one each."""
        return int(1 / self.gpu + 1e-9) if 0 < self.gpu < 1 else 1


class Machine(NamedTuple):
    """What there is.

    Attributes:
        cores: At least 1.
        memory: Bytes.
        gpus: As ``CUDA_VISIBLE_DEVICES`` names them.
    """

    cores: float
    memory: float
    gpus: tuple[str, ...] = ()

    def parts(self, need: Need, jobs: int = 1, most: int | None = None) -> int:
        """How many parts fit at once into one of ``jobs`` equal shares of this; 1 when not even one does.

        Args:
            most: No more than so many. Where a part needs one core, as all do that do not say, so many even on
                fewer cores.
        """
        whole = len(self.gpus) * need.per_gpu() if need.gpu < 1 else len(self.gpus) / need.gpu
        fits = [whole / jobs] if need.gpu else []
        if need.memory:
            fits.append(self.memory / jobs / need.memory)
        if most is None or need.cpu != 1:
            fits.append(self.cores / jobs / need.cpu)
        if most is not None:
            fits.append(most)
        return 1 if math.isinf(min(fits)) else max(1, int(min(fits)))


def here() -> Machine:
    """This machine; or what its container may have of it, when that is less."""
    return Machine(cores(), memory(), gpus())


def cores(root: Path = _ROOT) -> int:
    """Cores that this process may use: those it may run on, or as many as its groups' quotas are worth.

    Args:
        root: Where ``proc`` and ``sys`` are.
    """
    try:
        found = len(os.sched_getaffinity(0))
    except AttributeError:
        found = os.cpu_count() or 1
    for folder in _groups("cpu", root):
        quota, _, period = _said(folder / "cpu.max").partition(" ")
        if not quota:
            quota, period = _said(folder / "cpu.cfs_quota_us"), _said(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period):
            found = min(found, math.ceil(int(quota) / int(period)))
    return max(1, found)


def memory(root: Path = _ROOT) -> int:
    """Bytes of memory that this process could have: the machine's, or the least that its groups are limited to."""
    try:
        found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        found = 8 << 30
    for folder in _groups("memory", root):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = _said(folder / name)
            if limit.isdigit():
                found = min(found, int(limit))
    return found


def available(root: Path = _ROOT) -> int:
    """Bytes that could be had without taking them from anybody: of the machine, or of the group with the least.

    What the kernel keeps of files and has not used for a while counts as free, as Kubernetes counts it
    (https://kubernetes.io/docs/concepts/scheduling-eviction/node-pressure-eviction/).
    """
    found = memory(root)
    told = _numbers(root / "proc/meminfo")
    if "MemAvailable:" in told:
        found = min(found, told["MemAvailable:"] << 10)
    for folder in _groups("memory", root):
        for most, now, cached in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, held = _said(folder / most), _said(folder / now)
            if limit.isdigit() and held.isdigit():
                free = _numbers(folder / "memory.stat").get(cached, 0)
                found = min(found, max(0, int(limit) - max(0, int(held) - free)))
    return found


def gpus(root: Path = _ROOT) -> tuple[str, ...]:
    """The GPUs that this process may use: those ``CUDA_VISIBLE_DEVICES`` names, else all that the driver lists.

    What cannot be used ends the list, as it does for CUDA: ``0,-1,1`` is one GPU.
    """
    named = os.environ.get(VISIBLE)
    if named is None:
        try:
            count = sum(1 for _ in (root / "proc/driver/nvidia/gpus").iterdir())
        except OSError:
            count = 0
        return tuple(map(str, range(count)))
    usable = itertools.takewhile(lambda name: name and not name.startswith("-"), map(str.strip, named.split(",")))
    return tuple(dict.fromkeys(usable))


def dealt(gpus: tuple[str, ...], need: Need, parts: int) -> tuple[str, ...]:
    """The GPUs of each of so many parts, as ``CUDA_VISIBLE_DEVICES`` names them; nothing when they need none."""
    if not need.gpu:
        return ()
    if need.gpu < 1:
        return tuple(gpus[part // need.per_gpu()] for part in range(parts))
    each = int(need.gpu)
    return tuple(",".join(gpus[part * each : (part + 1) * each]) for part in range(parts))


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """The folders of the control groups that this process is in, in both versions, the outermost last.

    A container often sees its own group as the outermost; a service of systemd sees where it is below it.
    """
    base = root / "sys/fs/cgroup"
    for line in _said(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = base / controllers if controllers else base
        inner = top / path.lstrip("/")
        yield inner
        yield from (folder for folder in inner.parents if folder == top or top in folder.parents)
    yield from (base, base / controller)


def _numbers(path: Path) -> dict[str, int]:
    """Lines that each begin with a name and a number."""
    words = (line.split() for line in _said(path).splitlines())
    return {found[0]: int(found[1]) for found in words if len(found) > 1 and found[1].isdigit()}


def _said(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
