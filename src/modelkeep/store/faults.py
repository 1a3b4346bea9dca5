"""What a database driver's error means to a caller."""

from __future__ import annotations

import sqlite3
from typing import Any

from sqlalchemy.exc import DBAPIError, IntegrityError

from modelkeep.core.errors import Conflict, Damaged, Invalid, ModelkeepError, Unavailable

_FULL = "the disk is full: nothing of this change was kept"
_SQLITE = {  # primary result codes, sqlite.org/rescode.html
    sqlite3.SQLITE_FULL: (Unavailable, _FULL, "free some space and try again"),
    sqlite3.SQLITE_READONLY: (Unavailable, "the database cannot be written", "check the disk and its permissions"),
    sqlite3.SQLITE_IOERR: (Unavailable, "the disk refused to read or write the database", "check the disk"),
    sqlite3.SQLITE_CANTOPEN: (Unavailable, "the database file cannot be opened", "check the path and permissions"),
    sqlite3.SQLITE_BUSY: (Unavailable, "another process kept the database locked for too long", "try again"),
    sqlite3.SQLITE_LOCKED: (Unavailable, "another connection kept the database locked", "try again"),
    sqlite3.SQLITE_CORRUPT: (Damaged, "the database file is damaged", "restore it from a backup"),
    sqlite3.SQLITE_NOTADB: (Damaged, "the file is not a database", "check the path, or restore it from a backup"),
}
_POSTGRES: dict[
    str, tuple[type[ModelkeepError], str, str]
] = {  # SQLSTATE or classes of it, postgresql.org/docs/current/errcodes-appendix.html
    "22": (Invalid, "a value is not one that the database can keep", ""),
    "25006": (Unavailable, "the database cannot be written", "check whether the server is read-only or a standby"),
    "08": (Unavailable, "the connection to the database was lost", "try again"),
    "53": (Unavailable, "the database has run out of disk, memory or connections", "free some and try again"),
    "57": (Unavailable, "the database was stopped", "try again"),
    "58": (Unavailable, "the database server's disk failed", "check the server"),
    "XX": (Damaged, "the database is damaged", "restore it from a backup"),
}
_COLLISIONS = ("40001", "40P01")  # serialization failure, deadlock


def translate(error: BaseException) -> BaseException:
    """The error of this package that says the same as the driver's; any other error is returned as it is."""
    if isinstance(error, ModelkeepError):
        return error
    if isinstance(error, OSError):
        return Unavailable(
            f"the disk cannot be used: {error.strerror or error}: {error.filename or ''}".rstrip(": ")
        )
    if isinstance(error, OverflowError):
        return Invalid(f"a whole number does not fit 64 bits ({error})")
    original = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(original, UnicodeEncodeError | OverflowError) or _ill_formed(original):
        return Invalid(f"the database cannot hold a value that was given: {str(original).strip()}")
    found = _found(original)
    if found is None and isinstance(error, DBAPIError) and error.connection_invalidated:
        found = _POSTGRES["08"]
    if found is None and (isinstance(error, IntegrityError) or _violates(original)):
        found = (Conflict, "another row stands against it", "")
    if found is None:
        return error
    kind, message, hint = found
    fault: ModelkeepError = kind(f"{message} ({str(original).strip()})", hint=hint)
    fault.__cause__ = error
    return fault


def collided(error: BaseException) -> bool:
    """Whether the database sacrificed this transaction to another one; running it again is right."""
    return getattr(getattr(error, "orig", error), "sqlstate", None) in _COLLISIONS


def is_lost(error: BaseException) -> bool:
    """Whether the database cannot be used at all, so that running works one by one would help none of them."""
    return isinstance(translate(error), Unavailable | Damaged)


def is_busy(error: BaseException) -> bool:
    """Whether SQLite found another process writing."""
    code = getattr(getattr(error, "orig", error), "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _violates(original: Any) -> bool:
    state = getattr(original, "sqlstate", None) or ""
    return isinstance(original, sqlite3.IntegrityError) or state.startswith("23")


def _ill_formed(original: Any) -> bool:
    """Whether PostgreSQL finds a value wrong, as a text with a NUL: SQLSTATE class 22, or the driver itself."""
    if not type(original).__module__.startswith("psycopg"):
        return False
    state = getattr(original, "sqlstate", None)
    return type(original).__name__ == "DataError" if state is None else state.startswith("22")


def _found(original: Any) -> tuple[type[ModelkeepError], str, str] | None:
    code = getattr(original, "sqlite_errorcode", None)
    if code is not None:
        return _SQLITE.get(code & 0xFF)
    if not type(original).__module__.startswith("psycopg"):
        return None
    state = getattr(original, "sqlstate", None)
    if state is None and type(original).__name__ in ("OperationalError", "ConnectionTimeout"):
        return _POSTGRES["08"]
    if state is None and type(original).__name__ == "DataError":  # found by the driver itself, as a NUL in a text
        return _POSTGRES["22"]
    state = state or ""
    return _POSTGRES.get(state) or _POSTGRES.get(state[:2])
