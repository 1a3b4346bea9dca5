"""What Ray, Dask and Spark have in common: versions told first, the user's modules taken along."""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, NamedTuple, Self, TypeVar

from modelkeep.core.errors import ModelkeepError, Unavailable
from modelkeep.core.ports import Progress
from modelkeep.engines import bundle, flow, tasks, versions
from modelkeep.spec.declaration import Resources

T = TypeVar("T")
R = TypeVar("R")

RECOUNT = 5.0
"""Seconds after which the workers are counted again: machines come and go."""


class Terms(NamedTuple):
    """What a worker must know before it unpacks anything.

    Attributes:
        versions: Of the driver.
        code: Digest of the user's modules; empty when there are none. They are then the first of what is loaded.
        base: The folder they were found in.
    """

    versions: tuple[tuple[str, str], ...]
    code: str
    base: str


def run(terms: Terms, content: bytes, loads: Sequence[tasks.Load]) -> tasks.Answer:
    """Work on a packet, at a worker. A worker that joined later than the check of versions is checked here."""
    try:
        versions.must_agree(dict(terms.versions), versions.report(), f"the worker on {socket.gethostname()}")
        if terms.code:
            bundle.install(terms.code, terms.base, loads[0])
            loads = loads[1:]
    except Exception as error:
        return tasks.Answer(False, tasks.failure(error), 0.0)
    return tasks.work(content, loads)


class Shared:
    """A handle to an object that the engine keeps.

    Attributes:
        ref: The engine's own name for it.
    """

    def __init__(self, ref: Any, obj: Any) -> None:
        self.ref = ref
        self._obj = obj

    def __call__(self) -> Any:
        return self._obj

    def __reduce__(self) -> Any:
        raise TypeError("a shared object's handle can be sent only through its engine")


class Kept(Shared):
    """A handle to a part's result that a worker keeps.

    Attributes:
        packet: The part, which is begun anew when all are lost that keep its result.
    """

    def __init__(self, ref: Any, packet: tasks.Packet) -> None:
        super().__init__(ref, None)
        self.packet = packet

    def __call__(self) -> Any:
        raise TypeError("a result that a worker keeps is not here")


