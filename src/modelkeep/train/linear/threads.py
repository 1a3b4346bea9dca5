"""The Engine port with threads of this process: for matrices in memory, which threads share as they are.

The compiled loops and NumPy's and SciPy's products release the GIL, so threads use the cores.

Who asks for results works too, as one of the workers. Else, of two threads woken one after the other by a third
that then sleeps, the kernel puts the second behind the first and finds it a core only milliseconds later.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

from modelkeep.core.here import Here, tree
from modelkeep.core.ports import Progress, Silent

T = TypeVar("T")
R = TypeVar("R")


class Threads:
    """Works on parts in threads. Use as a context manager, or ``close`` it."""

    address = "local"
    host = "127.0.0.1"

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._pool = ThreadPoolExecutor(max(1, workers - 1), thread_name_prefix="linear")

    def map(
        self,
        fn: Callable[[T], R],
        parts: Iterable[T],
        *,
        progress: Progress | None = None,
        name: str = "parts",
    ) -> Iterator[R]:
        """Apply ``fn`` to every part; results in the order of ``parts``."""
        if self._workers == 1:
            yield from Here().map(fn, parts, progress=progress, name=name)
            return
        told, total = progress or Silent(), len(parts) if isinstance(parts, Sized) else None
        waiting: deque[tuple[Future[R], T]] = deque()
        source, done = iter(parts), 0
        try:
            while True:
                for part in itertools.islice(source, 2 * self._workers - len(waiting)):
                    waiting.append((self._pool.submit(fn, part), part))
                if not waiting:
                    return
                while not waiting[0][0].done() and _helped(fn, waiting):
                    pass
                result = waiting.popleft()[0].result()
                done += 1
                told.step(name, done, total)
                yield result
        finally:
            for future, _ in waiting:
                future.cancel()

    def map_reduce(self, fn: Callable[[T], R], parts: Sequence[T], merge: Callable[[R, R], R]) -> R:
        """``fn`` of every part, merged pairwise as a tree. At least one part."""
        return tree(self.map, merge, self.map(fn, parts))

    def put(self, obj: T) -> Callable[[], T]:
        """A handle to the object itself."""
        return lambda: obj

    def slots(self) -> int:
        """How many threads."""
        return self._workers

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> Threads:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _helped(fn: Callable[[T], R], waiting: deque[tuple[Future[R], T]]) -> bool:
    """Work here on the first part that no thread has begun; whether there was one."""
    for place, (future, part) in enumerate(waiting):
        if future.cancel():
            mine: Future[R] = Future()
            waiting[place] = (mine, part)
            try:
                mine.set_result(fn(part))
            except Exception as error:
                mine.set_exception(error)
            return True
    return False
