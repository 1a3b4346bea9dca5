"""What the file system below a folder can do: whether locks and one flush of all of it can be relied on."""

from __future__ import annotations

import ctypes
import os
import re
from functools import lru_cache
from pathlib import Path

_KINDS = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "tmpfs"})
"""Of one machine, where ``flock`` is seen by every process and ``syncfs`` writes everything to the disk."""
_SINCE = (5, 8)
"""Linux from which on ``syncfs`` tells of what could not be written: man 2 syncfs."""


def fsync_folder(folder: Path | str) -> None:
    """Make a folder's entries durable. Raises ``OSError``."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def syncfs(file: int) -> None:
    """Make all of the file system durable that has an open file.

    Raises:
        OSError: Something, of whatever file, could not be written since this one was opened.
    """
    if _libc().syncfs(file):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def flushes_as_a_whole(folder: Path) -> bool:
    """Whether ``flock`` and ``syncfs`` can be relied on there: what other machines share, or FUSE, is not."""
    try:
        release, mounts = os.uname().release, Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    except OSError:  # not Linux
        return False
    return _reports(release) and kind_of(str(folder.resolve()), mounts) in _KINDS


def kind_of(path: str, mounts: str) -> str:
    """The kind of file system an absolute path is on; empty when no mount holds it.

    Args:
        mounts: As in ``/proc/self/mountinfo``, man 5 proc.
    """
    best, kind = "", ""
    for line in mounts.splitlines():
        mounted, _, about = line.partition(" - ")
        fields = mounted.split(" ")
        if len(fields) < 5 or not about:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), fields[4])
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):  # of two at one place the later one hides the other
            best, kind = point, about.split(" ")[0]
    return kind


def _reports(release: str) -> bool:
    numbers = re.match(r"(\d+)\.(\d+)", release)
    return numbers is not None and (int(numbers[1]), int(numbers[2])) >= _SINCE


@lru_cache(maxsize=1)
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
