"""The accounts as a process knows them: from the database, and from a copy while that is away."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from modelkeep.registry import access
from modelkeep.registry.access import UNKNOWN, Accounts
from modelkeep.store.database import Database

FRESH = 0.5
"""Seconds for which what was read counts: a revoked token is refused everywhere after this time."""

log = logging.getLogger(__name__)


class Read:
    """Accounts for a process that cannot do without the database: read when asked, and not too often.

    Args:
        db: The database.
    """

    def __init__(self, db: Database) -> None:
        self._db = db
        self._known = Accounts(UNKNOWN)
        self._at = 0.0
        self.fresh()

    def __call__(self) -> Accounts:
        """The accounts; the same object until they change. While the database is away, those last known."""
        if time.monotonic() - self._at >= FRESH:
            try:
                self.fresh()
            except Exception as error:  # whatever it is: to forget who may ask would let nobody in, or everybody
                self._at = time.monotonic()
                log.warning("the accounts cannot be read, those last known count: %s", error)
        return self._known

    def fresh(self) -> None:
        """Read them now, as after changing them. Raises ``Unavailable``."""
        with self._db.read() as conn:
            if access.generation(conn) != self._known.generation:
                self._known = access.load(conn)
        self._at = time.monotonic()


class Followed:
    """Accounts for a serving process, which goes on without the database: a thread reads them and keeps a copy.

    The copy holds digests and hashes only, and only its owner may read it.

    Args:
        open_database: Opens the database.
        copy: Where the copy is kept.
    """

    def __init__(self, open_database: Callable[[], Database], copy: Path) -> None:
        self._open = open_database
        self._copy = copy
        self._db: Database | None = None
        self._known = kept(copy) or Accounts(UNKNOWN)
        self._look_once()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="modelkeep-accounts", daemon=True)
        self._thread.start()

    def __call__(self) -> Accounts:
        """The accounts as last read; when they never could be, such as let nobody in."""
        return self._known

    def close(self) -> None:
        """Stop reading."""
        self._stop.set()
        self._thread.join(5)
        if self._db is not None:
            self._db.close()

    def _follow(self) -> None:
        while not self._stop.wait(FRESH / 2):
            self._look_once()

    def _look_once(self) -> None:
        try:
            if self._db is None:
                self._db = self._open()
            with self._db.read() as conn:
                if access.generation(conn) == self._known.generation:
                    return
                found = access.load(conn)
        except Exception as error:  # the thread must outlive whatever the database does
            log.debug("the accounts cannot be read, those last known count: %s", error)
            return
        self._known = found
        _save(self._copy, found)


def kept(path: Path) -> Accounts | None:
    """The copy that ``Followed`` keeps; None when there is none that can be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Accounts)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        log.warning("the copy of the accounts in %s cannot be read: %s", path, error)
        return None


def _save(path: Path, accounts: Accounts) -> None:
    fresh = path.with_suffix(".next")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            fresh.unlink()
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(msgspec.json.encode(accounts))
        fresh.replace(path)
    except OSError as error:
        log.warning("the accounts could not be kept in %s: %s", path, error)
