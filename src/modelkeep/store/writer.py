"""Group commit: one thread writes, many callers wait, one fsync answers all who came in the meantime.

The idea is DeWitt et al., "Implementation techniques for main memory database systems", SIGMOD 1984.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from modelkeep.core.errors import Damaged, Unavailable
from modelkeep.store.faults import collided, is_lost, translate

MOST_WORKS = 1024
LONGEST_BATCH = 0.05
"""Seconds after which a transaction takes no more work, so that nobody waits long for another's work."""

_ATTEMPTS = 5
log = logging.getLogger(__name__)

Work = Callable[[Connection], Any]
Outcome = tuple[Any, Any, BaseException | None]
"""Of one work: its ticket, its result, or what was wrong."""

Told = Callable[[list[Outcome]], None]
"""Is told the outcomes of its works, those of one commit together, on the writer's thread. Must not raise."""

Begin = Callable[[Any], None]
"""Begins a transaction on a driver's connection."""

_Item = tuple[Work, Any, Told]


class Mergeable:
    """A work that is done together with its like: a thousand of them cost a few statements.

    Neighbours in a transaction that have the same ``merge`` go to it together. It checks each before it writes
    anything, so it needs no savepoint; should the database refuse them all the same, each is run alone.
    """

    __slots__ = ()

    @staticmethod
    def merge(conn: Connection, works: Sequence[Any]) -> list[Any]:
        """Do these works in order.

        Returns:
            For each work its result, or the exception that says why nothing of it was done.
        """
        raise NotImplementedError

    def sign(self, actor: str) -> None:
        """Learn who asked for it. Works that write the history keep it."""

    def __call__(self, conn: Connection) -> Any:
        """Do this work alone."""
        (result,) = self.merge(conn, [self])
        if isinstance(result, BaseException):
            raise result
        return result


class _Apart(Exception):
    """The database refused works that were done together: which one is found by running each alone."""


class Writer:
    """Runs works in order, several to a transaction.

    Promises: a result is handed back only after the commit that holds it; an error undoes that work alone (each
    runs in a savepoint of its own, or is ``Mergeable``); when the commit fails every caller of it gets
    ``Unavailable`` and nothing of it is kept. A work may be run again until it is committed.
    """

    def __init__(self, engine: Engine, begin: Begin) -> None:
        self._engine = engine
        self._begin = begin
        self._queue: queue.SimpleQueue[list[_Item] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._conn: Connection | None = None  # kept between transactions; only the writer's thread touches it
        self._committing = False

    def submit(self, work: Work) -> Future[Any]:
        """Hand over work; the future is done once it is durable."""
        future: Future[Any] = Future()
        self.post([(work, future)], _settle)
        return future

    def post(self, works: Sequence[tuple[Work, Any]], told: Told) -> None:
        """Hand over works, each with its ticket; ``told`` gets tickets and outcomes once they are durable.

        Raises:
            Unavailable: The database has been closed.
            RuntimeError: Called from inside a work.
        """
        if threading.current_thread() is self._thread:
            raise RuntimeError("db.write was called inside a write: use the connection the work was given")
        with self._lock:
            if self._closed:
                raise Unavailable("the database has been closed")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="modelkeep-writer", daemon=True)
                self._thread.start()
            self._queue.put([(work, ticket, told) for work, ticket in works])

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
        while (items := self._queue.get()) is not None:
            if taken := [item for item in items if _claimed(item)]:
                self._transaction(taken)
        if self._conn is not None:
            self._conn.close()

    def _transaction(self, taken: list[_Item]) -> None:
        apart = False
        for attempt in range(1, _ATTEMPTS + 1):
            kept = self._conn is not None
            try:
                outcomes = self._attempt(taken, apart)
            except _Apart:
                apart = True
                continue
            except BaseException as error:
                lost = self._let_go(error)
                again = collided(error) or (lost and kept and not self._committing)
                if again and attempt < _ATTEMPTS:
                    time.sleep(0.01 * attempt)
                    continue
                outcomes = [(None, _as_unavailable(error))] * len(taken)
            _tell(taken, outcomes)
            return

    def _attempt(self, taken: list[_Item], apart: bool) -> list[_Result]:
        """Run ``taken`` and whatever gathers meanwhile (added to ``taken``), and commit."""
        outcomes: list[_Result] = []
        self._committing = False
        if self._conn is None:
            self._conn = self._engine.connect()
        conn = self._conn
        driver: Any = conn.connection.driver_connection
        try:  # by the driver's own calls: SQLAlchemy's cost as much as what they do
            self._begin(driver)
            until = time.monotonic() + LONGEST_BATCH
            self._gather(taken)
            while len(outcomes) < len(taken):
                at = len(outcomes)
                if apart or not isinstance(taken[at][0], Mergeable):
                    outcomes.append(_one(conn, taken[at][0]))
                else:
                    alike = taken[at : at + _alike(taken, at)]
                    outcomes += _together(conn, [work for work, _, _ in alike])
                if len(outcomes) == len(taken) and time.monotonic() < until:
                    self._gather(taken)
            self._committing = True
            (conn if conn.in_transaction() else driver).commit()
        except BaseException:
            with contextlib.suppress(Exception):  # what is wrong is being said
                (conn if conn.in_transaction() else driver).rollback()
            raise
        return outcomes

    def _gather(self, taken: list[_Item]) -> None:
        """Take the works that are waiting, if any."""
        while len(taken) < MOST_WORKS and not self._queue.empty():
            items = self._queue.get()
            if items is None:
                self._queue.put(None)  # closing: the loop must see it after this transaction
                return
            taken += [item for item in items if _claimed(item)]

    def _let_go(self, error: BaseException) -> bool:
        """Give up the connection after a failure, so that the next transaction opens another; was it broken?"""
        conn, self._conn = self._conn, None
        if conn is None:
            return False
        broken = isinstance(error, DBAPIError) and error.connection_invalidated
        if not conn.invalidated:
            driver: Any = conn.connection.driver_connection
            broken = broken or getattr(driver, "broken", False)
            if broken:
                conn.invalidate()
        conn.close()
        return broken


