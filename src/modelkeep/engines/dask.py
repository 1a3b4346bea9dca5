"""Dask: a future per part, shared objects scattered to the workers (https://distributed.dask.org)."""

from __future__ import annotations

import itertools
import math
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from modelkeep.core.errors import Refused, Unavailable
from modelkeep.core.here import Here
from modelkeep.core.plugins import require
from modelkeep.engines import boosting, boosting_dask, dask_stops, flow, remote, room, tasks, versions
from modelkeep.engines.remote import RemoteEngine, Shared, Terms
from modelkeep.spec.declaration import Resources
from modelkeep.spec.engines import Address, size

T = TypeVar("T")
R = TypeVar("R")

CPU, MEMORY = "modelkeep-cpu", "modelkeep-memory"
"""What workers are made to say they have."""
_ENDLESS = 1 << 60
"""Bytes of a worker without a limit."""
_MORE = {
    "cpu": "start workers with more threads: dask worker --nthreads N",
    "memory": "start workers with more: dask worker --memory-limit 8GB",
    "gpu": "have workers say that they have some: dask worker --resources GPU=1",
}
LARGE = 1_000_000
"""Bytes of a packet from which it does not travel through the scheduler."""


class DaskEngine(RemoteEngine):
    """Works on a Dask cluster. TLS is as Dask's own configuration says (``distributed.comm.require-encryption``).

    Dask counts only what workers say they have. For parts that need several cores, or memory, each worker is made
    to say its threads and its memory limit, under names of our own, so that whoever works there through modelkeep
    is counted with. GPUs are taken where workers were started with ``--resources GPU=N``.

    Args:
        address: ``dask://scheduler:8786``.
        code: A folder of the user's modules.
        resources: Of one part.
        limit: Seconds to wait for the scheduler and its first worker.

    Raises:
        MissingExtra: ``distributed`` is not installed.
        Unavailable: The scheduler does not answer, or has no workers.
        Refused: Versions differ, or no worker has the resources.
    """

    def __init__(self, address: Address, code: Path | None, resources: Resources, limit: float) -> None:
        self._dask = require("distributed", "dask")
        super().__init__(str(address), require("cloudpickle", "dask"), resources, limit)
        remote.reachable(self.address, address.host, address.port, limit)
        secure = require("dask", "dask").config.get("distributed.comm.require-encryption", None)
        self._where = f"{'tls' if secure else 'tcp'}://{address.host}:{address.port}"
        self._names = (f"modelkeep-{uuid.uuid4().hex}-{number}" for number in itertools.count())
        self._counted_by: dict[str, float] = {}
        if resources.cpu > 1 or resources.memory:
            self._counted_by[CPU] = resources.cpu
        if resources.memory:
            self._counted_by[MEMORY] = size(resources.memory)
        gpu = {"GPU": resources.gpu} if resources.gpu else {}
        self._options = {"resources": {**self._counted_by, **gpu}} if self._counted_by or gpu else {}
        self._client = self._connect()
        try:
            self._check()
            self.count()
            self.ship(code)
        except BaseException:
            self.close()
            raise

    @property
    def host(self) -> str:
        """On the way to the scheduler, or to a worker."""
        scheduler = self._where.rpartition("/")[2].rpartition(":")[0]
        return remote.host_for([scheduler, *(worker["host"] for worker in self._workers().values())])

    def count(self) -> int:
        """Parts at once on the workers that are there."""
        workers = self._workers()
        new = [
            address
            for address, worker in workers.items()
            if not worker["resources"].keys() >= self._counted_by.keys()
        ]
        if new:
            self._client.run(_say, workers=new, on_error="ignore")  # whoever is gone by now is not counted on
        return sum(_room(worker).parts(self.resources) for worker in workers.values())

    def share(self, obj: Any) -> Shared:
        """Copy an object to every worker, so that it outlives all but the last."""
        return Shared(self._scattered(obj), obj)

    def submit(self, packet: tasks.Packet) -> flow.Running:
        """Start a task."""
        for handle in packet.handles:
            if isinstance(handle, Shared) and handle.ref.status in ("cancelled", "lost", "error"):
                handle.ref = self._scattered(handle())  # all that held it are gone
        content: Any = packet.content
        if len(content) > LARGE:
            content = self._client.scatter(content, hash=False)
        refs = [handle.ref for handle in packet.handles]  # type: ignore[attr-defined]
        future = self._client.submit(
            _run, self._terms, content, *refs, key=next(self._names), pure=False, retries=0, **self._options
        )
        answer: Future[tasks.Answer] = Future()
        future.add_done_callback(lambda done: remote.settled(answer, done.result, self._lost))
        return flow.Running(answer, lambda: future.cancel(force=True))

    def map_reduce(self, fn: Callable[[T], R], parts: Sequence[T], merge: Callable[[R, R], R]) -> R:
        """``fn`` of every part, merged here, where they arrive."""
        return Here().reduce(merge, self.map(fn, parts))

    def boost(self, estimator: Any, matrix: Any, target: Any) -> Any:
        """Fit XGBoost's or LightGBM's estimator, each worker a share of the rows."""

        def members() -> set[str]:
            return set(self._workers())

        def fit(workers: list[str]) -> Any:
            with self._connect() as client:  # its own, with which all ends that waits for a lost worker
                return boosting.unless_lost(
                    lambda: boosting_dask.fit(client, self.address, workers, estimator, matrix, target),
                    lambda: not members().issuperset(workers),
                )

        return boosting.repeated(
            fit,
            members,
            self.address,
            free=self._restart,
            own=partial(boosting.said_here, estimator, matrix, target),
        )

    def close(self) -> None:
        """Leave the cluster; what was shared is forgotten."""
        self._client.close(timeout=5)

    def _connect(self) -> Any:
        try:
            return self._dask.Client(self._where, timeout=self.limit, set_as_default=False, name="modelkeep")
        except OSError as error:
            raise Unavailable(f"the engine {self.address} does not answer: {error}") from None

    def _restart(self, workers: list[str]) -> None:
        """Free workers whose threads wait for one that is gone; nothing else ends a thread."""
        try:
            self._client.restart_workers(workers, timeout=self.limit)
        except Exception as error:
            raise Unavailable(
                f"{self.address}: a worker was lost while trees were fitted, and those that may wait for it, "
                f"{', '.join(workers)}, could not be restarted: {error}",
                hint="restart them, and let each have its nanny, as dask worker does unless told --no-nanny",
            ) from error

    def _check(self) -> None:
        """Every worker says what is installed there."""
        try:
            self._client.wait_for_workers(1, timeout=self.limit)
        except TimeoutError:
            raise Unavailable(
                f"{self.address} has no workers; waited for {self.limit:g} seconds",
                hint=f"start one: dask worker {self.address.removeprefix('dask://')}",
            ) from None
        here = versions.report()
        # Dask tells its packages without unpickling anything there, so that it works between any versions
        for worker, told in self._client.get_versions()["workers"].items():
            python = ".".join(told["host"]["python"].split(".")[:3])
            versions.must_agree({"python": here["python"]}, {"python": python}, f"the worker {worker}")
        for worker, told in self._client.run(versions.report, on_error="return").items():
            if isinstance(told, ImportError):
                raise Refused(
                    f"{self.address}: modelkeep cannot be imported at the worker {worker}",
                    hint='pip install "modelkeep[dask]" there, in the same version as here',
                )
            if isinstance(told, dict):
                versions.must_agree(here, told, f"{self.address}: the worker {worker}")
        rooms = [_room(worker) for worker in self._workers().values()]
        room.must_fit(self.resources, rooms, f"no worker of {self.address}", _MORE)

    def _workers(self) -> dict[str, Any]:
        found: dict[str, Any] = self._client.scheduler_info(n_workers=-1)["workers"]
        return found

    def _scattered(self, obj: Any) -> Any:
        return self._client.scatter([obj], broadcast=True, hash=False)[0]

    def _lost(self, error: Exception) -> bool:
        # cancelled: what it needed was lost with all workers that held it
        scheduler = require("distributed.scheduler", "dask")
        cancelled = require("distributed.client", "dask").FutureCancelledError
        return isinstance(error, scheduler.KilledWorker | cancelled | TimeoutError)


def _room(worker: dict[str, Any]) -> room.Room:
    limit = worker["memory_limit"] or math.inf
    return room.Room(worker["nthreads"], limit, worker["resources"].get("GPU", 0))


async def _say(dask_worker: Any) -> None:
    """Have a worker say what it has."""
    limit = dask_worker.memory_manager.memory_limit or _ENDLESS
    await dask_worker.set_resources(**{CPU: dask_worker.state.nthreads, MEMORY: limit})


def _run(terms: Terms, content: bytes, *objects: Any) -> tasks.Answer:
    loads = [lambda obj=obj: obj for obj in objects]
    return dask_stops.stoppable(lambda: remote.run(terms, content, loads))
