"""Small objects of a folder made durable together: written once more, one after the other, to one file.

That file is flushed before any of them shows under its name, so their own files need no flush of their own. Now
and then all of them are flushed at once and the journal is removed. After a crash, whoever opens the folder next
writes what the disk has lost; a journal whose process is alive is left alone. See docs/decisions/0008.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import secrets
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

from modelkeep.core.errors import ModelkeepError, Unavailable
from modelkeep.store.disks import fsync_folder, syncfs

MOST = 32 * 1024
"""Bytes of an object up to which writing it twice is cheaper than flushing its own file."""
SIZE, AGE, AGAIN = 64 * 1024 * 1024, 10.0, 30.0
"""Bytes and seconds after which a journal is settled; seconds after which that is tried again."""

_HEAD = struct.Struct("<4sHI32s")  # mark, length of name and of payload, BLAKE3 of both lengths, name and payload
_MARK = b"mkj1"
_NAME = re.compile(r"[a-z]+/[0-9a-f]{2}/[0-9a-f]{62}")
_REPLAYED = 1000  # records at once

log = logging.getLogger(__name__)


class Record(NamedTuple):
    """An object: its name in the folder, and its bytes."""

    name: str
    payload: bytes


class Left(NamedTuple):
    """A journal of a process that has ended, which could not be settled: its file, and why."""

    path: Path
    why: str


def to_bytes(record: Record) -> bytes:
    """As it stands in a journal."""
    name = record.name.encode()
    return b"".join(
        (_HEAD.pack(_MARK, len(name), len(record.payload), _sum(name, record.payload)), name, record.payload)
    )


def records(path: Path) -> Iterator[Record]:
    """Those of a journal that are whole, up to the first that is not: none behind that was acknowledged."""
    with path.open("rb") as file:
        while len(head := file.read(_HEAD.size)) == _HEAD.size:
            mark, length, size, told = _HEAD.unpack(head)
            if mark != _MARK or size > 2 * MOST:
                return
            body = file.read(length + size)
            name, payload = body[:length], body[length:]
            if (
                len(payload) != size
                or _sum(name, payload) != told
                or not _NAME.fullmatch(name.decode(errors="replace"))
            ):
                return
            yield Record(name.decode(), payload)


def _sum(name: bytes, payload: bytes) -> bytes:
    return blake3(b"%d %s %d " % (len(name), name, len(payload))).update(payload).digest()


class _File:
    """A journal that this process writes, which nobody else touches while it is locked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.born = time.monotonic()
        self.written = self.flushed = 0
        self.showing = 0  # groups that are durable here but may not all be under their names yet
        self.failed: OSError | None = None
        self.doubtful = False  # what was flushed as a whole may not have reached the disk
        self.flushing = threading.Lock()
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fsync_folder(path.parent)
        except OSError:
            self.remove()
            raise

    def write(self, data: bytes) -> int:
        """Where its end will be once it is flushed. After an error the file's tail is torn: write no more."""
        view = memoryview(data)
        while view:
            view = view[os.write(self.file, view) :]
        self.written += len(data)
        return self.written

    def flush(self, end: int) -> None:
        """Return once all up to there is durable; who waits is served by whoever is before."""
        with self.flushing:
            if self.flushed >= end:
                return
            if self.failed is not None:
                raise self.failed
            written = self.written
            try:
                os.fdatasync(self.file)
                if not os.fstat(self.file).st_nlink:
                    raise OSError(0, f"{self.path} was removed by somebody else")
            except OSError as error:
                self.failed = error  # trying again would succeed although the bytes are lost: man 2 fsync
                raise
            self.flushed = written

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        os.close(self.file)