_Result = tuple[Any, BaseException | None]


def _claimed(item: _Item) -> bool:
    """Whether the work is still wanted; from here on it cannot be cancelled."""
    ticket = item[1]
    return not isinstance(ticket, Future) or ticket.set_running_or_notify_cancel()


def _alike(taken: list[_Item], at: int) -> int:
    """How many works from ``at`` on are done together."""
    merge = getattr(taken[at][0], "merge", None)
    end = at + 1
    while end < len(taken) and getattr(taken[end][0], "merge", None) is merge:
        end += 1
    return end - at


def _together(conn: Connection, works: list[Any]) -> list[_Result]:
    try:
        results = works[0].merge(conn, works)
    except Exception as error:
        if collided(error) or is_lost(error):
            raise
        raise _Apart from error
    return [(None, each) if isinstance(each, BaseException) else (each, None) for each in results]


def _one(conn: Connection, work: Work) -> _Result:
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
        return None, translate(error)
    driver.execute("RELEASE SAVEPOINT work")
    return result, None


def _tell(taken: list[_Item], outcomes: list[_Result]) -> None:
    boxes: dict[Told, list[Outcome]] = {}
    for (_, ticket, told), (result, fault) in zip(taken, outcomes, strict=True):
        boxes.setdefault(told, []).append((ticket, result, fault))
    for told, mine in boxes.items():
        try:
            told(mine)
        except Exception:  # the writer must go on for all the others
            log.exception("whoever was told of %d outcomes failed", len(mine))


def _settle(outcomes: list[Outcome]) -> None:
    for future, result, fault in outcomes:
        if fault is None:
            future.set_result(result)
        else:
            future.set_exception(fault)


def _as_unavailable(error: BaseException) -> BaseException:
    found = translate(error)
    if isinstance(found, Unavailable | Damaged):
        return found
    fault = Unavailable(f"the database did not accept the change: {error}", hint="try again")
    fault.__cause__ = error
    return fault
