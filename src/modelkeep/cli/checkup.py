"""The checks of ``doctor``."""

from __future__ import annotations

import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, cast

from msgspec import Struct

from modelkeep import __version__
from modelkeep.cli.output import size
from modelkeep.core.errors import ModelkeepError
from modelkeep.core.ports import Progress
from modelkeep.registry import events, models, snapshots
from modelkeep.store.blobs import Blobs, read_tree, verify_all

if TYPE_CHECKING:
    from sqlalchemy import Connection

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
    with keep.db.read() as conn:
        history = events.verify(conn)
        count, head = events.head(conn)
        packages = _packages(conn, keep)
        taken = _snapshots(conn, keep)
    # The composition root always opens the chunked store; only that one can list what it holds.
    blobs = cast("Blobs", keep.blobs)
    faults = verify_all(blobs, progress)
    kept = sum(1 for _ in blobs.digests())
    return [
        Checked("home", f"{keep.home}, {size(shutil.disk_usage(keep.home).free)} free"),
        Checked("versions", _installed()),
        Checked("history", f"{count} events, head {head[:16]}", tuple(history)),
        packages,
        taken,
        Checked("blobs", f"{kept} read and compared with their digests", tuple(faults)),
    ]


def _installed() -> str:
    found = [f"modelkeep {__version__}", f"Python {platform.python_version()}"]
    for name in _LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} missing")
    return ", ".join(found)


def _packages(conn: Connection, keep: Keep) -> Checked:
    """Every version's package is there with all its files."""
    faults = []
    count = 0
    for model in models.models(conn):
        for found in models.versions(conn, model):
            if not found.package:
                continue
            count += 1
            try:
                tree = read_tree(keep.blobs, found.package)
            except ModelkeepError as error:
                faults.append(f"{found.name}: {error.message}")
            else:
                missing = [path for path, digest in tree.items() if not keep.blobs.exists(digest)]
                faults += [f"{found.name}: the file {path} of its package is missing" for path in missing]
    return Checked("packages", f"{count} versions with their packages", tuple(faults))


def _snapshots(conn: Connection, keep: Keep) -> Checked:
    """Every snapshot's manifest and parts are there."""
    faults = []
    count = 0
    for name in snapshots.names(conn):
        for record in snapshots.named(conn, name):
            count += 1
            needed = {record.manifest, *(part.digest for part in record.fingerprints.values())}
            faults += [
                f"snapshot {record.digest[:12]} of {name}: blob {digest} is missing"
                for digest in sorted(needed)
                if not keep.blobs.exists(digest)
            ]
    return Checked("snapshots", f"{count} takings with all their parts", tuple(faults))
