"""Dumb byte stores: names to bytes. What all of them promise, and a folder; ``store.buckets`` has the others."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from modelkeep.core.errors import NotFound, Unavailable
from modelkeep.store.chunks import Buffer

_FSYNCS = 8  # at once: a journalling file system then answers them with few flushes
_STALE = 24 * 3600.0


class Entry(NamedTuple):
    """An object: its name, size in bytes, and when it was last added or touched, seconds since 1970."""

    name: str
    size: int
    time: float


class Batch(Protocol):
    """Objects on their way in."""

    def add(self, name: str, payload: Sequence[Buffer]) -> None:
        """Hand over one object, given in pieces. It need not be visible before the batch is sealed."""
        ...

    def touch(self, name: str) -> bool:
        """Whether there is an object of this name; if so it is durable with the batch, and counts as new."""
        ...

    def seal(self) -> None:
        """Return once all objects are durable under their names. The batch may be used again."""
        ...

    def drop(self) -> None:
        """Forget what was added since the last seal."""
        ...


class ByteStore(Protocol):
    """Promises: an object is under its name whole or not at all; writing equal bytes again is harmless."""

    @property
    def url(self) -> str:
        """What ``open_bytes`` opens it by."""
        ...

    def batch(self) -> Batch:
        """Begin adding objects."""
        ...

    def get(self, name: str) -> bytes:
        """The bytes under a name. Raises ``NotFound``, ``Unavailable``."""
        ...

    def exists(self, name: str) -> bool:
        """Whether there is an object of this name."""
        ...

    def head(self, name: str, count: int) -> bytes:
        """The first bytes under a name. Raises ``NotFound``, ``Unavailable``."""
        ...

    def delete(self, name: str) -> None:
        """Remove an object; no error when it is not there."""
        ...

    def discard(self, name: str, before: float) -> bool:
        """Remove an object unless it was added or touched since ``before``; whether it is gone."""
        ...

    def names(self, folder: str) -> Iterator[str]:
        """Every name under a folder."""
        ...

    def entries(self, folder: str) -> Iterator[Entry]:
        """Everything under a folder."""
        ...


class Folder:
    """A local folder. A new object is written beside, flushed, renamed, and its folder flushed."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.url = str(root.absolute())
        self._drafts = root / "drafts"
        self._condemned = root / "condemned"
        self._pool = ThreadPoolExecutor(_FSYNCS, thread_name_prefix="modelkeep-fsync")
        with _disk(root):
            self._drafts.mkdir(parents=True, exist_ok=True)
        self._sweep()

    def batch(self) -> FolderBatch:
        return FolderBatch(self._root, self._drafts, self._pool)

    def get(self, name: str) -> bytes:
        try:
            with open(f"{self.url}/{name}", "rb", buffering=0) as file:  # noqa: PTH123 - a third of pathlib's time
                return file.read()
        except FileNotFoundError:
            raise NotFound(f"there is no {name} in {self._root}") from None
        except OSError as error:
            raise Unavailable(f"{self._root / name} cannot be read: {error.strerror}") from error

    def exists(self, name: str) -> bool:
        return (self._root / name).exists()

    def head(self, name: str, count: int) -> bytes:
        try:
            with (self._root / name).open("rb", buffering=0) as file:
                return file.read(count)
        except FileNotFoundError:
            raise NotFound(f"there is no {name} in {self._root}") from None

    def delete(self, name: str) -> None:
        with _disk(self._root):
            (self._root / name).unlink(missing_ok=True)

    def discard(self, name: str, before: float) -> bool:
        # Who touches it after it was looked at finds it gone and writes it; who touched it before is seen.
        aside = self._condemned / name.replace("/", "-")
        with _disk(self._root):
            self._condemned.mkdir(exist_ok=True)
        try:
            (self._root / name).rename(aside)
        except FileNotFoundError:
            return True
        if aside.stat().st_mtime < before:
            aside.unlink(missing_ok=True)
            return True
        self._give_back(aside)
        return False

    def names(self, folder: str) -> Iterator[str]:
        shards = self._root / folder
        if not shards.is_dir():
            return
        for shard in sorted(shards.iterdir()):
            for name in sorted(entry.name for entry in shard.iterdir()):
                yield f"{folder}/{shard.name}/{name}"

    def entries(self, folder: str) -> Iterator[Entry]:
        for name in self.names(folder):
            with contextlib.suppress(FileNotFoundError):
                found = (self._root / name).stat()
                yield Entry(name, found.st_size, found.st_mtime)

    def _give_back(self, aside: Path) -> None:
        folder, shard, rest = aside.name.split("-")
        with contextlib.suppress(FileNotFoundError):
            aside.replace(self._root / folder / shard / rest)  # equal bytes, if somebody has written it anew

    def _sweep(self) -> None:
        """Remove drafts that a crash left behind, and give back what it was about to remove."""
        for aside in self._condemned.iterdir() if self._condemned.is_dir() else ():
            self._give_back(aside)
        before = time.time() - _STALE
        for draft in self._drafts.iterdir():
            with contextlib.suppress(OSError):
                if draft.stat().st_mtime < before:
                    draft.unlink()


