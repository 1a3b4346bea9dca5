"""``modelkeep up``: the control server, the loop, serving processes, and jobs, until told to stop."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import uvicorn

from modelkeep.app import children, control, running
from modelkeep.app.fleet import Bounds, Fleet, drain
from modelkeep.app.protection import Protection, checked
from modelkeep.app.settings import Settings
from modelkeep.app.watch import Watch
from modelkeep.app.wiring import connect
from modelkeep.core.clock import FileClock
from modelkeep.core.errors import Unavailable
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

    Args:
        ready: Told the addresses once everything answers.

    Raises:
        Refused: Other machines can reach the address, and nobody could sign in.
        Invalid: A certificate that cannot be used, or a name that is none, of a host or in ``MODELKEEP_METRICS``;
            or ``MODELKEEP_JOBS`` or ``MODELKEEP_DRAIN`` is no number.
        Conflict: Another ``up`` runs on this home.
        Unavailable: A port is taken.
    """
    if os.environ.get(_METRICS):  # what knows the names is large to import
        from modelkeep.protocols import metrics

        metrics.names(os.environ[_METRICS])  # or every serving process would end with this
    chosen = replace(options, protection=checked(options.protection, options.host, lambda: _admins(where, base)))
    keep = connect(where, base)
    with contextlib.closing(keep), locks.held(where.home, "up", doing="running modelkeep up on this home"):
        _Running(keep, where, chosen, ready).run()


class _Running:
    """The processes and threads of one ``up``."""

    def __init__(self, keep: Keep, where: Settings, options: Options, ready: Callable[[Addresses], None]) -> None:
        self.keep = keep
        self.where = where
        self.options = options
        self.ready = ready
        self.loop = Watch(keep, self._start_job)
        self.drain = drain()
        self.sockets = [_bind(options.host, options.port, "--port")]
        self.serve_port, self.grpc_port = options.serve_port, options.grpc_port
        self.claims: list[socket.socket] = []
        if options.serve:
            self.claims = [
                _claim(options.host, options.serve_port, "--serve-port"),
                _claim(options.host, options.grpc_port, "--grpc-port"),
            ]
            self.serve_port, self.grpc_port = (claim.getsockname()[1] for claim in self.claims)

    def run(self) -> None:
        port = self.sockets[0].getsockname()[1]
        host = self.options.host
        scheme = self.options.protection.scheme
        serving = f"{scheme}://{host}:{self.serve_port}" if self.options.serve else ""
        grpc = f"{host}:{self.grpc_port}" if self.options.serve else ""
        addresses = Addresses(control=f"{scheme}://{host}:{port}", serving=serving, grpc=grpc)
        self._write_addresses(addresses)
        server = uvicorn.Server(
            control.config(
                self.keep,
                self.loop.status,
                addresses.serving,
                host=self.options.host,
                protection=self.options.protection,
                timeout_graceful_shutdown=5,
            )
        )
        fleet = self._start_serving() if self.options.serve else None
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
            ending.close()
            if fleet is not None:
                fleet.stop()
            self.loop.stop_jobs()
            if watcher.is_alive():
                watcher.join(10)

    def _start_serving(self) -> Fleet:
        arguments = [
            "--home",
            str(self.where.home),
            "--database",
            self.where.database,
            "--blobs",
            self.where.blobs,
            "--host",
            self.options.host,
            "--port",
            str(self.serve_port),
            "--grpc-port",
            str(self.grpc_port),
            *self.options.protection.arguments(),
        ]
        if isinstance(self.keep.clock, FileClock):  # played time runs fast: what was captured must not lag behind
            arguments += ["--capture-every", "0.03"]
        fleet = Fleet(
            "modelkeep.app.serving",
            arguments,
            host=self.options.host,
            port=self.serve_port,
            grpc_port=self.grpc_port,
            drain=self.drain,
            bounds=self._bounds,
        )
        for claim in self.claims:
            claim.close()
        return fleet

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


def _claim(host: str, port: int, option: str) -> socket.socket:
    """A port that the fleet will share among its processes in a moment, and that nobody else gets until then.

    It listens, as sockets that are only bound do not keep others out, and is open to sharing only afterwards, so
    that a port which somebody shares counts as taken.
    """
    claim = _bind(host, port, option)
    try:
        claim.listen()
    except OSError as error:
        claim.close()
        raise _taken(host, port, option, error) from error
    claim.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return claim


def _bind(host: str, port: int, option: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise _taken(host, port, option, error) from error
    return bound


def _taken(host: str, port: int, option: str, error: OSError) -> Unavailable:
    return Unavailable(
        f"{option} {port} on {host}: {error.strerror}", hint=f"choose another, or {option} 0 for a free one"
    )
