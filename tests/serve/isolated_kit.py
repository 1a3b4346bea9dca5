"""What the tests of isolated models share."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection
from pathlib import Path

import pytest

from modelkeep.core.errors import Refused
from modelkeep.formats import adopt
from modelkeep.formats.manifest import Folder
from modelkeep.formats.signature import Field
from modelkeep.serve.isolated import IsolatedModel

SLEEPS = """
import time

def predict(columns):
    time.sleep(min(columns["x"].max(), 86_400))
    return columns["x"]
"""


def sleeper(folder: Path) -> tuple[dict[str, bytes], str]:
    """A function that sleeps for ``x`` seconds in a process of its own; and the digest to trust."""
    folder.mkdir()
    (folder / "score.py").write_text(SLEEPS)
    fields, sample = [Field(name="x", type="float64")], {"x": [0.0]}
    with pytest.raises(Refused) as refused:
        adopt.adopt_function(folder, "score.py", fields, sample)
    digest = refused.value.hint.split()[-1]
    adopt.adopt_function(folder, "score.py", fields, sample, trusted=[digest])
    return files_of(folder), digest


def files_of(folder: Path) -> dict[str, bytes]:
    """A folder as the files of a package."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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
