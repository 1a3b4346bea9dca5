"""One serving process: follows the wanted state, serves it through the doors it is given, drains when told to end.

It needs the database only to hear of changes and the store only to fetch packages it has no copy of; when they are
away it serves what it last knew.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec
import uvicorn
import uvloop
from sqlalchemy import make_url

from modelkeep.core.clock import Clock
from modelkeep.core.errors import Unavailable
from modelkeep.registry import endpoints, unloading
from modelkeep.registry.endpoints import Wanted
from modelkeep.serve import addressable, state
from modelkeep.serve.dataplane import DataPlane
from modelkeep.serve.http import HotRoutes, protocol
from modelkeep.serve.orders import DRAIN
from modelkeep.serve.packages import LocalPackages
from modelkeep.serve.pressure import ModelsMemory, Pressure
from modelkeep.serve.server import ANSWER, Server
from modelkeep.serve.spool import EVERY, Spool
from modelkeep.serve.supervised import Supervised
from modelkeep.serve.tally import Tally
from modelkeep.store.blobs import open_blobs
from modelkeep.store.database import Database

log = logging.getLogger(__name__)

UNBOUND = ModelsMemory()
POLL = 0.15
RETRY = 1.0
BACKLOG = 2048
SWITCH = 0.001
"""Seconds that a thread which is at work may keep the event loop waiting for the interpreter."""


@dataclass
class Health:
    """How the process stands, for its health route.

    Attributes:
        database: Whether the registry could be read at the last try.
        faults: Why something wanted is not served, by endpoint.
        unloads: How many models left memory, by reason.
    """

    database: bool = False
    faults: dict[str, str] = field(default_factory=dict)
    unloads: Callable[[], Mapping[str, int]] = dict


class Doors(Protocol):
    """The protocols of a serving process."""

    @property
    def app(self) -> Any:
        """The ASGI application for everything that is not hot."""
        ...

    @property
    def hot(self) -> HotRoutes:
        """What is answered before ASGI."""
        ...

    @property
    def options(self) -> Mapping[str, Any]:
        """TLS and whose word counts on where requests come from, as ``uvicorn.Config`` takes them."""
        ...

    async def start(self, grpc: socket.socket | None) -> None:
        """Begin to answer on other sockets than that of HTTP; ``grpc`` listens already."""
        ...

    async def stop(self, limit: float) -> None:
        """Take nothing more there; what is under way has ``limit`` seconds."""
        ...


def open_existing(url: str) -> Database:
    """Open a database that is there. Raises ``Unavailable``: to make an empty one would mean to want nothing."""
    file = make_url(url).database if url.startswith("sqlite") else None
    if file and not Path(file).exists():
        raise Unavailable(f"there is no database at {file}")
    return Database.open(url)


class Follower:
    """The thread that keeps a data plane at the wanted state.

    Args:
        plane: What to change.
        packages: Where versions come from.
        database_url: Where the wanted state is.
        kept: File of the last known state.
        health: Told how it goes.
    """

    def __init__(
        self, plane: DataPlane, packages: LocalPackages, database_url: str, kept: Path, health: Health
    ) -> None:
        self._plane = plane
        self._packages = packages
        self._url = database_url
        self._kept = kept
        self._health = health
        self._database: Database | None = None
        self._applied: tuple[int, int] | None = None
        self._wanted: tuple[Wanted, ...] = ()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follow-wanted", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def stop(self, limit: float) -> None:
        """End; a load under way has ``limit`` seconds."""
        self._stop.set()
        self._thread.join(limit)

    def _run(self) -> None:
        known = state.load(self._kept)
        wait, said = 0.0, False
        while not self._stop.wait(wait):
            try:
                wait = self._follow()
                self._health.database = True
            except Exception as error:
                # whatever keeps the registry from being read, what is loaded goes on being served
                if self._health.database or not said:
                    log.warning("the registry cannot be read, serving the last known state: %s", error)
                said = True
                self._health.database = False
                wait = RETRY
                if known is not None and self._applied is None:
                    self._apply(known)
                    self._applied = (-1, 0)

    def _follow(self) -> float:
        """Look once; seconds to wait before the next look."""
        if self._database is None:
            self._database = open_existing(self._url)
        with self._database.read() as conn:
            generation = endpoints.generation(conn)
            if (generation, addressable.stamp(conn, self._wanted)) == self._applied:
                return POLL
            self._wanted = tuple(endpoints.wanted(conn))
            seen = (generation, addressable.stamp(conn, self._wanted))
            found = state.State(generation, tuple(addressable.widened(conn, one) for one in self._wanted))
        self._apply(found)
        # what could not be loaded is tried again: the store may be back, the package mended
        self._applied = None if self._plane.faults else seen
        return RETRY if self._plane.faults else POLL

    def _apply(self, wanted: state.State) -> None:
        def keep(served: Sequence[Wanted]) -> None:
            state.save(self._kept, state.State(wanted.generation, tuple(served)))

        self._plane.apply(wanted.wanted, self._packages, wanted.generation, loaded=keep)
        self._health.faults = dict(self._plane.faults)
        # models live long: keep the collector from walking them again and again
        gc.collect()
        gc.freeze()


def run_worker(
    home: Path,
    database_url: str,
    blobs_url: str,
    *,
    host: str,
    port: int,
    clock: Clock,
    doors: Callable[[DataPlane, Health], Doors],
    drain: int = DRAIN,
    capture_every: float = EVERY,
    grpc_port: int | None = None,
    leash: int | None = None,
    models_memory: ModelsMemory = UNBOUND,
) -> None:
    """Serve until told to end, then drain for at most ``drain`` seconds. Blocks.

    What is not answered by then is told so. At the latest ``CLOSING`` seconds after that the process is gone, with
    exit code 0, also when a model never returns. What tells it to end, or to leave at once: ``serve.server``.

    Args:
        home: Holds ``packages/``, ``capture/`` and ``serve/``; the address is written to
            ``serve/address-<pid>.json`` and printed.
        port: 0 picks a free one.
        doors: Makes the protocols over the data plane.
        capture_every: Seconds between files of captured rows.
        grpc_port: As ``port``, for gRPC; None for none.
        leash: Descriptor of the socket to a supervisor, which hands out what to listen on: then nothing is bound
            here, and ``port`` and ``grpc_port`` only say what is. See ``serve.supervised``.
        models_memory: What the models of this process may take.

    Raises:
        Unavailable: An address is taken.
    """
    supervised = None if leash is None else socket.socket(fileno=leash)
    listener = None if supervised else _listen(host, port)
    grpc = None if supervised or grpc_port is None else _listen(host, grpc_port)
    gc.set_threshold(50_000, 20, 50)
    sys.setswitchinterval(SWITCH)
    spool = Spool(home / "capture", clock, every=capture_every)
    uvloop.run(
        _serve(
            home,
            database_url,
            blobs_url,
            listener=listener,
            grpc=grpc,
            leash=supervised,
            address=_Address(
                host,
                listener.getsockname()[1] if listener else port,
                grpc.getsockname()[1] if grpc else grpc_port,
            ),
            clock=clock,
            doors=doors,
            drain=drain,
            spool=spool,
            models_memory=models_memory,
        )
    )


class _Address(NamedTuple):
    """Where a process answers: HTTP and, if at all, gRPC."""

    host: str
    port: int
    grpc: int | None


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)  # from here on clients wait rather than be turned away
    except OSError as error:
        listener.close()
        raise Unavailable(
            f"cannot listen on {host}:{port}: {error.strerror}", hint="choose another port; 0 picks a free one"
        ) from error
    return listener


async def _serve(
    home: Path,
    database_url: str,
    blobs_url: str,
    *,
    listener: socket.socket | None,
    grpc: socket.socket | None,
    leash: socket.socket | None,
    address: _Address,
    clock: Clock,
    doors: Callable[[DataPlane, Health], Doors],
    drain: int,
    spool: Spool,
    models_memory: ModelsMemory,
) -> None:
    plane = DataPlane(asyncio.get_running_loop(), clock, spool)
    health = Health()
    made = doors(plane, health)
    packages = LocalPackages(home / "packages", lambda: open_blobs(blobs_url), models_memory.budget)
    pressure = Pressure(plane, packages.residency, models_memory)
    health.unloads = pressure.unloads
    follower = Follower(plane, packages, database_url, home / "serve" / "state.json", health)
    config = uvicorn.Config(
        made.app,
        http=protocol(made.hot),
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=drain + ANSWER,
        backlog=BACKLOG,
        **made.options,
    )
    supervised = Supervised(leash, plane, made.start) if leash else None
    server = Server(config, plane, made, drain, supervised, spool.close)
    tally = Tally(home / "serve" / "counts", plane.counted)
    plane.elsewhere = tally.elsewhere
    plane.unload = partial(_unload, database_url, clock)
    tally.start()
    spool.start()
    follower.start()
    pressure.start()
    await made.start(grpc)
    try:
        with _announced(address, home / "serve" / f"address-{os.getpid()}.json"):
            await server.serve(sockets=[listener] if listener else [])
    finally:
        await asyncio.to_thread(pressure.stop)
        await asyncio.to_thread(follower.stop, server.left)
        with contextlib.suppress(TimeoutError):  # whom these batches were for has been told
            await asyncio.wait_for(asyncio.to_thread(plane.close), server.left)
        await asyncio.to_thread(packages.close)
        await asyncio.to_thread(spool.close)
        await asyncio.to_thread(tally.stop)


def _unload(database_url: str, clock: Clock, endpoint: str, away: bool, actor: str) -> None:
    """Have an endpoint unloaded, or loaded again, by all that follow the registry. Raises ``Unavailable``."""
    change = unloading.unload if away else unloading.load
    with contextlib.closing(open_existing(database_url)) as database:
        database.write(lambda conn: change(conn, endpoint, now=clock.now(), actor=actor))


@contextlib.contextmanager
def _announced(address: _Address, path: Path) -> Iterator[None]:
    """The real addresses, in a file and, that of HTTP, on standard output, while they are served."""
    host, port, grpc = address
    shown = f"[{host}]" if ":" in host else host
    content = {"host": host, "port": port, "pid": os.getpid(), "url": f"http://{shown}:{port}"}
    if grpc is not None:
        content["grpc"] = f"{shown}:{grpc}"
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".next")
    fresh.write_bytes(msgspec.json.encode(content))
    fresh.replace(path)
    print(f"serving on {content['url']}", flush=True)  # noqa: T201 - how a parent learns the port
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