class FolderBatch:
    """Objects written to drafts, made durable together: many flushes at once cost little more than one."""

    def __init__(self, root: Path, drafts: Path, pool: ThreadPoolExecutor) -> None:
        self._root, self._drafts, self._pool = root, drafts, pool
        self._waiting: dict[str, tuple[int, Path]] = {}
        self._touched: set[Path] = set()

    def touch(self, name: str) -> bool:
        path = self._root / name
        try:
            os.utime(path)
        except FileNotFoundError:
            return False
        except OSError:  # of another user, or on a disk that is only read
            if not path.exists():
                return False
        # Whatever has a name has been flushed; only its folder's entry may not have been.
        self._touched.add(path.parent)
        return True

    def add(self, name: str, payload: Sequence[Buffer]) -> None:
        if name in self._waiting:
            return
        draft = self._drafts / secrets.token_hex(12)
        with _disk(self._root):
            file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            self._waiting[name] = (file, draft)
            for piece in payload:
                _write(file, piece)

    def seal(self) -> None:
        waiting = list(self._waiting.items())
        folders, self._touched = self._touched, set()
        with _disk(self._root):
            self._each(os.fsync, [file for _, (file, _) in waiting])
            for name, (file, draft) in waiting:
                os.close(file)
                del self._waiting[name]
                folders |= self._rename(draft, self._root / name)
            self._each(_fsync_folder, sorted(folders))

    def drop(self) -> None:
        for file, draft in self._waiting.values():
            os.close(file)
            with contextlib.suppress(OSError):
                draft.unlink()
        self._waiting.clear()
        self._touched.clear()

    def _each(self, do: Any, items: Sequence[Any]) -> None:
        if len(items) == 1:
            do(items[0])
        else:
            for _ in self._pool.map(do, items):
                pass

    def _rename(self, draft: Path, target: Path) -> set[Path]:
        """Give a draft its name; returns the folders whose entries changed."""
        changed = {target.parent}
        try:
            draft.rename(target)
        except FileNotFoundError:
            for folder in (target.parent.parent, target.parent):
                if not folder.is_dir():
                    folder.mkdir(exist_ok=True)
                    changed.add(folder.parent)
            draft.rename(target)
        return changed


def _write(file: int, piece: Buffer) -> None:
    view = memoryview(piece)
    while view:
        view = view[os.write(file, view) :]


def _fsync_folder(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


@contextlib.contextmanager
def _disk(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        free = ""
        with contextlib.suppress(OSError):
            free = f"; {shutil.disk_usage(root).free / 1e6:.0f} MB are free there"
        raise Unavailable(
            f"blobs cannot be kept in {root}: {error.strerror}{free}", hint="free some space"
        ) from error
