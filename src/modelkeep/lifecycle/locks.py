"""One worker at a time per model: a lock that the kernel lets go of when its holder dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from modelkeep.core.errors import Conflict, Unavailable


@contextlib.contextmanager
def held(home: Path, name: str, *, doing: str, hint: str = "wait for it to finish, or stop it") -> Iterator[None]:
    """Hold the lock ``name`` of this home.

    Args:
        doing: What the holder does, for the error others get.
        hint: What they can do.

    Raises:
        Conflict: Another process holds it.
        Unavailable: The home cannot be written.
    """
    path = home / "locks" / f"{name}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.open("a+")
    except OSError as error:
        raise Unavailable(f"the lock {path} cannot be made: {error.strerror}") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            handle.seek(0)
            holder = handle.read().strip() or "another process"
            raise Conflict(f"{holder} is already {doing}", hint=hint) from None
        handle.truncate(0)
        handle.write(f"process {os.getpid()}")
        handle.flush()
        yield
