"""Connections: the settings SQLite and PostgreSQL need to keep the same promises."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from modelkeep.core.errors import Invalid, Unavailable
from modelkeep.core.plugins import require
from modelkeep.store.faults import is_busy
from modelkeep.store.turns import Turns

MAPPED = 0x7FFF0000
"""Bytes of a SQLite file that reading maps into memory, SQLite's limit: rows far apart cost no call each."""

PATIENCE = 30.0
"""Seconds a writer waits for other processes before it gives up."""

_EXAMPLES = "'sqlite:////folder/modelkeep.db' or 'postgresql+psycopg://user@host/name'"


def parse(url: str) -> URL:
    """Read a database URL. Raises ``Invalid`` when it is neither SQLite nor PostgreSQL."""
    try:
        found = make_url(url)
    except (ArgumentError, NoSuchModuleError):
        raise Invalid(f"{url!r} is not a database URL; expected {_EXAMPLES}", path="database") from None
    if found.drivername in ("postgresql", "postgres"):
        found = found.set(drivername="postgresql+psycopg")
    if found.drivername not in ("sqlite", "postgresql+psycopg"):
        raise Invalid(f"{found.drivername!r} is not supported; expected {_EXAMPLES}", path="database")
    if found.drivername == "sqlite" and (found.database or ":memory:") == ":memory:":
        raise Invalid("a database in memory forgets everything; expected a file", path="database")
    return found


def reading(url: URL) -> Engine:
    """A pool of read-only connections; each transaction sees one state of the database."""
    if url.drivername != "sqlite":
        options = {"postgresql_readonly": True, "isolation_level": "REPEATABLE READ"}
        return _postgres(url, pool_size=8, max_overflow=24, execution_options=options)
    engine = create_engine(url, pool_size=8, max_overflow=56, connect_args=_sqlite_arguments())

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, _: object) -> None:
        connection.execute(f"PRAGMA busy_timeout = {int(PATIENCE * 1000)}")
        connection.execute("PRAGMA query_only = ON")
        connection.execute("PRAGMA cache_size = -8000")
        connection.execute(f"PRAGMA mmap_size = {MAPPED}")

    @event.listens_for(engine, "checkout")
    def begin(connection: sqlite3.Connection, *_: object) -> None:
        connection.execute("BEGIN")  # here, for most queries go to the driver itself

    return engine


def writing(url: URL) -> tuple[Engine, Callable[[Any], None]]:
    """One connection, for the writer, and what begins a transaction on the driver's side of it.

    On SQLite each transaction takes its turn among the processes.
    """
    if url.drivername != "sqlite":
        engine = _postgres(url, pool_size=1, max_overflow=1)
        event.listen(engine, "connect", _durably)
        return engine, lambda _: None  # the driver begins by itself
    engine = create_engine(url, pool_size=1, max_overflow=0, connect_args=_sqlite_arguments())
    turns = Turns(Path(f"{url.database}-turn"))

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, _: object) -> None:
        connection.execute(f"PRAGMA busy_timeout = {int(PATIENCE * 1000)}")
        _patiently(connection, "PRAGMA journal_mode = WAL")  # for which SQLite itself does not wait
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA cache_size = -32000")
        connection.execute("PRAGMA busy_timeout = 0")  # BEGIN below waits by itself: sooner awake, and in turn

    def begin(driver: sqlite3.Connection) -> None:
        turns.take(PATIENCE)
        try:
            _patiently(driver, "BEGIN IMMEDIATE")
        finally:
            turns.give()

    @event.listens_for(engine, "begin")
    def begun(connection: Any) -> None:
        driver = connection.connection.driver_connection
        if not driver.in_transaction:  # the writer begins by itself
            begin(driver)

    @event.listens_for(engine, "engine_disposed")
    def close(_: Engine) -> None:
        turns.close()  # in a forked child too: its copy of the file would share the parent's lock

    return engine, begin


def _durably(connection: Any, _: object) -> None:
    """Let commits wait for the disk where a role's or a database's settings say otherwise. Stronger ones stay."""
    connection.execute(
        "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
    )
    connection.commit()  # or a rollback would take the setting back


def _patiently(driver: sqlite3.Connection, statement: str) -> None:
    """Run it, however long another process writes. SQLite's own busy handler sleeps up to 100 ms between looks."""
    deadline = time.monotonic() + PATIENCE
    pause = 0.0002
    while True:
        try:
            driver.execute(statement)
        except Exception as error:
            if not is_busy(error) or time.monotonic() > deadline:
                raise
        else:
            return
        time.sleep(pause)
        pause = min(pause * 1.5, 0.005)


def _sqlite_arguments() -> dict[str, Any]:
    # The driver's own transactions are off (isolation_level None): BEGIN is sent by the events above, so that
    # reads are transactions too, writes begin IMMEDIATE, and savepoints and DDL behave.
    return {"isolation_level": None, "check_same_thread": False, "timeout": PATIENCE, "cached_statements": 512}


def _postgres(url: URL, **options: Any) -> Engine:
    require("psycopg", "postgres")
    return create_engine(
        url,
        pool_pre_ping=True,
        pool_use_lifo=True,
        connect_args={"connect_timeout": 10, "application_name": "modelkeep"},
        **options,
    )


def folder_for(url: URL) -> None:
    """Make the folder of a SQLite file. Raises ``Unavailable``."""
    if url.drivername == "sqlite" and url.database:
        folder = Path(url.database).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Unavailable(f"the folder {folder} cannot be made: {error.strerror}") from None
