"""``modelkeep up``: the control server, the loop, serving processes, and jobs, until told to stop."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType

import uvicorn

from modelkeep.app import children, control, ports, running, serve
from modelkeep.app.fleet import Bounds, Fleet
from modelkeep.app.protection import Protection, checked
from modelkeep.app.settings import Settings
from modelkeep.app.watch import Watch
from modelkeep.app.wiring import connect
from modelkeep.lifecycle import locks, renewals
from modelkeep.lifecycle.keep import Keep
from modelkeep.registry import access, endpoints
from modelkeep.serve.limits import replicas
from modelkeep.store.jobs import Job

_METRICS = "MODELKEEP_METRICS"


@dataclass(frozen=True, slots=True)
class Options:
    """What to run and where.

    Attributes:
        host: Address to bind.
        port: Control server; 0 picks a free one.
        serve_port: Serving over HTTP; 0 picks a free one.
        grpc_port: Serving over gRPC; 0 picks a free one.
        serve: Whether to start serving processes, as many as the endpoints and the load ask for.
        loop: Whether to watch and renew.
        protection: Who must say who they are, and over what.
    """

    host: str = "127.0.0.1"
    port: int = 5000
    serve_port: int = 8080
    grpc_port: int = 8081
    serve: bool = True
    loop: bool = True
    protection: Protection = field(default_factory=Protection)


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where things answer."""

    control: str
    serving: str
    grpc: str = ""


def up(where: Settings, base: Path, options: Options, ready: Callable[[Addresses], None]) -> None:
    """Run until SIGTERM or SIGINT; then stop taking requests, let those under way end, and stop.

    SIGTERM or SIGINT once more, and nothing is waited for.

    Args:
        ready: Told the addresses once everything answers.

    Raises:
        Refused: Other machines can reach the address, and nobody could sign in.
        Invalid: A certificate that cannot be used, or a name that is none, of a host or in ``MODELKEEP_METRICS``;
            or ``MODELKEEP_JOBS`` or ``MODELKEEP_DRAIN`` is no number.
        Conflict: Another ``up`` runs on this home, or a ``serve`` and this one is to serve too.
        Unavailable: A port is taken.
    """
    if os.environ.get(_METRICS):  # what knows the names is large to import
        from modelkeep.protocols import metrics

        metrics.names(os.environ[_METRICS])  # or every serving process would end with this
    chosen = replace(options, protection=checked(options.protection, options.host, lambda: _admins(where, base)))
    keep = connect(where, base)
    with contextlib.ExitStack() as held:
        held.enter_context(contextlib.closing(keep))
        held.enter_context(locks.held(where.home, "up", doing="running modelkeep up on this home"))
        if options.serve:
            held.enter_context(serve.only(where.home))
        _Running(keep, where, chosen, ready).run()


class _Running:
    """The processes and threads of one ``up``."""

    def __init__(self, keep: Keep, where: Settings, options: Options, ready: Callable[[Addresses], None]) -> None:
        self.keep = keep
        self.where = where
        self.options = options
        self.ready = ready
        self.loop = Watch(keep, self._start_job)
        self.sockets = [ports.bind(options.host, options.port, "--port")]
        self.doors = serve.Doors(options.host, options.serve_port, options.grpc_port) if options.serve else None

    def run(self) -> None:
        port = self.sockets[0].getsockname()[1]
        host = self.options.host
        scheme = self.options.protection.scheme
        addresses = Addresses(
            f"{scheme}://{host}:{port}", *(self.doors.addresses(scheme) if self.doors else ("", ""))
        )
        self._write_addresses(addresses)
        server = _Server(
            control.config(
                self.keep,
                self.loop.status,
                (lambda: addresses.serving) if self.doors else (lambda: running.serving(self.where.home)),
                host=self.options.host,
                protection=self.options.protection,
                timeout_graceful_shutdown=5,
            )
        )
        fleet = None
        if self.doors:
            fleet = serve.fleet(self.where, self.doors, self.options.protection, self.keep.clock, self._bounds)
        stopping = threading.Event()
        watcher = threading.Thread(target=self.loop.run, args=(stopping,), name="loop", daemon=True)
        ending = contextlib.ExitStack()

        def started() -> None:
            """Everything else begins once the server answers."""
            if self.options.loop:
                watcher.start()
            from modelkeep.protocols.mlflow.deliver import Deliveries

            deliveries = Deliveries(self.keep.db)
            deliveries.start()
            ending.callback(deliveries.stop)
            _collect_less()
            self.ready(addresses)
            control.warm(server.config)

        threading.Thread(target=_after_start, args=(server, started), daemon=True).start()
        try:
            server.run(sockets=self.sockets)
        finally:
            stopping.set()
            self._end(ending, fleet, watcher, again=server.told > 1)

    def _end(
        self, ending: contextlib.ExitStack, fleet: Fleet | None, watcher: threading.Thread, *, again: bool
    ) -> None:
        """Stop everything else. A Ctrl-C meanwhile ends one wait and keeps the others from waiting."""
        with contextlib.ExitStack() as last:
            last.push(
                lambda kind, *_: watcher.join(10) if watcher.is_alive() and not again and kind is None else None
            )
            last.push(lambda kind, *_: self.loop.stop_jobs(at_once=again or kind is not None))
            if fleet is not None:
                last.push(lambda kind, *_: fleet.stop(at_once=again or kind is not None))
            last.callback(ending.close)

    def _bounds(self) -> Bounds:
        with self.keep.db.read() as conn:
            return Bounds(*replicas(endpoints.wanted(conn)))

    def _start_job(self, job: Job) -> children.Child:
        base = job.payload.get("base") or str(self.keep.base)
        arguments = [str(self.where.home), str(job.id), self.where.database, self.where.blobs, base]
        return children.start("modelkeep.app.job", arguments, renewals.log_of(self.where.home, job.id))

    def _write_addresses(self, addresses: Addresses) -> None:
        room = renewals.room() if self.options.loop else None
        running.tell(
            self.where.home, room, control=addresses.control, serving=addresses.serving, grpc=addresses.grpc
        )


class _Server(uvicorn.Server):
    """Counts how often it was told to end."""

    told = 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """As uvicorn, but SIGTERM counts as Ctrl-C does."""
        self.told += 1
        super().handle_exit(sig, frame)
        self.force_exit = self.force_exit or self.told > 1


def _after_start(server: uvicorn.Server, act: Callable[[], None]) -> None:
    pause = threading.Event()
    while not server.started and not server.should_exit:
        pause.wait(0.02)
    if server.started:
        act()


def _admins(where: Settings, base: Path) -> list[str]:
    if not where.home.exists():
        return []  # and none is made for a command that is refused
    with contextlib.closing(connect(where, base)) as keep, keep.db.read() as conn:
        return access.load(conn).admins


def _collect_less() -> None:
    """Keep the garbage collector off what is there for good, and let it look at new objects less often.

    A batch of a thousand points makes thousands of objects that live for milliseconds and form no cycles.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def stop_on_terminate() -> None:
    """Let SIGTERM stop this process the way Ctrl-C does."""
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
