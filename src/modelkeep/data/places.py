"""Places that hold files by name: a folder of this machine, or a prefix of an object store.

Plain values, so that workers on other machines can open them: what is opened is opened where it is used.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import obstore
import pyarrow as pa
from obstore.exceptions import BaseError, NotFoundError

from modelkeep.core.errors import NotFound, Unavailable
from modelkeep.core.scratch import temporary
from modelkeep.data.files import SUFFIXES, WILD, Listing, is_local
from modelkeep.data.sources import RemoteFiles
from modelkeep.data.writers import write_tables
from modelkeep.store import objects


@dataclass(frozen=True)
class Place:
    """Files under one address.

    Attributes:
        root: An absolute folder, or ``scheme://bucket/prefix``, without a slash at the end.
    """

    root: str

    @property
    def local(self) -> bool:
        """Whether it is a folder of this machine."""
        return is_local(self.root)

    def __str__(self) -> str:
        return self.root

    def path(self, name: str) -> Path:
        """Where a file of a folder is."""
        return Path(self.root) / name

    def room(self, name: str) -> Path:
        """Where a file of a folder will be; what it lies in is made. Raises ``Unavailable``."""
        path = self.path(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Unavailable(f"cannot write {path}: {error.strerror or error}") from error
        return path

    def fetch(self, name: str, scratch: Path) -> Path:
        """A file's path on this machine: its own, or that of a copy in ``scratch``, made in flat memory.

        Raises:
            NotFound: There is no such file.
            Unavailable: The store does not answer, or this machine's disk is full.
        """
        if self.local:
            path = self.path(name)
            if not path.is_file():
                raise NotFound(f"{path} is gone")
            return path
        return objects.fetch(self._store, f"{self.root}/{name}", self._key(name), scratch)

    def keep(self, path: Path, name: str) -> None:
        """Move a finished file of this machine under a name, whole or not at all.

        Raises:
            Unavailable: It cannot be written.
        """
        try:
            if self.local:
                target = self.room(name)
                if path.parent != target.parent:  # perhaps another disk, where a rename would be a copy
                    shutil.move(path, beside := target.with_name(f".{target.name}.new"))
                    path = beside
                path.replace(target)
            else:
                with path.open("rb") as file:  # in pieces when it is large: it shows when all are there
                    obstore.put(self._store, self._key(name), file)
                path.unlink()
        except BaseError as error:
            raise objects.fault(f"{self.root}/{name}", error) from error
        except OSError as error:
            raise Unavailable(f"cannot write {self.root}/{name}: {error}") from error

    def write(self, name: str, data: bytes, scratch: Path) -> None:
        """A small file, whole or not at all. Raises ``Unavailable``."""
        draft = scratch / "draft"
        draft.write_bytes(data)
        self.keep(draft, name)

    def read(self, name: str) -> bytes | None:
        """A small file; None when it is not there. Raises ``Unavailable``."""
        try:
            if self.local:
                return self.path(name).read_bytes()
            return bytes(obstore.get(self._store, self._key(name)).bytes())
        except (FileNotFoundError, NotFoundError):
            return None
        except BaseError as error:
            raise objects.fault(f"{self.root}/{name}", error) from error
        except OSError as error:
            raise Unavailable(f"{self.root}/{name} cannot be read: {error}") from error

    def remove(self, name: str) -> None:
        """Forget a file; no error when it is not there. Raises ``Unavailable``."""
        try:
            if self.local:
                self.path(name).unlink(missing_ok=True)
            else:
                obstore.delete(self._store, self._key(name))
        except (FileNotFoundError, NotFoundError):
            return
        except (BaseError, OSError) as error:
            raise Unavailable(f"{self.root}/{name} cannot be removed: {error}") from error

    @cached_property
    def _store(self) -> Any:
        scheme, _, rest = self.root.partition("://")
        return objects.open_store(f"{scheme}://{rest.partition('/')[0]}")

    def _key(self, name: str) -> str:
        prefix = self.root.partition("://")[2].partition("/")[2]
        return f"{prefix}/{name}" if prefix else name

    def __getstate__(self) -> dict[str, str]:
        return {"root": self.root}  # an opened store stays where it was opened


def place(address: str, base: Path) -> Place:
    """The place that an address names. Relative folders start at ``base``."""
    if is_local(address):
        return Place(str((base / address.removeprefix("file://")).resolve()))
    return Place(address.rstrip("/"))


def write_at(address: str, tables: Iterable[pa.Table]) -> int:
    """Write a file at a path or an object store's URL, table by table, whole or not at all; how many rows.

    Raises:
        Invalid: As ``write_tables``.
        Unavailable: It cannot be written.
    """
    if is_local(address):
        return write_tables(tables, Path(address.removeprefix("file://")))
    folder, _, name = address.rpartition("/")
    with temporary("export") as scratch:
        rows = write_tables(tables, scratch / name)
        Place(folder).keep(scratch / name, name)
    return rows


def partitions(address: str, base: Path) -> tuple[Place, Mapping[str, str]]:
    """The data files that a file's path, a folder, a glob or an object store's URL names.

    Returns:
        The place they are in, and their fingerprints by name, in order.

    Raises:
        NotFound: There are none.
        Unavailable: The store does not answer.
    """
    wild = WILD.search(address)
    head = address[: wild.start()].rpartition("/")[0] if wild else address
    if is_local(address):
        base = base.resolve()
        found = Listing(address, base).fingerprint()
        root = place(head, base)
        if not wild and Path(root.root).is_file():
            root = Place(str(Path(root.root).parent))
        names = {str(Path(base / name).resolve()): mark for name, mark in found.items()}
    else:
        root = Place(head.rstrip("/"))
        names = dict(RemoteFiles(address).fingerprint())
        if not wild and Path(address).suffix.lower() in SUFFIXES:
            root = Place(address.rpartition("/")[0])
    start = len(root.root.rstrip("/")) + 1
    made = {name[start:]: mark for name, mark in names.items()}
    visible = {
        name: mark for name, mark in made.items() if not any(p.startswith(("_", ".")) for p in name.split("/"))
    }
    if not visible:
        raise NotFound(f"no data file in {address!r}", hint=f"files end in {', '.join(SUFFIXES)}")
    return root, dict(sorted(visible.items()))
