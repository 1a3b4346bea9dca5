"""The reference engine: processes on this machine, or none at all for one worker.

Only the standard library at the top, so that a worker sets its share of threads before NumPy and its like start.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache, partial
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from modelkeep.core.errors import Invalid, Unavailable

T = TypeVar("T")
R = TypeVar("R")

ATTEMPTS = 3
"""How often a part is begun before its worker's death is blamed on it."""
AHEAD = 2
"""Parts handed out per worker before a result is taken, so that a stream of parts is never held whole."""


class LocalEngine:
    """Works on parts in processes of this machine. Use as a context manager, or ``close`` it.

    Args:
        workers: How many processes; None takes one per core this process may use. With one worker everything runs
            in this process, and functions need not be importable.
    """

    def __init__(self, workers: int | None = None) -> None:
        cores = _cores()
        self.workers = cores if workers is None else workers
        if self.workers < 1:
            raise Invalid(f"{workers} workers; expected at least 1", path="engine")
        self._threads = max(1, cores // self.workers)
        self._pool: ProcessPoolExecutor | None = None
        self._folder: Path | None = None
        self._lock = threading.Lock()
        self._numbers = itertools.count()

    def map(self, fn: Callable[[T], R], parts: Iterable[T]) -> Iterator[R]:
        """Apply ``fn`` to every part, in parallel; results come in the order of ``parts``.

        Raises:
            Invalid: ``fn`` or a part cannot be sent to another process.
            Unavailable: A part killed its worker ``ATTEMPTS`` times.
            Exception: Whatever ``fn`` raised, with the worker's traceback as its cause.
        """
        if self.workers == 1:
            return map(fn, parts)
        return self._map(fn, parts)

    def reduce(self, fn: Callable[[R, R], R], results: Iterable[R]) -> R:
        """Merge results pairwise as a tree, the same tree on every engine of any size.

        Args:
            fn: Associative and commutative.
            results: At least one.

        Raises:
            Invalid: There are none.
        """
        level = list(results)
        if not level:
            raise Invalid("there is nothing to reduce")
        while len(level) > 1:
            pairs = list(zip(level[::2], level[1::2], strict=False))
            odd = level[-1:] if len(level) % 2 else []
            # A single pair gains nothing from a trip to another process.
            merged = self.map(partial(_merge, fn), pairs) if len(pairs) > 1 else [_merge(fn, pairs[0])]
            level = [*merged, *odd]
        return level[0]

    def put(self, obj: T) -> Callable[[], T]:
        """Share a large object once; the handle, called in any worker, gives it.

        Arrow tables and NumPy arrays are mapped into memory and not copied: take them as read-only.
        """
        if self.workers == 1:
            return _Held(obj)
        with self._lock:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="modelkeep-engine-"))
            path = self._folder / str(next(self._numbers))
        return _Shared(_write(obj, path))

    def close(self) -> None:
        """End the workers and forget what was shared."""
        with self._lock:
            pool, self._pool = self._pool, None
            folder, self._folder = self._folder, None
        if pool is not None:
            pool.shutdown(cancel_futures=True)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _map(self, fn: Callable[[T], R], parts: Iterable[T]) -> Iterator[R]:
        source = iter(parts)
        waiting: deque[_Task] = deque()
        try:
            while True:
                for part in itertools.islice(source, self.workers * AHEAD - len(waiting)):
                    waiting.append(_Task(_packed(fn, part)))
                    self._submit(waiting[-1])
                if not waiting:
                    return
                answer = self._answer(waiting)
                waiting.popleft()
                yield _opened(answer)
        finally:
            for task in waiting:
                if task.future is not None:
                    task.future.cancel()

    def _answer(self, waiting: deque[_Task]) -> _Answer:
        """What the first task's worker said; when a worker died, what it held is begun again."""
        first = waiting[0]
        while True:
            try:
                return self._submit(first).result()
            except BrokenProcessPool:
                self._bury()
            lost = [task for task in waiting if task.lost]
            for task in lost:
                task.attempts += 1
                task.future = None
            if first.attempts >= ATTEMPTS:
                raise Unavailable(
                    f"a worker died {ATTEMPTS} times on the same part",
                    hint="it may be out of memory: use more and smaller parts, or fewer workers",
                )
            # After one death all go again together; after that only the first, alone, to find the culprit.
            for task in lost if first.attempts == 1 else []:
                self._submit(task)

    def _submit(self, task: _Task) -> Future[_Answer]:
        while task.future is None:
            try:
                task.future = self._workers().submit(_work, task.packed)
            except BrokenProcessPool:
                self._bury()
        return task.future

    def _workers(self) -> ProcessPoolExecutor:
        with self._lock:
            if self._pool is None:
                # Not fork: the threads of NumPy, Arrow and OpenMP do not survive it.
                method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
                self._pool = ProcessPoolExecutor(
                    self.workers,
                    mp_context=multiprocessing.get_context(method),
                    initializer=_begin,
                    initargs=(self._threads,),
                )
            return self._pool

    def _bury(self) -> None:
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)


