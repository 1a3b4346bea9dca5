"""What a route of an ASGI application needs. A route that is not in its server's table is refused to all."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from modelkeep.registry.access_rights import ALL, EVERYTHING


class Need(Struct, frozen=True):
    """A right, and on what.

    Attributes:
        right: One of ``access_rights.RIGHTS``; empty: anybody may ask, unknown or not.
        kind: What it must hold on.
        parameter: The path parameter that names it; empty for all of the kind.
        known: With no right: whether it must be known who asks.
        inside: Whether the route itself asks the guard, once it knows what the request touches.
    """

    right: str = ""
    kind: str = EVERYTHING
    parameter: str = ""
    known: bool = True
    inside: bool = False

    def name(self, parameters: Mapping[str, str]) -> str:
        """The thing's name."""
        return parameters[self.parameter] if self.parameter else ALL


PUBLIC = Need(known=False)
KNOWN = Need()
INSIDE = Need(inside=True)
READ = Need("read")

Needs = Mapping[str, Need | Mapping[str, Need]]
"""By route template; where methods differ, by method."""


def find(needs: Needs, template: str, method: str) -> Need | None:
    """The need of a route; None when nobody stated it. ``HEAD`` needs what ``GET`` does."""
    found = needs.get(template)
    if found is None or isinstance(found, Need):
        return found
    return found.get("GET" if method == "HEAD" else method)


_MODEL = Need("read", "model", "model")
_PAGE_MODEL = Need("read", "model", "name")
_ENDPOINT = Need("read", "endpoint", "endpoint")
_API = "/api/modelkeep"

CONTROL: Needs = {
    "/health": PUBLIC,
    "/version": PUBLIC,
    "/sign-in": PUBLIC,
    "/sign-out": KNOWN,
    "/static": PUBLIC,
    "/static/plotly.js": PUBLIC,
    f"{_API}/openapi.json": KNOWN,
    f"{_API}/status": READ,
    f"{_API}/models": READ,
    f"{_API}/models/{{model}}/versions/{{version}}": _MODEL,
    f"{_API}/models/{{model}}/versions/{{version}}/evaluation": _MODEL,
    f"{_API}/models/{{model}}/rollback": Need("deploy", "model", "model"),
    f"{_API}/endpoints": READ,
    f"{_API}/endpoints/{{endpoint}}/windows": _ENDPOINT,
    f"{_API}/endpoints/{{endpoint}}/findings": _ENDPOINT,
    f"{_API}/events": READ,
    f"{_API}/events/verify": READ,
    f"{_API}/jobs": READ,
    f"{_API}/snapshots": READ,
    f"{_API}/labels": Need("write", "endpoint"),
    "/": READ,
    "/models/{name}": _PAGE_MODEL,
    "/models/{name}/{ref}": _PAGE_MODEL,
    "/data": READ,
    "/events": READ,
    "/pages/stream": KNOWN,
    "/v1/traces": INSIDE,
    "/get-artifact": INSIDE,
    "/model-versions/get-artifact": INSIDE,
    **{f"/{root}/{version}": INSIDE for root in ("api", "ajax-api") for version in ("2.0", "2.11", "3.0")},
}
"""The control server: its own API, the pages, and MLflow's paths, whose operations are in ``operations``."""

_LOAD = Need("deploy", "endpoint")

SERVING: Needs = {
    "/v2": PUBLIC,
    "/v2/health/live": PUBLIC,
    "/v2/health/ready": PUBLIC,
    "/ping": PUBLIC,
    "/health": PUBLIC,
    "/version": PUBLIC,
    "/modelkeep/health": PUBLIC,
    "/metrics": Need("read", "endpoint"),
    "/monitoring/prometheus/metrics": Need("read", "endpoint"),
    "/v2/models/stats": Need("read", "endpoint"),
    "/v2/repository/index": Need("read", "endpoint"),
    "/v2/repository/models/{name}/load": _LOAD,
    "/v2/repository/models/{name}/unload": _LOAD,
    **dict.fromkeys(
        (
            "/v2/trace/setting",
            "/v2/models/{name}/trace/setting",
            "/v2/logging",
            "/v2/systemsharedmemory/{rest:path}",
            "/v2/cudasharedmemory/{rest:path}",
        ),
        KNOWN,  # they say that they are not offered
    ),
    "/invocations": INSIDE,
    "/endpoints/{name}/invocations": INSIDE,
    "/v1/models/{rest:path}": INSIDE,
    **{
        f"/v2/models/{{name}}{version}{what}": INSIDE
        for version in ("", "/versions/{version}")
        for what in ("", "/ready", "/config", "/stats", "/infer")
    },
}
"""The serving process over HTTP. Whether somebody may ask an endpoint is found out where a door looks it up."""

CALLS: Mapping[str, Need] = {
    "Check": PUBLIC,
    "Watch": PUBLIC,
    "ServerLive": PUBLIC,
    "ServerReady": PUBLIC,
    "ServerMetadata": PUBLIC,
    "ModelStatistics": Need("read", "endpoint"),
    "RepositoryIndex": Need("read", "endpoint"),
    "RepositoryModelLoad": _LOAD,
    "RepositoryModelUnload": _LOAD,
}
"""gRPC methods that need something else than to be known, and then what the endpoint they name needs."""
