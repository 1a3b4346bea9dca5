"""Group commit: one thread writes, many callers wait, one fsync answers all who came in the meantime.

The idea is DeWitt et al., "Implementation techniques for main memory database systems", SIGMOD 1984.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from modelkeep.core.errors import Damaged, Unavailable
from modelkeep.store.faults import collided, translate

MOST_WORKS = 1024
LONGEST_BATCH = 0.05
"""Seconds after which a transaction takes no more work, so that nobody waits long for another's work."""

_ATTEMPTS = 5
_Item = tuple[Callable[[Connection], Any], "Future[Any]"]
_Outcome = tuple["Future[Any]", Any, BaseException | None]


class Writer:
    """Runs works in order, several to a transaction, each in a savepoint of its own.

    Promises: a result is handed back only after the commit that holds it; an error undoes that work alone;
    when the commit fails every caller of it gets ``Unavailable`` and nothing of it is kept.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._closed = False

    def submit(self, work: Callable[[Connection], Any]) -> Future[Any]:
        """Hand over work; the future is done once it is durable."""
        if threading.current_thread() is self._thread:
            raise RuntimeError("db.write was called inside a write: use the connection the work was given")
        future: Future[Any] = Future()
        with self._lock:
            if self._closed:
                raise Unavailable("the database has been closed")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="modelkeep-writer", daemon=True)
                self._thread.start()
            self._queue.put((work, future))
        return future

    def close(self) -> None:
        """Finish what was handed over, then stop."""
        with self._lock:
            self._closed = True
            thread = self._thread
            if thread is not None:
                self._queue.put(None)
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if item[1].set_running_or_notify_cancel():  # from here on it cannot be cancelled
                self._transaction(item)

    def _transaction(self, first: _Item) -> None:
        taken = [first]
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                outcomes = self._attempt(taken)
            except BaseException as error:
                if collided(error) and attempt < _ATTEMPTS:
                    time.sleep(0.01 * attempt)
                    continue
                for _, future in taken:
                    future.set_exception(_as_unavailable(error))
                return
            for future, result, fault in outcomes:
                if fault is None:
                    future.set_result(result)
                else:
                    future.set_exception(fault)
            return

    def _attempt(self, taken: list[_Item]) -> list[_Outcome]:
        """Run ``taken`` and whatever gathers meanwhile (added to ``taken``), and commit."""
        outcomes: list[_Outcome] = []
        with self._engine.connect() as conn, _invalid_when_lost(conn), conn.begin():
            until = time.monotonic() + LONGEST_BATCH
            at = 0
            while at < len(taken):
                outcomes.append(_one(conn, taken[at]))
                at += 1
                if at == len(taken) and at < MOST_WORKS and time.monotonic() < until:
                    self._gather(taken)
        return outcomes

    def _gather(self, taken: list[_Item]) -> None:
        """Take one more work that is waiting, if any."""
        try:
            item = self._queue.get_nowait()
        except queue.Empty:
            return
        if item is None:
            self._queue.put(None)  # closing: the loop must see it after this transaction
        elif item[1].set_running_or_notify_cancel():
            taken.append(item)


def _one(conn: Connection, item: _Item) -> _Outcome:
    work, future = item
    driver: Any = conn.connection.driver_connection
    driver.execute("SAVEPOINT work")  # the driver's own call: a tenth of the cost of begin_nested
    try:
        result = work(conn)
    except Exception as error:
        if collided(error):
            raise
        try:
            driver.execute("ROLLBACK TO SAVEPOINT work")
            driver.execute("RELEASE SAVEPOINT work")
        except Exception:
            raise error from None  # the whole transaction is gone: so is what was done before in it
        return future, None, translate(error)
    driver.execute("RELEASE SAVEPOINT work")
    return future, result, None


@contextlib.contextmanager
def _invalid_when_lost(conn: Connection) -> Any:
    """Give up a connection that cannot be used any more, so that the next transaction opens another."""
    try:
        yield
    except Exception as error:
        driver: Any = conn.connection.driver_connection if not conn.invalidated else None
        if getattr(driver, "broken", False) or (isinstance(error, DBAPIError) and error.connection_invalidated):
            conn.invalidate()
        raise


def _as_unavailable(error: BaseException) -> BaseException:
    found = translate(error)
    if isinstance(found, Unavailable | Damaged):
        return found
    fault = Unavailable(f"the database did not accept the change: {error}", hint="try again")
    fault.__cause__ = error
    return fault
