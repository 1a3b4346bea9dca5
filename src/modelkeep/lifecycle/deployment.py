"""The deployment a declaration asks for, compared with the one that is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec import Struct
from sqlalchemy import Connection

from modelkeep.core import digests
from modelkeep.core.errors import Conflict
from modelkeep.registry import endpoints
from modelkeep.registry.endpoints import Wanted
from modelkeep.spec import loading
from modelkeep.spec.declaration import Declaration
from modelkeep.store import stages as cache


class Settled(Struct, frozen=True):
    """Whether the endpoint is as asked.

    Attributes:
        because: What must change, as a sentence; empty when nothing must.
        state: What is, as a sentence.
    """

    because: str
    state: str


def settings(declaration: Declaration, base: Path) -> dict[str, Any]:
    """What serving, monitoring and the loop must know of the declaration."""
    return {
        "sample": declaration.monitor.log.sample,
        "mask": list(declaration.monitor.log.mask),
        "unknown_fields": declaration.deploy.unknown_fields,
        "declaration": loading.to_builtins(declaration),
        "base": str(base),
    }


def own(conn: Connection, declaration: Declaration) -> Wanted | None:
    """The declaration's endpoint as it stands; None before the first version.

    Raises:
        Conflict: The endpoint serves another model.
    """
    found = endpoints.get(conn, declaration.endpoint)
    if found is not None and found.model != declaration.model:
        raise Conflict(
            f"endpoint {declaration.endpoint!r} belongs to model {found.model!r}",
            hint="give this model another name under deploy.endpoint",
        )
    return found


def applied(conn: Connection, declaration: Declaration, number: int, now: float) -> None:
    """Remember what was applied last: the declaration and its version. Repeating it writes nothing."""
    record = {"declaration": loading.to_builtins(declaration), "version": number}
    key = _key(declaration.model)
    if cache.recall(conn, key) != record:
        cache.remember(conn, key, "applied", declaration.model, record, now)


def last_applied(conn: Connection, model: str) -> dict[str, Any] | None:
    """The ``declaration`` applied last as builtins, and its ``version``; None before the first."""
    return cache.recall(conn, _key(model))


def settled(conn: Connection, declaration: Declaration, number: int | None, base: Path) -> Settled:
    """Compare the endpoint with what the declaration and its version ask for.

    A version that was rolled back or aborted stays so until the declaration or the data changes.

    Args:
        number: The version that the declaration and the data stand for; None when there is none yet.

    Raises:
        Conflict: The endpoint serves another model.
    """
    found = own(conn, declaration)
    if number is None:
        return Settled("a new version is registered", "")
    if found is None or not found.routes:
        return Settled(f"version {number} is not served yet", "")
    champion = next((route.version for route in found.routes if route.mode == "stable"), None)
    if found.settings != settings(declaration, base):
        served = any(route.version == number for route in found.routes)
        takes_over = f"version {number} takes over from version {champion}"
        return Settled("the settings of the endpoint change" if served else takes_over, "")
    underway = found.rollout.version if found.rollout else None
    if underway == number:
        return Settled("", f"version {number} is on its way, at step {found.rollout.step + 1}")  # type: ignore[union-attr]
    if champion == number and underway is None:
        return Settled("", f"version {number} is the champion")
    record = {"declaration": loading.to_builtins(declaration), "version": number}
    if last_applied(conn, declaration.model) == record:
        return Settled("", f"version {champion} is the champion; version {number} had its rollout")
    if champion == number:
        return Settled(f"version {number} stays, the rollout of version {underway} ends", "")
    return Settled(f"version {number} takes over from version {champion}", "")


def _key(model: str) -> str:
    return digests.of_value(["applied", model])
