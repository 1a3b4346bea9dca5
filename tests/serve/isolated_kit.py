"""What the tests of isolated models share."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection
from pathlib import Path

from modelkeep.formats.manifest import Folder
from modelkeep.serve.isolated import IsolatedModel


def written(files: dict[str, bytes], folder: Path) -> Folder:
    """The files as a folder."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return Folder(folder)


def pid_of(model: IsolatedModel, but: Collection[int] = (), limit: float = 20.0) -> int:
    """The process of a model that is none of those known already; waits for it."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        for process in model.status()["processes"]:
            if process["pid"] and process["pid"] not in but:
                return int(process["pid"])
        time.sleep(0.002)
    raise AssertionError(model.status())


def forker_of(process: Callable[[], int], limit: float = 20.0) -> int:
    """The program that forked a model's process; waits until the process is one whose program runs.

    When the program is killed, its processes belong to process 1 for a moment: a test that took that for the
    program and ended its family would end everything on the machine.
    """
    end = time.monotonic() + limit
    while time.monotonic() < end:
        with contextlib.suppress(OSError):  # it ended meanwhile
            parent = int(Path(f"/proc/{process()}/stat").read_text().rpartition(")")[2].split()[1])
            if b"modelkeep.serve.isolated_fork" in Path(f"/proc/{parent}/cmdline").read_bytes():
                return parent
        time.sleep(0.002)
    raise AssertionError("no process of the model belongs to a program that forks")
