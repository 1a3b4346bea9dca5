"""Temporary folders that no process outlives: what a killed one left is removed by the next that makes one.

The owner holds a lock on a file inside, which the kernel lets go of when it dies, however that is; so folders of
living processes are never touched, also where several containers share the temporary folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

_PREFIX, _OWNER = "modelkeep-", ".owner"
_HELD: dict[Path, int] = {}
"""The folders of this process, and the files it holds locked."""


def folder(kind: str, where: str | None = None) -> Path:
    """A new temporary folder of this process, of this user alone. ``discard`` it when done.

    Args:
        kind: A word for its name, to tell what it is for.
        where: Another place than the usual one, which machines may share: there nothing of the dead is removed.
    """
    if where is None:
        _sweep(Path(tempfile.gettempdir()))
    made = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{kind}-", dir=where))
    fresh = made / f"{_OWNER}.new"
    file = os.open(fresh, os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(file, fcntl.LOCK_EX)
    fresh.rename(made / _OWNER)  # by this name it counts, so it is never seen without its lock
    _HELD[made] = file
    return made


def discard(made: Path) -> None:
    """Remove a folder of ``folder`` and all in it."""
    shutil.rmtree(made, ignore_errors=True)
    if (file := _HELD.pop(made, None)) is not None:
        os.close(file)


@contextlib.contextmanager
def temporary(kind: str) -> Iterator[Path]:
    """A temporary folder for as long as it is needed."""
    made = folder(kind)
    try:
        yield made
    finally:
        discard(made)


@functools.cache
def _sweep(parent: Path) -> None:
    """Remove what dead processes of this user left; once in the life of a process."""
    with os.scandir(parent) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(_PREFIX)]
    for name in names:
        with contextlib.suppress(OSError):  # another's, of another kind, or removed by another just now
            _remove_if_dead(parent / name)


def _remove_if_dead(left: Path) -> None:
    told = left.lstat()
    if not stat.S_ISDIR(told.st_mode) or told.st_uid != os.geteuid():
        return
    file = os.open(left / _OWNER, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises while its owner lives
        shutil.rmtree(left, ignore_errors=True)
    finally:
        os.close(file)