class Journal:
    """The journals of one folder.

    Args:
        root: The folder. A folder ``journal`` is made in it when the first objects come.
        write: Writes objects under their names, durably.

    Attributes:
        left: Journals of processes that have ended, as ``recover`` found and could not settle them.
    """

    def __init__(self, root: Path, write: Callable[[Sequence[Record]], None]) -> None:
        self._root = root
        self._folder = root / "journal"
        self._write = write
        self._changed = threading.Condition()
        self._current: _File | None = None
        self._retired: list[_File] = []
        self._settling = threading.Lock()
        self._tending = False
        self.left: list[Left] = []

    @property
    def busy(self) -> bool:
        """Whether anything stands in a journal of this process."""
        return self._current is not None or bool(self._retired)

    @contextlib.contextmanager
    def kept(self, added: Iterable[Record]) -> Iterator[None]:
        """Make objects durable. Inside, give them their names: until then nothing counts on their files.

        Raises:
            OSError: The disk is full or away; none of them is kept.
        """
        data = b"".join(map(to_bytes, added))
        with self._changed:
            journal = self._current or self._open()
            try:
                end = journal.write(data)
            except OSError:
                self._retire()
                raise
            journal.showing += 1
            if journal.written >= SIZE:
                self._retire()
        try:
            try:
                journal.flush(end)
            except OSError:
                with self._changed:
                    if self._current is journal:
                        self._retire()
                raise
            yield
        finally:
            with self._changed:
                journal.showing -= 1
                self._changed.notify_all()

    def settle(self) -> None:
        """Flush the objects' own files and remove this process's journals.

        Raises:
            Unavailable: The disk does not take it; the journals stay, and what is in them is durable all the same.
        """
        with self._changed:
            self._retire()
        fault = self._settle()
        if fault is not None:
            raise Unavailable(
                f"{self._folder} cannot be settled: {fault}", hint="check the disk; what is kept there is not lost"
            )

    def close(self) -> None:
        """Settle, or let go of what cannot be: whoever opens the folder next will. It may be used again."""
        with contextlib.suppress(Unavailable):  # the log has it
            self.settle()
        with self._settling, self._changed:
            for journal in [each for each in self._retired if not each.showing]:
                os.close(journal.file)
                self._retired.remove(journal)
            self._changed.notify_all()

    def recover(self) -> set[str]:
        """Settle the journals of processes that have ended; the names in those of others that are alive."""
        alive: set[str] = set()
        self.left = []
        try:
            found = sorted(self._folder.glob("*.journal"))
            if not found:
                return alive
            with self._locked():
                for path in found:
                    alive |= self._settle_dead(path)
        except OSError as error:
            log.warning("%s cannot be read: %s", self._folder, error.strerror)
        return alive

    def _open(self) -> _File:
        if not self._folder.is_dir():
            self._folder.mkdir(exist_ok=True)
            fsync_folder(self._root)
        with self._locked():  # nobody takes it for a dead one before it is locked
            self._current = _File(self._folder / f"{secrets.token_hex(8)}.journal")
        if not self._tending:
            self._tending = True
            threading.Thread(target=self._tend, name="modelkeep-journal", daemon=True).start()
        return self._current

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Only one process at a time begins journals or looks whether others are dead."""
        file = os.open(self._folder / "lock", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            os.close(file)

    def _retire(self) -> None:
        """Write no more to the current one."""
        if self._current is not None:
            self._retired.append(self._current)
            self._current = None
        self._changed.notify_all()

    def _tend(self) -> None:
        """Settle journals that are large or old enough, until there are none."""
        while True:
            with self._changed:
                while not self._retired and (current := self._current) is not None:
                    if (left := current.born + AGE - time.monotonic()) <= 0:
                        self._retire()
                    else:
                        self._changed.wait(left)
                if not self._retired:
                    self._tending = False
                    return
            if self._settle() is not None:
                with self._changed:
                    self._changed.wait_for(lambda: not self._retired, AGAIN)

    def _settle(self) -> str | None:
        """Settle what is retired; what went wrong, if anything did."""
        with self._settling:
            with self._changed:
                retired = list(self._retired)
                self._changed.wait_for(lambda: not any(journal.showing for journal in retired))
            if not retired:
                return None
            try:
                for journal in retired:
                    self._flush_all(journal)
                    self._forget(journal)
                fsync_folder(self._folder)
            except (OSError, ModelkeepError) as error:
                log.warning("%s cannot be settled and stays: %s", self._folder, _said(error))
                return _said(error)
            return None

    def _flush_all(self, journal: _File) -> None:
        if not journal.doubtful:
            try:
                syncfs(journal.file)  # its own: each is told of what went wrong since it was opened, and only once
                return
            except OSError as error:
                log.warning("what %s holds is written anew: %s", journal.path, error.strerror)
                journal.doubtful = True
        self._replay(journal.path, lambda _: True)

    def _forget(self, journal: _File) -> None:
        journal.remove()
        with self._changed:
            self._retired.remove(journal)
            self._changed.notify_all()

    def _settle_dead(self, path: Path) -> set[str]:
        """Settle a journal unless its process is alive; the names in it if it stays."""
        missing = 0
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(file).st_nlink:
                    missing = sum(map(self._lacks, records(path)))
                    self._replay(path, self._lacks)
                    try:
                        syncfs(file)
                    except OSError:
                        self._replay(path, lambda _: True)
                    path.unlink()
                    fsync_folder(self._folder)
                return set()
            finally:
                os.close(file)
        except FileNotFoundError:
            return set()
        except BlockingIOError:  # alive
            return self._names(path)
        except (OSError, ModelkeepError) as error:
            only_read = isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EACCES, errno.EPERM)
            if missing or not only_read:
                log.warning("%s, of a process that has ended, cannot be settled: %s", path, _said(error))
                self.left.append(Left(path, f"{missing} objects are missing; {_said(error)}"))
            return self._names(path)

    def _names(self, path: Path) -> set[str]:
        try:
            return {record.name for record in records(path)}
        except OSError:  # removed meanwhile, or not ours to read
            return set()

    def _lacks(self, record: Record) -> bool:
        try:
            with open(self._root / record.name, "rb", buffering=0) as file:  # noqa: PTH123 - many of them
                return file.read() != record.payload
        except FileNotFoundError:
            return True

    def _replay(self, path: Path, wanted: Callable[[Record], bool]) -> None:
        batch: list[Record] = []
        for record in records(path):
            if wanted(record):
                batch.append(record)
            if len(batch) == _REPLAYED:
                self._write(batch)
                batch = []
        self._write(batch)


def _said(error: OSError | ModelkeepError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else error.message
