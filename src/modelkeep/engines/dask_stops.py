"""Parts on Dask's workers stop when nobody waits for them any more, which Dask does for none that has begun.

The scheduler tells the worker to forget such a part, and there its thread is waited for. So one of Dask's threads
gives its part to a thread of ours and looks meanwhile whether the worker still wants it. If not, Dask's thread is
free at once; in ours an exception is raised, at the next line of Python: a call of a library that takes long
goes on in it until it returns, and its result is dropped.
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from queue import SimpleQueue
from typing import Any, TypeVar

from modelkeep.core.plugins import require

T = TypeVar("T")

LOOK = 0.25
"""Seconds between two looks whether a part is still wanted."""


class Stopped(BaseException):
    """Raised in a part that nobody waits for; no ``except Exception`` holds it up."""


class NotWanted(Exception):
    """The work was stopped."""


class Hand:
    """A thread that does one thing after another for the thread that made it."""

    def __init__(self) -> None:
        self._given: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="modelkeep-part", daemon=True)
        self._thread.start()

    def do(self, work: Callable[[], T], wanted: Callable[[], bool]) -> T:
        """Give what ``work`` does.

        Args:
            work: What is done.
            wanted: Whether it still is; asked again and again.

        Raises:
            NotWanted: It was not. The hand is then good for nothing more.
        """
        done: Future[T] = Future()
        self._given.put((work, done))
        while not wait([done], timeout=LOOK).done:
            if not wanted():
                self._stop()
                raise NotWanted
        return done.result()

    def _stop(self) -> None:
        self._given.put(None)
        threading.Thread(target=self._interrupt, name="modelkeep-stop", daemon=True).start()

    def _interrupt(self) -> None:
        thread = self._thread.ident or 0
        while _imports(thread):  # a module that is left half made cannot be imported in this process any more
            time.sleep(LOOK)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(Stopped))

    def _work(self) -> None:
        with contextlib.suppress(Stopped):
            while given := self._given.get():
                work, done = given
                try:
                    done.set_result(work())
                except Exception as error:
                    done.set_exception(error)
                del given, work, done  # or the last would be held until the next


def _imports(thread: int) -> bool:
    """Whether a thread is importing something."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


_mine = threading.local()


def stoppable(work: Callable[[], T]) -> T:
    """Do a task's work, in a worker of Dask, until it is done or its task is not wanted any more.

    Raises:
        Reschedule: It is not, which Dask hears of nobody; else it would be done elsewhere.
    """
    distributed = require("distributed", "dask")
    worker = distributed.get_worker()
    key = worker.get_current_task()

    def wanted() -> bool:
        task = worker.state.tasks.get(key)
        return task is not None and task.state != "cancelled"

    hand = _mine.__dict__.pop("hand", None) or Hand()
    context = contextvars.copy_context()  # in which Dask's own functions find the worker
    try:
        made = hand.do(lambda: context.run(work), wanted)
    except NotWanted:
        raise distributed.Reschedule from None
    _mine.hand = hand
    return made
