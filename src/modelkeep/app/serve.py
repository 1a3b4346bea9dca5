"""``modelkeep serve``: serving processes alone, which need neither control nor, once they know it, the database.

The same processes as under ``up``, kept by a parent that does nothing else: so control may be stopped, killed or
renewed beside them. What they serve is in the registry; of that, of the packages and of the accounts the home
keeps copies, from which they start and go on while the database is away.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from modelkeep.app import ports, running
from modelkeep.app.fleet import Bounds, Fleet, drain
from modelkeep.app.protection import Protection, checked
from modelkeep.app.settings import Settings
from modelkeep.core import clock as clocks
from modelkeep.core.clock import Clock, FileClock
from modelkeep.core.errors import ModelkeepError, NotFound
from modelkeep.lifecycle import locks
from modelkeep.protocols.access import accounts
from modelkeep.registry import access, endpoints
from modelkeep.serve import state
from modelkeep.serve.limits import replicas
from modelkeep.store.database import Database

log = logging.getLogger(__name__)

_RESERVE = "MODELKEEP_MODELS_RESERVE"


@dataclass(frozen=True, slots=True)
class Options:
    """Where to serve.

    Attributes:
        host: Address to bind.
        port: HTTP; 0 picks a free one.
        grpc_port: gRPC; 0 picks a free one.
        protection: Who must say who they are, and over what.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    grpc_port: int = 8081
    protection: Protection = field(default_factory=Protection)


class Doors:
    """The ports of the serving processes, which nobody else gets from now on.

    Raises:
        Invalid: ``MODELKEEP_DRAIN`` is no number, or ``MODELKEEP_MODELS_RESERVE`` no share and no number of bytes.
        Unavailable: A port is taken.
    """

    def __init__(self, host: str, port: int, grpc_port: int, option: str = "--serve-port") -> None:
        self.drain = drain()
        if os.environ.get(_RESERVE):
            _check_reserve(os.environ[_RESERVE])
        self._claims = [ports.claim(host, port, option), ports.claim(host, grpc_port, "--grpc-port")]
        self.host = host
        self.port, self.grpc_port = (claim.getsockname()[1] for claim in self._claims)

    def addresses(self, scheme: str) -> tuple[str, str]:
        """Of HTTP and of gRPC."""
        return f"{scheme}://{self.host}:{self.port}", f"{self.host}:{self.grpc_port}"

    def leave(self) -> None:
        """Leave the ports to those that share them."""
        for claim in self._claims:
            claim.close()


def _check_reserve(text: str) -> None:
    """Refuse what every serving process would end with. Raises ``Invalid``."""
    from modelkeep.serve import pressure  # large, and ``up`` imports this module

    pressure.reserve(text, 0)


def only(home: Path) -> AbstractContextManager[None]:
    """Hold the right to serve this home. Raises ``Conflict`` when another has it."""
    return locks.held(
        home,
        "serve",
        doing="serving this home",
        hint="stop it; modelkeep up --no-serve runs beside modelkeep serve",
    )


def fleet(
    where: Settings, doors: Doors, protection: Protection, clock: Clock, bounds: Callable[[], Bounds]
) -> Fleet:
    """Start the serving processes.

    Args:
        bounds: Says how many there may be.
    """
    arguments = ["--home", str(where.home), "--database", where.database, "--blobs", where.blobs]
    arguments += ["--host", doors.host, "--port", str(doors.port), "--grpc-port", str(doors.grpc_port)]
    arguments += protection.arguments()
    if isinstance(clock, FileClock):  # played time runs fast: what was captured must not lag behind
        arguments += ["--capture-every", "0.03"]
    made = Fleet(
        "modelkeep.app.serving",
        arguments,
        host=doors.host,
        port=doors.port,
        grpc_port=doors.grpc_port,
        drain=doors.drain,
        bounds=bounds,
    )
    doors.leave()
    return made


def serve(where: Settings, options: Options, ready: Callable[[str, str], None]) -> None:
    """Serve until SIGTERM or SIGINT; then let requests under way end. Once more, and they are not waited for.

    Args:
        ready: Told the addresses, of HTTP and gRPC, once connections are taken.

    Raises:
        NotFound: There is neither a home nor a database on another machine.
        Refused, Invalid: As ``up``.
        Conflict: Another process serves this home.
        Unavailable: A port is taken, or the home cannot be written.
    """
    registry = _Registry(where)
    if not where.home.exists() and not registry.elsewhere:
        raise NotFound(f"there is no home at {where.home}", hint="modelkeep apply makes it, or set MODELKEEP_HOME")
    protection = checked(options.protection, options.host, registry.admins)
    with only(where.home), contextlib.closing(registry):
        doors = Doors(options.host, options.port, options.grpc_port, "--port")
        addresses = doors.addresses(protection.scheme)
        processes = fleet(where, doors, protection, clocks.from_environment(), registry.bounds)
        try:
            running.tell_serving(where.home, *addresses)
            ready(*addresses)
            signal.pause()
        finally:
            processes.stop()


class _Registry:
    """What is read of the registry here, or of the home's copies while the database is away."""

    def __init__(self, where: Settings) -> None:
        self._url = where.database
        self._copies = where.home / "serve"
        self._db: Database | None = None
        self.elsewhere = not where.database.startswith("sqlite")

    def _open(self) -> Database:
        if self._db is None:
            from modelkeep.serve.worker import open_existing  # large, and ``up`` imports this module

            self._db = open_existing(self._url)
        return self._db

    def admins(self) -> Sequence[str]:
        """Who is admin."""
        try:
            with self._open().read() as conn:
                return access.load(conn).admins
        except ModelkeepError as error:
            known = accounts.kept(self._copies / "accounts.json")
            log.warning("the accounts cannot be read, those last known count: %s", error)
            return known.admins if known else []

    def bounds(self) -> Bounds:
        """How many processes there may be. Raises ``Unavailable`` when nothing is known of it."""
        try:
            with self._open().read() as conn:
                return Bounds(*replicas(endpoints.wanted(conn)))
        except ModelkeepError:
            known = state.load(self._copies / "state.json")
            if known is None:
                raise
            return Bounds(*replicas(known.wanted))

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
