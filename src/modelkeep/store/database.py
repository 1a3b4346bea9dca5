"""The database: reads that never wait, writes that are durable when they return."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar, cast

from sqlalchemy import Connection, text
from sqlalchemy.engine import URL

from modelkeep.core.errors import Damaged, ModelkeepError
from modelkeep.store import engines, migrations
from modelkeep.store.faults import translate
from modelkeep.store.writer import Told, Work, Writer

T = TypeVar("T")

_opened: weakref.WeakSet[Database] = weakref.WeakSet()
_left_to_parent: list[Writer] = []
"""Held for ever in a forked child: letting go of a connection would say so to the parent's server."""


class Database:
    """One database, SQLite or PostgreSQL, opened by this process.

    Promises: what ``write`` returned is durable; readers never wait for the writer and see one state per
    ``read``; any number of threads and processes may use the same database; a forked child may go on using it.
    """

    def __init__(self, url: URL) -> None:
        self.url = url
        self.dialect = url.get_backend_name()
        self._start()
        _opened.add(self)

    @classmethod
    def open(cls, url: str) -> Database:
        """Open, and bring the schema up to date.

        Args:
            url: ``sqlite:////abs/path.db`` or ``postgresql+psycopg://user@host/name``.

        Raises:
            Invalid: The URL is of neither kind.
            Unavailable: The file or server cannot be reached or written.
            Damaged: The file is not a database, or a newer release wrote it.
        """
        db = cls(engines.parse(url))
        engines.folder_for(db.url)
        try:
            db._migrate()
        except Exception as error:
            db.close()
            fault = translate(error)
            if not isinstance(fault, ModelkeepError) or fault is error:
                raise
            where = db.url.render_as_string(hide_password=True) if db.dialect != "sqlite" else db.url.database
            raise type(fault)(f"{where}: {fault.message}", hint=fault.hint) from None
        return db

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A read-only transaction that sees one state of the database.

        Raises:
            Unavailable: The database cannot be reached.
            Damaged: What was read makes no sense.
        """
        try:
            with self._readers.connect() as conn:
                yield conn
        except Exception as error:
            fault = translate(error)
            if fault is error:
                raise
            raise fault from None

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` in a transaction and return its result once that is durable.

        Works of other threads may share the transaction, but each stands alone: an error undoes that work only
        and is raised here. When two processes block each other on PostgreSQL, ``work`` is run again: it must do
        nothing but use its connection.

        Raises:
            Unavailable: The commit failed (disk full or read-only, lock, connection): nothing was kept.
            RuntimeError: Called from inside a work, which would wait for itself.
        """
        return self.submit(work).result()

    def submit(self, work: Callable[[Connection], T]) -> Future[T]:
        """Like ``write``, for callers that must not wait: the future is done once the work is durable."""
        return cast("Future[T]", self._writer.submit(work))

    def post(self, works: Sequence[tuple[Work, Any]], told: Told) -> None:
        """Like ``submit``, for callers with many: ``told`` gets the outcomes of one commit together.

        It is called on the writer's thread and must neither block nor raise.

        Args:
            works: Each with a ticket, by which its outcome is known.
        """
        self._writer.post(works, told)

    def close(self) -> None:
        """Finish pending writes and let go of every connection."""
        self._writer.close()
        self._readers.dispose()
        self._writing.dispose()

    def _start(self) -> None:
        self._readers = engines.reading(self.url)
        self._writing, begin = engines.writing(self.url)
        self._writer = Writer(self._writing, begin)

    def _after_fork(self) -> None:
        # The child has the parent's connections but not its writer thread. It must neither use nor close them.
        _left_to_parent.append(self._writer)
        self._readers.dispose(close=False)
        self._writing.dispose(close=False)
        self._start()

    def _migrate(self) -> None:
        with self._writing.connect() as conn:
            known = migrations.version(conn)
        if known == migrations.HEAD:
            return
        with self._writing.begin() as conn:
            if self.dialect == "postgresql":  # SQLite's BEGIN IMMEDIATE keeps other processes out already
                conn.execute(text("SELECT pg_advisory_xact_lock(7237364)"))
            known = migrations.version(conn)
            if known is not None and known > migrations.HEAD:
                raise Damaged(
                    f"the database has schema {known}, this release knows up to {migrations.HEAD}",
                    hint="install the newer release that made it",
                )
            migrations.upgrade(conn)


def _after_fork() -> None:
    for db in list(_opened):
        db._after_fork()


os.register_at_fork(after_in_child=_after_fork)
