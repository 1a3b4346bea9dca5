"""gRPC health checking: https://github.com/grpc/grpc/blob/master/doc/health-checking.md

The empty service is the whole process; an endpoint's or model's name asks whether it is served.
"""

from __future__ import annotations

from typing import Any, Final

from modelkeep.core.errors import ModelkeepError
from modelkeep.protocols.grpc import messages
from modelkeep.protocols.grpc.exchange import Exchange, Method
from modelkeep.protocols.grpc.status import Code, RpcError
from modelkeep.serve.dataplane import DataPlane

_PATH: Final = b"/grpc.health.v1.Health/"
SERVING: Final = 1
NOT_SERVING: Final = 2
SERVICE_UNKNOWN: Final = 3


class HealthService:
    """The door.

    Args:
        plane: Whose health it is.
        services: Names of services that are served whenever the process is.
    """

    def __init__(self, plane: DataPlane, services: tuple[str, ...] = ()) -> None:
        self._plane = plane
        self._services = ("", *services)
        self._stopping = False
        self._watching: list[Exchange] = []  # their ``state`` is the name and what was said of it last
        self._asked = messages.message("grpc.health.v1.HealthCheckRequest")
        self._answered = messages.message("grpc.health.v1.HealthCheckResponse")
        plane.swapped.append(self._tell)

    def methods(self) -> dict[bytes, Method]:
        """Every method by its path."""
        return {_PATH + b"Check": Method(self._check), _PATH + b"Watch": Method(self._watch)}

    def stop(self) -> None:
        """Say that the process will end, and let the watchers go."""
        self._stopping = True
        self._tell()
        for exchange in self._watching:
            exchange.finish()
        self._watching.clear()

    def status(self, service: str) -> int:
        """How a service, endpoint or model stands."""
        if service in self._services:
            return NOT_SERVING if self._stopping or self._plane.generation < 0 else SERVING
        try:
            self._plane.endpoint(service).lane("")
        except ModelkeepError:
            return SERVICE_UNKNOWN
        return NOT_SERVING if self._stopping else SERVING

    def _check(self, exchange: Exchange, data: bytes) -> None:
        name = messages.decode(self._asked, data).service
        found = self.status(name)
        if found == SERVICE_UNKNOWN:
            raise RpcError(Code.NOT_FOUND, f"there is no service, endpoint or model {name[:60]!r}")
        exchange.answer(self._message(found))

    def _watch(self, exchange: Exchange, data: bytes) -> None:
        """Say the status now and whenever it changes, until the client has heard enough."""
        exchange.state = [messages.decode(self._asked, data).service, None]
        self._watching = [one for one in self._watching if not one.over]
        self._watching.append(exchange)
        self._tell()

    def _tell(self) -> None:
        for exchange in self._watching:
            name, said = exchange.state
            found = self.status(name)
            if found != said and not exchange.over:
                exchange.state[1] = found
                exchange.send(self._message(found))

    def _message(self, status: int) -> bytes:
        found: Any = self._answered(status=status).SerializeToString()
        return bytes(found)