_Answer = tuple[bool, bytes]
"""Whether it worked, and the pickled result or ``_Failure``."""


class _Task:
    """A part on its way to a worker."""

    def __init__(self, packed: bytes) -> None:
        self.packed = packed
        self.attempts = 0
        self.future: Future[_Answer] | None = None

    @property
    def lost(self) -> bool:
        """Whether it was handed to a worker that will not answer."""
        future = self.future
        return future is not None and not (future.done() and not future.cancelled() and not future.exception())


class RemoteTraceback(Exception):
    """The traceback of an error in a worker, as text; the error's cause."""

    def __str__(self) -> str:
        return f"\n\n{self.args[0]}"


class _Failure:
    """An error on its way home."""

    def __init__(self, error: Exception) -> None:
        self.trace = "".join(traceback.format_exception(error))
        self.kind, self.args, self.state = type(error), error.args, error.__dict__

    def rebuilt(self) -> Exception:
        """The same error, without calling its constructor, whose arguments are not known."""
        error: Exception = self.kind.__new__(self.kind, *self.args)
        error.args = self.args
        error.__dict__.update(self.state)
        error.__cause__ = RemoteTraceback(self.trace)
        return error


class _Held:
    """A handle in the process that holds the object."""

    def __init__(self, obj: Any) -> None:
        self._obj = obj

    def __call__(self) -> Any:
        return self._obj


class _Shared:
    """A handle to an object in a file; each process reads it once."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __call__(self) -> Any:
        return _read(self._path)


def _begin(threads: int) -> None:
    """Set a worker up: its share of the cores, no interrupts (its owner gets them), no life after its owner."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ["LOKY_MAX_CPU_COUNT"] = str(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_owner, daemon=True).start()


def _end_with_owner() -> None:
    """A pool's worker waits for work for ever, even when its owner was killed; so the owner's end is watched."""
    owner = multiprocessing.parent_process()
    if owner is not None:
        wait([owner.sentinel])
        os._exit(1)


def _packed(fn: Callable[[T], R], part: T) -> bytes:
    try:
        return pickle.dumps((fn, part), protocol=5)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise Invalid(
            f"this work cannot be sent to another process: {error}",
            hint="use a function at the top of a module, and parts that can be pickled",
        ) from error


def _work(packed: bytes) -> _Answer:
    """Runs in a worker. Everything that may fail is inside, so that a failure never breaks the pool."""
    try:
        fn, part = pickle.loads(packed)  # noqa: S301 - our own bytes, from the process that owns this one
        return True, pickle.dumps(fn(part), protocol=5)
    except Exception as error:
        return False, _packed_failure(error)


def _packed_failure(error: Exception) -> bytes:
    failure = _Failure(error)
    try:
        packed = pickle.dumps(failure, protocol=5)
        pickle.loads(packed).rebuilt()  # noqa: S301 - made one line above
    except Exception:
        failure.kind, failure.args, failure.state = RuntimeError, (f"{type(error).__name__}: {error}",), {}
        packed = pickle.dumps(failure, protocol=5)
    return packed


def _opened(answer: _Answer) -> Any:
    worked, packed = answer
    value = pickle.loads(packed)  # noqa: S301 - from our own worker
    if worked:
        return value
    raise value.rebuilt()


def _merge(fn: Callable[[R, R], R], pair: tuple[R, R]) -> R:
    return fn(*pair)


def _write(obj: Any, path: Path) -> str:
    arrow, numpy = sys.modules.get("pyarrow"), sys.modules.get("numpy")
    if arrow is not None and isinstance(obj, arrow.Table):
        path = path.with_suffix(".arrow")
        with arrow.OSFile(str(path), "wb") as file, arrow.ipc.new_file(file, obj.schema) as writer:
            writer.write_table(obj)
    elif numpy is not None and isinstance(obj, numpy.ndarray) and not obj.dtype.hasobject:
        path = path.with_suffix(".npy")
        numpy.save(path, obj)
    else:
        path = path.with_suffix(".pickle")
        path.write_bytes(pickle.dumps(obj, protocol=5))
    return str(path)


@lru_cache(maxsize=16)
def _read(path: str) -> Any:
    if path.endswith(".arrow"):
        import pyarrow

        return pyarrow.ipc.open_file(pyarrow.memory_map(path)).read_all()
    if path.endswith(".npy"):
        import numpy

        return numpy.load(path, mmap_mode="r")
    return pickle.loads(Path(path).read_bytes())  # noqa: S301 - written by the process that owns this one


def _cores() -> int:
    """Cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1
