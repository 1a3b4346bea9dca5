"""The deployment a declaration asks for, compared with the one that is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec import Struct
from sqlalchemy import Connection

from modelkeep.registry import endpoints
from modelkeep.spec import loading
from modelkeep.spec.declaration import Declaration


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


def settled(
    conn: Connection, declaration: Declaration, made: dict[str, Any] | None, base: Path, *, changed: bool
) -> Settled:
    """Compare the endpoint with what the declaration and its version ask for.

    A version that was rolled back or aborted stays so until the declaration changes.

    Args:
        made: What the register stage remembered of the version; None when there is none yet.
        changed: Whether the declaration differs from the one applied last.
    """
    if made is None:
        return Settled("a new version is registered", "")
    number = int(made["version"])
    found = endpoints.get(conn, declaration.endpoint)
    if found is None or not found.routes:
        return Settled(f"version {number} is not served yet", "")
    if found.settings != settings(declaration, base):
        return Settled("the settings of the endpoint change", "")
    if found.rollout is not None:
        return Settled("", f"version {found.rollout.version} is on its way, at step {found.rollout.step + 1}")
    champion = next((route.version for route in found.routes if route.mode == "stable"), None)
    if champion == number:
        return Settled("", f"version {number} is the champion")
    if changed:
        return Settled(f"version {number} takes over from version {champion}", "")
    return Settled("", f"version {champion} is the champion; version {number} had its rollout")
