"""What the tests of isolated models share."""

from __future__ import annotations

import time
from collections.abc import Collection
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
