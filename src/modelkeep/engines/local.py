"""The reference engine: processes on this machine, or none at all for one worker.

Only the standard library at the top, so that a worker sets its share of threads before NumPy and its like start.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from multiprocessing.connection import wait
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from modelkeep.core import machine, scratch
from modelkeep.core.errors import Invalid
from modelkeep.core.here import Here
from modelkeep.core.ports import Progress
from modelkeep.engines import flow, tasks

T = TypeVar("T")
R = TypeVar("R")


class LocalEngine:
    """Works on parts in processes of this machine. Use as a context manager, or ``close`` it.

    Args:
        workers: How many processes; None takes one per core this process may use. With one worker everything runs
            in this process, and functions need not be importable.
        gpus: Those of each process, as ``CUDA_VISIBLE_DEVICES`` names them; all there are when empty.
    """

    ahead = flow.AHEAD
    address = "local"
    host = "127.0.0.1"

    def __init__(self, workers: int | None = None, gpus: Sequence[str] = ()) -> None:
        cores = machine.cores()
        self.workers = cores if workers is None else workers
        if self.workers < 1:
            raise Invalid(f"{workers} workers; expected at least 1", path="engine")
        self._threads = max(1, cores // self.workers)
        self._gpus = tuple(gpus)
        self._pool: ProcessPoolExecutor | None = None
        self._folder: Path | None = None
        self._lock = threading.Lock()
        self._numbers = itertools.count()

    def map(
        self,
        fn: Callable[[T], R],
        parts: Iterable[T],
        *,
        progress: Progress | None = None,
        name: str = "parts",
    ) -> Iterator[R]:
        """Apply ``fn`` to every part, in parallel; results come in the order of ``parts``.

        Raises:
            Invalid: ``fn`` or a part cannot be sent to another process.
            Unavailable: A part killed its worker ``flow.ATTEMPTS`` times.
            Exception: Whatever ``fn`` raised, with the worker's traceback as its cause.
        """
        if self.workers == 1:
            return Here().map(fn, parts, progress=progress, name=name)
        return flow.stream(self, fn, parts, progress, name)

    def map_reduce(self, fn: Callable[[T], R], parts: Sequence[T], merge: Callable[[R, R], R]) -> R:
        """``fn`` of every part, merged pairwise as a tree; in this process, where sending takes longer.

        Args:
            merge: Associative and commutative.
            parts: At least one.

        Raises:
            Invalid: There are none.
        """
        return Here().reduce(merge, self.map(fn, parts))

    def put(self, obj: T) -> Callable[[], T]:
        """Share a large object once; the handle, called in any worker, gives it.

        Arrow tables and NumPy arrays are mapped into memory and not copied: take them as read-only.
        """
        if self.workers == 1:
            return _Held(obj)
        with self._lock:
            if self._folder is None:
                self._folder = scratch.folder("engine")
            path = self._folder / str(next(self._numbers))
        return _Shared(_write(obj, path))

    def close(self) -> None:
        """End the workers, whatever they are doing, and forget what was shared."""
        with self._lock:
            pool, self._pool = self._pool, None
            folder, self._folder = self._folder, None
        if pool is not None:
            workers = list((pool._processes or {}).values())
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in workers:
                worker.terminate()
            for worker in workers:
                worker.join()
        if folder is not None:
            scratch.discard(folder)

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def slots(self) -> int:
        """How many parts are worked on at once."""
        return self.workers

    def pack(self, fn: Callable[[Any], Any], part: Any) -> tasks.Packet:
        """Make a part ready to be sent."""
        return tasks.pack(fn, part)

    def submit(self, packet: tasks.Packet) -> flow.Running:
        """Hand a part to a process."""
        answer: Future[tasks.Answer] = Future()
        while True:
            pool = self._workers()
            try:
                future = pool.submit(tasks.work, packet.content)
                break
            except BrokenProcessPool:
                self._bury(pool)

        def ended(done: Future[tasks.Answer]) -> None:
            error = None if done.cancelled() else done.exception()
            if isinstance(error, BrokenProcessPool):
                self._bury(pool)
            if done.cancelled() or isinstance(error, BrokenProcessPool):
                answer.set_exception(flow.Lost())
            elif error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(done.result())

        future.add_done_callback(ended)
        return flow.Running(answer, future.cancel)

    def _workers(self) -> ProcessPoolExecutor:
        with self._lock:
            if self._pool is None:
                # Not fork: the threads of NumPy, Arrow and OpenMP do not survive it.
                method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
                context = multiprocessing.get_context(method)
                gpus = context.SimpleQueue()
                for names in self._gpus:
                    gpus.put(names)
                self._pool = ProcessPoolExecutor(
                    self.workers,
                    mp_context=context,
                    initializer=_begin,
                    initargs=(self._threads, gpus if self._gpus else None),
                )
            return self._pool

    def _bury(self, pool: ProcessPoolExecutor) -> None:
        """Forget a pool that lost a worker: all its work is lost with it."""
        with self._lock:
            if self._pool is pool:
                self._pool = None


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

    def forget(self) -> None:
        """Remove the file before the engine is closed; for what is shared anew again and again."""
        Path(self._path).unlink(missing_ok=True)


def _begin(threads: int, gpus: SimpleQueue[str] | None) -> None:
    """Set a worker up: its share of the cores and GPUs, no interrupts (its owner gets them), no life after it."""
    if gpus is not None:
        os.environ[machine.VISIBLE] = gpus.get()
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
