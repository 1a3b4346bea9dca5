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
from modelkeep.store.disks import flushes_as_a_whole, fsync_folder
from modelkeep.store.journal import MOST, Journal, Record

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

    def batch(self, *, gathered: bool = False) -> Batch:
        """Begin adding objects.

        Args:
            gathered: They come many at a time, again and again: those that are small may share one flush.
        """
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

    def settle(self) -> None:
        """Before objects are discarded: whatever could bring them back is gone. Raises ``Unavailable``."""
        ...

    def unsettled(self) -> list[str]:
        """What processes that ended left behind and could not be put in order, one line each."""
        ...

    def close(self) -> None:
        """Leave nothing behind that the next one would have to put in order. It may be used again."""
        ...


class Folder:
    """A local folder. A new object is written beside, flushed, renamed, and its folder flushed.

    Small ones that are gathered are flushed in a journal instead, where the file system allows it.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self.url = str(root.absolute())
        self._drafts = root / "drafts"
        self._condemned = root / "condemned"
        self._pool = ThreadPoolExecutor(_FSYNCS, thread_name_prefix="modelkeep-fsync")
        with _disk(root):
            self._drafts.mkdir(parents=True, exist_ok=True)
        self._sweep()
        self._journal = Journal(root, self._write) if flushes_as_a_whole(root) else None
        self._alive = set[str]()  # in the journals of other processes, which may write them again
        if self._journal is not None:
            self._journal.recover()

    def batch(self, *, gathered: bool = False) -> FolderBatch:
        return FolderBatch(self._root, self._drafts, self._pool, self._journal if gathered else None)

    def settle(self) -> None:
        if self._journal is not None:
            self._journal.settle()
            self._alive = self._journal.recover()

    def unsettled(self) -> list[str]:
        left = [] if self._journal is None else self._journal.left
        return [f"journal {path}: {why}" for path, why in left]

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()

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
        if self._journal is not None and self._journal.busy:
            self._journal.settle()
        with _disk(self._root):
            (self._root / name).unlink(missing_ok=True)

    def discard(self, name: str, before: float) -> bool:
        if name in self._alive:
            return False
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

    def _write(self, found: Sequence[Record]) -> None:
        batch = self.batch()
        try:
            for name, payload in found:
                batch.add(name, (payload,))
            batch.seal()
        finally:
            batch.drop()

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
    """Objects written to drafts, made durable together: many flushes at once cost little more than one.

    Args:
        journal: Where small ones are made durable instead.
    """

    def __init__(self, root: Path, drafts: Path, pool: ThreadPoolExecutor, journal: Journal | None) -> None:
        self._root, self._drafts, self._pool, self._journal = root, drafts, pool, journal
        self._waiting: dict[str, tuple[int, Path]] = {}
        self._small: dict[str, tuple[bytes, Path]] = {}
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
        # Whatever has a name has been flushed, itself or in a journal; only its folder's entry may not have been.
        self._touched.add(path.parent)
        return True

    def add(self, name: str, payload: Sequence[Buffer]) -> None:
        if name in self._waiting or name in self._small:
            return
        draft = self._drafts / secrets.token_hex(12)
        with _disk(self._root):
            file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            if self._journal is not None and sum(map(len, payload)) <= MOST:
                whole = b"".join(payload)
                self._small[name] = (whole, draft)
                try:
                    _write(file, whole)
                finally:
                    os.close(file)
                return
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
            self._each(fsync_folder, sorted(folders))
            if self._journal is not None and self._small:
                with self._journal.kept(Record(name, whole) for name, (whole, _) in self._small.items()):
                    for name, (_, draft) in self._small.items():
                        self._rename(draft, self._root / name)
                self._small.clear()

    def drop(self) -> None:
        for file, draft in self._waiting.values():
            os.close(file)
            with contextlib.suppress(OSError):
                draft.unlink()
        for _, draft in self._small.values():
            with contextlib.suppress(OSError):
                draft.unlink()
        self._waiting.clear()
        self._small.clear()
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
