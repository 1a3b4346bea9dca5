"""Ray: a task per part, shared objects in its object store (https://docs.ray.io).

Ray's own retries are off: the flow repeats what a lost worker held, and knows who lost it. A client's session on
the head (``ray://``) is lost with the one process there that serves it (ray#60600). The next request makes another
session, which is given what was shared, and the flow repeats what was under way.

The shared objects that a part refers to are arguments of its task. So Ray looks for room where most of their bytes
lie before it looks elsewhere, and has brought them to the node when the task begins. They come sealed: a worker
opens each when it is called for, once.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

from modelkeep.core.errors import Refused, Unavailable
from modelkeep.core.plugins import require
from modelkeep.engines import boosting, boosting_ray, flow, merging, remote, room, tasks, versions
from modelkeep.engines.remote import Kept, RemoteEngine, Shared, Terms
from modelkeep.spec.declaration import Resources
from modelkeep.spec.engines import Address, size

T = TypeVar("T")
R = TypeVar("R")

_MORE = {
    "cpu": "start a node with more: ray start --num-cpus N",
    "memory": "start a node with more: ray start --memory BYTES",
    "gpu": "start a node that has some: ray start --num-gpus N",
}
NOTICE = 15.0
"""Seconds in which Ray notices that a node is gone."""


class RayEngine(RemoteEngine):
    """Works on a Ray cluster.

    Args:
        address: ``ray://host:10001`` is a cluster's client server. Without a host: the cluster this machine is
            part of (or ``RAY_ADDRESS``), else one that is started here and listens on this machine only.
        code: A folder of the user's modules.
        resources: Of one part.
        limit: Seconds to wait for the cluster.

    Raises:
        MissingExtra: Ray is not installed.
        Unavailable: The cluster does not answer.
        Refused: Versions differ, or no node has the resources.
    """

    def __init__(self, address: Address, code: Path | None, resources: Resources, limit: float) -> None:
        self._ray = require("ray", "ray")
        super().__init__(str(address), require("ray.cloudpickle", "ray"), resources, limit)
        if address.host:
            remote.reachable(self.address, address.host, address.port, limit)
        self._where, self._session = address, 0
        self._session_lock = threading.Lock()
        self._shared: weakref.WeakSet[Shared] = weakref.WeakSet()
        self._missing: weakref.WeakSet[Shared] = weakref.WeakSet()
        self._kept: weakref.WeakSet[Shared] = weakref.WeakSet()
        self._ours = not self._ray.is_initialized()
        if self._ours:
            self._connect(address)
        try:
            self._check()
            self._run = self._remote_run()
            self.ship(code)
        except BaseException:
            self.close()
            raise

    @property
    def host(self) -> str:
        """On the way to the head, or to a node."""
        nodes = self._again_if_lost(lambda: list(self._nodes()))
        return remote.host_for([self._where.host or "127.0.0.1", *(node["NodeManagerAddress"] for node in nodes)])

    def count(self) -> int:
        """Parts at once on the nodes that are alive."""
        return sum(_room(node["Resources"]).parts(self.resources) for node in self._nodes())

    def share(self, obj: Any) -> Shared:
        """Put an object into the object store; each node gets it once."""

        def put() -> Shared:
            with self._session_lock:
                handle = Shared(self._ray.put(sealed(obj)), obj)
                self._shared.add(handle)
            return handle

        return self._again_if_lost(put)

    def submit(self, packet: tasks.Packet) -> flow.Running:
        """Start a task."""

        def start() -> Any:
            with self._session_lock:
                ref = self._run.remote(self._terms, packet.content, *map(self._there, packet.handles))
                return ref, ref.future(), None

        return self._running(packet, start)

    def keep(self, packet: tasks.Packet) -> flow.Running:
        """Start a task whose result stays in the object store of its node."""

        def start() -> Any:
            with self._session_lock:
                ref, content = self._begun_to_keep(packet)
                self._kept.add(kept := Kept(content, packet))
                return ref, ref.future(), kept

        return self._running(packet, start)

    def _running(self, packet: tasks.Packet, start: Callable[[], Any]) -> flow.Running:
        def lost(error: Exception) -> bool:
            cause = getattr(error, "cause", error)  # of a task that did not begin, for want of an argument
            self._missed(packet, getattr(cause, "object_ref_hex", None))
            return self._lost(cause)

        ref, told, kept = self._again_if_lost(start)
        answer: Future[tasks.Answer] = Future()
        told.add_done_callback(lambda done: remote.settled(answer, done.result, lost, kept))
        return flow.Running(answer, lambda: self._cancel(ref))

    def _begun_to_keep(self, packet: tasks.Packet) -> tuple[Any, Any]:
        run = self._run.options(num_returns=2, max_retries=0)
        ref, content = run.remote(self._terms, packet.content, *map(self._there, packet.handles), keep=True)
        return ref, content

    def map_reduce(self, fn: Callable[[T], R], parts: Sequence[T], merge: Callable[[R, R], R]) -> R:
        """``fn`` of every part, merged at the workers while it is large."""
        return merging.map_reduce(self, fn, parts, merge)

    def boost(self, estimator: Any, matrix: Any, target: Any) -> Any:
        """Fit XGBoost's or LightGBM's estimator, each worker a share of the rows."""
        name = boosting.library(estimator)
        needed = {"CPU": self.resources.cpu, "GPU": self.resources.gpu}
        if self.resources.memory:
            needed["memory"] = size(self.resources.memory)

        def fit(_: list[str]) -> Any:
            for host, told in self._told(boosting.installed, name):
                boosting.must_have(name, told, f"{self.address}: the node {host}")
            return self._again_if_lost(lambda: boosting_ray.fit(self.count(), needed, estimator, matrix, target))

        def members() -> set[str]:
            return {node["NodeID"] for node in self._nodes()}

        return boosting.repeated(
            fit, members, self.address, NOTICE, own=partial(boosting.said_here, estimator, matrix, target)
        )

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        if self._ours and self._ray.is_initialized():
            self._ray.shutdown()

    def _connect(self, address: Address) -> None:
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        # a client hears after half a minute that its connection broke, when by default all it had is dropped
        os.environ.setdefault("RAY_CLIENT_RECONNECT_GRACE_PERIOD", "60")
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "configure_logging": False}
        try:
            if address.host:
                self._knock(str(address), quiet)
                return
            try:
                self._ray.init(address="auto", **quiet)
            except ConnectionError:
                self._ray.init(address="local", include_dashboard=False, _node_ip_address="127.0.0.1", **quiet)
        except (ConnectionError, TimeoutError) as error:
            raise Unavailable(f"the engine {self.address} does not answer: {_first(error)}") from None
        except RuntimeError as error:
            # Ray compares its own and Python's version when it connects
            if "ersion" not in str(error):
                raise Unavailable(f"the engine {self.address} failed: {_first(error)}") from error
            raise Refused(f"{self.address} has other versions than this process: {error}") from None

    def _knock(self, address: str, quiet: dict[str, Any]) -> None:
        """Ray gives up after half a minute, in which a busy head may not have started a server for this client."""
        until = time.monotonic() + self.limit
        while True:
            try:
                self._ray.init(address=address, **quiet)
                return
            except ConnectionError:
                if time.monotonic() >= until:
                    raise

    def _remote_run(self) -> Any:
        options: dict[str, Any] = {"num_cpus": self.resources.cpu, "num_gpus": self.resources.gpu}
        if self.resources.memory:
            options["memory"] = size(self.resources.memory)
        return self._ray.remote(max_retries=0, **options)(_run)

    def _again_if_lost(self, do: Callable[[], T]) -> T:
        session = self._session
        try:
            return do()
        except ConnectionError as error:
            if isinstance(error, self._ray.exceptions.RayError):
                raise  # a task's own
            self._reconnect(session, error)
            return do()

    def _reconnect(self, session: int, error: ConnectionError) -> None:
        """Have another session instead of this one, unless another thread saw to it."""
        with self._session_lock:
            if self._session != session:
                return
            if not (self._ours and self._where.host):
                raise Unavailable(f"the connection to {self.address} was lost: {_first(error)}") from error
            self._ray.shutdown()
            self._connect(self._where)
            self._run = self._remote_run()
            for handle in self._shared:
                handle.ref = self._ray.put(sealed(handle()))
            self._missing.update(self._kept)
            self._session += 1

    def _there(self, handle: Any) -> Any:
        """A shared object's reference; one that was lost with all nodes that held it is put there anew.

        A result that was lost is made anew: its part is begun again, and whoever needs it waits for that.
        """
        if handle in self._missing:
            kept = isinstance(handle, Kept)
            handle.ref = self._begun_to_keep(handle.packet)[1] if kept else self._ray.put(sealed(handle()))
            self._missing.discard(handle)
        return handle.ref

    def _missed(self, packet: tasks.Packet, ref: str | None) -> bool:
        """Remember which of what a part refers to is lost, and what was to be made of that."""
        found = False
        for handle in packet.handles:
            gone = handle.ref.hex() == ref  # type: ignore[attr-defined]
            if gone or (isinstance(handle, Kept) and self._missed(handle.packet, ref)):
                self._missing.add(handle)  # type: ignore[arg-type]
                found = True
        return found

    def _cancel(self, ref: Any) -> None:
        with contextlib.suppress(ConnectionError):  # it ended with its session
            self._ray.cancel(ref, force=True)

    def _check(self) -> None:
        """One task on every node says what is installed there."""
        rooms = [_room(node["Resources"]) for node in self._nodes()]
        if not self._grows():
            room.must_fit(self.resources, rooms, f"no node of {self.address}", _MORE)
        for host, told in self._told(versions.report):
            versions.must_agree(versions.report(), told, f"{self.address}: the node {host}")

    def _grows(self) -> bool:
        """Whether nodes may come by themselves, as far as the cluster says."""
        get = require("ray.experimental.internal_kv", "ray")._internal_kv_get
        return grows(get(b"__autoscaling_status"), get(b"__autoscaler_v2_enabled", namespace=b"__autoscaler"))

    def _told(self, ask: Callable[..., dict[str, str]], *about: str) -> Iterator[tuple[str, dict[str, str]]]:
        """What every node's task says, by its address."""
        strategy = require("ray.util.scheduling_strategies", "ray").NodeAffinitySchedulingStrategy
        probe = self._ray.remote(num_cpus=0, max_retries=1)(ask)
        asked = {
            node["NodeManagerAddress"]: probe.options(
                scheduling_strategy=strategy(node_id=node["NodeID"], soft=False)
            ).remote(*about)
            for node in self._nodes()
            if node["Resources"].get("CPU")
        }
        errors = self._ray.exceptions
        for host, ref in asked.items():
            try:
                yield host, self._ray.get(ref, timeout=self.limit)
            except errors.GetTimeoutError:
                raise Unavailable(
                    f"{self.address}: the node {host} did not answer within {self.limit:g} seconds"
                ) from None
            except errors.RayError as error:
                if "ModuleNotFoundError" in str(error) or "No module named" in str(error):
                    raise Refused(
                        f"{self.address}: modelkeep cannot be imported on the node {host}",
                        hint='pip install "modelkeep[ray]" there, in the same version as here',
                    ) from None
                continue  # the node has gone since; whoever joins is checked with its first part

    def _nodes(self) -> Iterable[dict[str, Any]]:
        return (node for node in self._ray.nodes() if node["Alive"])

    def _lost(self, error: Exception) -> bool:
        # also a result whose node died before it was fetched, and all results of a lost session
        known = self._ray.exceptions
        return isinstance(
            error,
            ConnectionError
            | known.WorkerCrashedError
            | known.NodeDiedError
            | known.ObjectLostError
            | known.OutOfMemoryError
            | known.LocalRayletDiedError
            | known.TaskCancelledError,
        )


