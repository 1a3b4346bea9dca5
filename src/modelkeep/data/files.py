"""Which files of this machine a source names, and their fingerprints. Opens none, imports nothing that could."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from modelkeep.core.errors import NotFound

SUFFIXES = (".parquet", ".pq", ".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".arrow", ".feather", ".ipc")
"""Ends of the names of data files; ``readers`` has a reader for each."""

WILD = re.compile(r"[*?\[]")


def is_local(address: str) -> bool:
    """Whether an address is of files of this machine."""
    return bool(address) and ("://" not in address or address.startswith("file://"))


@dataclass(frozen=True, slots=True)
class Listing:
    """A file, a folder (searched through) or a glob on this machine.

    Attributes:
        address: As declared.
        base: The declaration's folder: relative paths start there.
    """

    address: str
    base: Path

    def fingerprint(self) -> Mapping[str, str]:
        """Size and time of change by path, relative to the declaration's folder where it is inside.

        Raises:
            NotFound: There is no such file.
        """
        return {self._name(path): _stamp(path) for path in self._found()}

    def _found(self) -> list[Path]:
        address = self.address.removeprefix("file://")
        whole = self.base / address
        if whole.is_file():
            paths = [whole]
        elif whole.is_dir():
            paths = [path for path in whole.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
        else:
            start = Path(address).anchor  # a glob may be absolute
            pattern = address.removeprefix(start)
            paths = [path for path in (Path(start) if start else self.base).glob(pattern) if path.is_file()]
        visible = [path for path in sorted(paths) if not path.name.startswith((".", "_"))]
        if not visible:
            what = "matches" if WILD.search(address) else "in" if whole.is_dir() else "at"
            raise NotFound(
                f"data.source: no data file {what} {address!r} (looked in {self.base})",
                hint=f"check the path; files end in {', '.join(SUFFIXES)}",
            )
        return visible

    def _name(self, path: Path) -> str:
        try:
            return path.relative_to(self.base).as_posix()
        except ValueError:
            return path.as_posix()


def _stamp(path: Path) -> str:
    stat = path.stat()
    return f"{stat.st_size}-{stat.st_mtime_ns}"
