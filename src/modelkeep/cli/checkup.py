"""The checks of ``doctor``."""

from __future__ import annotations

import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, cast

from msgspec import Struct

from modelkeep import __version__
from modelkeep.cli.output import size
from modelkeep.core.errors import Damaged
from modelkeep.core.ports import Progress
from modelkeep.registry import events
from modelkeep.registry.verify import verify
from modelkeep.store.blobs import Blobs

if TYPE_CHECKING:
    from modelkeep.lifecycle.keep import Keep

_LIBRARIES = ("scikit-learn", "onnxruntime", "skl2onnx", "pyarrow", "duckdb", "sqlalchemy", "numpy")


class Checked(Struct, frozen=True):
    """One check.

    Attributes:
        name: What was checked.
        detail: What was found, as a sentence.
        faults: Everything wrong, one line each.
    """

    name: str
    detail: str
    faults: tuple[str, ...] = ()


def checkup(keep: Keep, progress: Progress) -> list[Checked]:
    """Check everything that can be checked while other processes work."""
    # The composition root always opens the chunked store; only that one can list what it holds.
    blobs = cast("Blobs", keep.blobs)
    faults = verify(keep.db, blobs, progress)
    history = tuple(fault for fault in faults if fault.startswith("event "))
    rest = tuple(fault for fault in faults if fault not in history)
    return [
        Checked("home", f"{keep.home}, {size(shutil.disk_usage(keep.home).free)} free"),
        Checked("installed", _installed()),
        Checked("history", _history(keep), history),
        Checked("store", "the database, every blob, and everything that refers to one", rest),
    ]


def _history(keep: Keep) -> str:
    try:
        with keep.db.read() as conn:
            count, head = events.head(conn)
    except Damaged:
        return "cannot be read"
    return f"{count} events, head {head[:16]}"


def _installed() -> str:
    found = [f"modelkeep {__version__}", f"Python {platform.python_version()}"]
    for name in _LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} missing")
    return ", ".join(found)
