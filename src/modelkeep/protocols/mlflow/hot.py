"""Answers later: writes once they are durable, reads from a few threads, both without a task per request.

Writes go to the writer together, those of one turn of the event loop, and their outcomes come back together: one
wake-up there, and one back for all that one commit holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from modelkeep.core.errors import ModelkeepError
from modelkeep.protocols.access.door import Check
from modelkeep.protocols.mlflow import wire
from modelkeep.protocols.mlflow.wire import Operation, Work
from modelkeep.serve.http import Sink
from modelkeep.store.database import Database
from modelkeep.store.writer import Outcome

READERS = 8
TASKS = 4
"""Threads for what waits for others than the database, so that no read has to wait for those."""
_EMPTY = b"{}"
_FAULT = wire.error_body("INTERNAL_ERROR", "this is our fault; see the log of the server")
_Ticket = tuple[Sink, Operation, Work]
log = logging.getLogger(__name__)


class Answers:
    """Runs works on a database and writes their answers to sinks, on the loop that asked first."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="modelkeep-read")
        self._tasks = ThreadPoolExecutor(TASKS, thread_name_prefix="modelkeep-task")
        self._wake: Callable[..., Any] | None = None
        self._soon: Callable[..., Any] | None = None
        self._writes: list[tuple[Work, _Ticket]] = []

    def run(self, operation: Operation, work: Work, sink: Sink, check: Check | None = None) -> None:
        """Do the work of an operation and answer. Call it on the loop.

        Args:
            check: Looks first whether it may be done, and raises if not.
        """
        if self._soon is None:
            loop = asyncio.get_running_loop()
            self._soon, self._wake = loop.call_soon, loop.call_soon_threadsafe
        ticket = (sink, operation, work)
        if check is not None:
            self._readers.submit(self._ask, check, ticket)
        elif operation.kind == "write":
            if not self._writes:
                self._soon(self._post)
            self._writes.append((work, ticket))
        elif operation.kind == "task":
            self._tasks.submit(self._do, work, ticket)
        else:
            self._readers.submit(self._read, ticket)

    def _post(self) -> None:
        """Hand over the writes that came in one turn of the loop, so that the writer wakes once for them."""
        writes, self._writes = self._writes, []
        try:
            self._db.post(writes, self._told)
        except Exception as error:
            _answer([(ticket, None, error) for _, ticket in writes])

    def _ask(self, check: Check, ticket: _Ticket) -> None:
        sink, operation, work = ticket
        try:
            with self._db.read() as conn:
                check(conn)
        except Exception as error:
            self._told([(ticket, None, error)])
            return
        assert self._wake is not None
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._wake(self.run, operation, work, sink)

    def _read(self, ticket: _Ticket) -> None:
        try:
            with self._db.read() as conn:
                outcome: Outcome = (ticket, _encoded(ticket[2](conn)), None)
        except Exception as error:
            outcome = (ticket, None, error)
        self._told([outcome])

    def _do(self, task: Callable[[Database], Any], ticket: _Ticket) -> None:
        try:
            outcome: Outcome = (ticket, _encoded(task(self._db)), None)
        except Exception as error:
            outcome = (ticket, None, error)
        self._told([outcome])

    def _told(self, outcomes: list[Outcome]) -> None:
        assert self._wake is not None
        try:
            self._wake(_answer, outcomes)
        except RuntimeError:  # the loop has ended, and its clients with it
            log.debug("%d answers came after the end", len(outcomes))


def _answer(outcomes: list[Outcome]) -> None:
    for (sink, operation, work), result, fault in outcomes:
        body = _EMPTY
        if fault is None:
            try:
                shape = operation.shape
                body = _encoded(result if shape is None else shape(result, work))
            except Exception as error:  # the others of this commit wait for their answers too
                fault = error
        sink.write(*((200, body) if fault is None else refusal(fault, operation.name, operation.conflict)))


def refusal(fault: BaseException, name: str, conflict: str = "RESOURCE_ALREADY_EXISTS") -> tuple[int, bytes]:
    """Status and body of a fault; one that is ours is logged.

    Args:
        name: Of what failed: method and path.
        conflict: The error code of a ``Conflict``.
    """
    if isinstance(fault, ModelkeepError):
        return wire.as_error(fault, conflict)
    log.error("%s failed", name, exc_info=fault)
    return _FAULT


def _encoded(content: Any) -> bytes:
    """An answer's body; an empty object unless the work says more."""
    if content is None:
        return _EMPTY
    return content if isinstance(content, bytes) else wire.encode(content)