class Sealed:
    """An object as it lies in the store: pickled, its arrays apart, which are not copied when it is opened."""

    def __init__(self, name: str, content: Any, *buffers: Any) -> None:
        self._name, self._content, self._buffers = name, content, buffers

    def __reduce__(self) -> Any:
        return Sealed, (self._name, *map(pickle.PickleBuffer, (self._content, *self._buffers)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sealed) and other._name == self._name

    def __hash__(self) -> int:
        return hash(self._name)

    @lru_cache(maxsize=8)  # noqa: B019 - that it is held is the point: each process opens it once
    def __call__(self) -> Any:
        """The object; its arrays are read-only."""
        return pickle.loads(self._content, buffers=self._buffers)  # noqa: S301 - from our own driver


def sealed(obj: Any) -> Sealed:
    """Seal an object, also one that only cloudpickle can send."""
    buffers: list[pickle.PickleBuffer] = []
    dumps = require("ray.cloudpickle", "ray").dumps
    content = dumps(obj, protocol=5, buffer_callback=buffers.append)
    return Sealed(uuid.uuid4().hex, content, *buffers)


def _run(terms: Terms, content: bytes, *shared: Sealed | bytes, keep: bool = False) -> Any:
    loads = [partial(merging.load, one) if isinstance(one, bytes) else one for one in shared]
    answer = remote.run(terms, content, loads)
    return (merging.told(answer), answer.content) if keep else answer


def grows(status: bytes | None, second: bytes | None) -> bool:
    """Whether a cluster has an autoscaler that starts nodes, of any kinds: which ones it could is not told.

    Args:
        status: What the monitor on the head says. On a cluster of fixed size, each node is of a kind of its own.
        second: ``1`` where it is the second autoscaler, which says nothing there; it is taken to start nodes.
    """
    if second == b"1":
        return True
    report = (json.loads(status) if status else {}).get("autoscaler_report") or {}
    kinds = report.get("node_type_mapping") or {}
    return any(kind != f"node_{node}" for node, kind in kinds.items())


def _room(there: dict[str, float]) -> room.Room:
    return room.Room(there.get("CPU", 0), there.get("memory", 0), there.get("GPU", 0))


def _first(error: Exception) -> str:
    """What it says; of the cluster's own traceback, the end."""
    lines = str(error).strip().splitlines()
    if lines and lines[0].endswith(":"):
        return f"{lines[0]} {lines[-1].strip()}"
    return lines[0] if lines else type(error).__name__
