"""Endpoints that are to be out of memory for a while, though their deployments stand.

What Triton's repository extension calls unloading. It is part of the wanted state, so that every serving process
follows, those that start later too.
"""

from __future__ import annotations

from msgspec.structs import replace
from sqlalchemy import Connection

from modelkeep.core.errors import NotFound
from modelkeep.registry import endpoints, events
from modelkeep.registry.endpoints import Wanted

_UNLOADED = "unloaded"


def is_unloaded(wanted: Wanted) -> bool:
    """Whether serving is to hold no version of the endpoint."""
    return bool(wanted.settings.get(_UNLOADED))


def unload(conn: Connection, endpoint: str, *, now: float, actor: str) -> None:
    """Let serving hold no version of an endpoint, until it is loaded or set anew. Raises ``NotFound``."""
    _set(conn, endpoint, unloaded=True, now=now, actor=actor)


def load(conn: Connection, endpoint: str, *, now: float, actor: str) -> None:
    """Let an endpoint be served again. Raises ``NotFound``."""
    _set(conn, endpoint, unloaded=False, now=now, actor=actor)


def _set(conn: Connection, endpoint: str, *, unloaded: bool, now: float, actor: str) -> None:
    found = endpoints.get(conn, endpoint)
    if found is None:
        raise NotFound(f"there is no endpoint {endpoint[:60]!r}")
    if is_unloaded(found) == unloaded:
        return
    others = {name: value for name, value in found.settings.items() if name != _UNLOADED}
    endpoints.put(conn, replace(found, settings={**others, _UNLOADED: True} if unloaded else others))
    events.append(conn, "endpoint.unloaded" if unloaded else "endpoint.loaded", endpoint, {}, now=now, actor=actor)