class RemoteEngine(ABC):
    """An engine on other machines. Use as a context manager, or ``close`` it.

    Args:
        address: For messages.
        pickling: The engine's cloudpickle, which sends by value what workers cannot import.
        resources: Of one part.
        limit: Seconds to wait for the engine before it counts as unavailable.
    """

    ahead = flow.AHEAD

    def __init__(self, address: str, pickling: ModuleType, resources: Resources, limit: float) -> None:
        self.address, self.resources, self.limit = address, resources, limit
        self._pickler = pickling.Pickler
        self._terms = Terms(tuple(versions.report().items()), "", "")
        self._code: tuple[Shared, ...] = ()
        self._lock = threading.Lock()
        self._counted, self._count, self._gone = 0.0, 1, 0.0

    def ship(self, code: Path | None) -> None:
        """Take the user's modules in this folder along with all work."""
        if code is None:
            return
        content = bundle.gather(code)
        self._code = (self.share(content),)
        self._terms = self._terms._replace(code=bundle.digest_of(content), base=str(code))

    def map(
        self,
        fn: Callable[[T], R],
        parts: Iterable[T],
        *,
        progress: Progress | None = None,
        name: str = "parts",
    ) -> Iterator[R]:
        """Apply ``fn`` to every part, in parallel; results come in the order of ``parts``."""
        return flow.stream(self, fn, parts, progress, name)

    @abstractmethod
    def map_reduce(self, fn: Callable[[T], R], parts: Sequence[T], merge: Callable[[R, R], R]) -> R:
        """``fn`` of every part, merged pairwise as a tree, the same tree on every engine of any size.

        On Ray and Spark, results of over 64 KiB are merged at the workers, eight at a time; one comes home: see
        ``merging``.
        """

    def put(self, obj: T) -> Callable[[], T]:
        """Share a large object once; the handle, called at any worker, gives it."""
        return self.share(obj)

    def pack(self, fn: Callable[[Any], Any], part: Any) -> tasks.Packet:
        """Make a part ready to be sent."""
        packet = tasks.pack(fn, part, pickler=self._pickler, shared=Shared)
        return packet._replace(handles=(*self._code, *packet.handles))

    def slots(self) -> int:
        """How many parts are worked on at once, now.

        Raises:
            Unavailable: There have been no workers for ``limit`` seconds.
        """
        now = time.monotonic()
        with self._lock:
            if now - self._counted < RECOUNT and not self._gone:
                return self._count
            try:
                count = self.count()
            except Exception:
                count = 0  # a busy scheduler may not answer at once; one that is gone never does
            self._counted = time.monotonic()
            if count > 0:
                self._count, self._gone = count, 0.0
            elif not self._gone:
                self._gone = now
            elif now - self._gone > self.limit:
                raise Unavailable(
                    f"{self.address}: no worker has answered for {self.limit:g} seconds",
                    hint="start workers, set engine: local, or wait longer: MODELKEEP_ENGINE_TIMEOUT; what was "
                    "finished is kept",
                )
            return self._count

    @property
    @abstractmethod
    def host(self) -> str:
        """The address under which workers reach this machine."""

    @abstractmethod
    def count(self) -> int:
        """How many parts the workers that are there now can work on at once."""

    @abstractmethod
    def share(self, obj: Any) -> Shared:
        """Give the engine an object to keep."""

    @abstractmethod
    def submit(self, packet: tasks.Packet) -> flow.Running:
        """Hand a part to any worker."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the engine."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def reachable(address: str, host: str, port: int, limit: float) -> None:
    """Wait until something listens at an address.

    Raises:
        Unavailable: Nothing did within ``limit`` seconds.
    """
    until = time.monotonic() + limit
    while True:
        try:
            socket.create_connection((host.strip("[]"), port), timeout=max(0.1, min(limit, 5.0))).close()
            return
        except OSError as error:
            if time.monotonic() >= until:
                raise Unavailable(
                    f"the engine {address} does not answer: {error.strerror or error}; tried for {limit:g} s",
                    hint="check the address, and that this machine may connect there; or set engine: local",
                ) from None
            time.sleep(0.2)


def way_to(host: str, port: int = 9) -> str:
    """This machine's own address on the way to another. Sends nothing. Raises ``OSError``."""
    family = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family[0], socket.SOCK_DGRAM) as probe:
        probe.connect(family[4])
        return str(probe.getsockname()[0])


def host_for(others: Iterable[str]) -> str:
    """The address under which other machines reach this one: on the way to the first that is not this one.

    A scheduler may be on this machine and its workers not, so all of them are given.
    """
    for other in others:
        try:
            way = way_to(other)
        except OSError:
            continue  # a name that only they know
        if not ipaddress.ip_address(way.partition("%")[0]).is_loopback:
            return way
    return "127.0.0.1"


def settled(
    answer: Future[tasks.Answer], get: Callable[[], Any], lost: Callable[[Exception], bool], kept: Any = None
) -> None:
    """Pass an engine's result or error on.

    Args:
        get: The engine's result; may raise its own errors.
        lost: Whether an error means that the worker is gone.
        kept: The handle to the result, if it stayed there.
    """
    try:
        found = tasks.Answer(*get())
        if found.worked and not found.content:
            found = found._replace(kept=kept)
    except ModelkeepError as error:
        answer.set_exception(error)
    except Exception as error:
        answer.set_exception(flow.Lost() if lost(error) else _unforeseen(error))
    else:
        answer.set_result(found)


def _unforeseen(error: Exception) -> Unavailable:
    lines = str(error).strip().splitlines() or [""]
    failed = Unavailable(f"the engine failed: {type(error).__name__}: {lines[0][:300]}")
    failed.__cause__ = error
    return failed
