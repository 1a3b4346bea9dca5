"""Which endpoints whoever asks may know of."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from modelkeep.core.errors import Refused

Allowed = Callable[[str, str], None]
"""Told an endpoint and by what name somebody asks for it; raises ``Refused`` when they may not."""


def seen(names: Iterable[str], allowed: Allowed | None) -> list[str]:
    """Those of the endpoints that whoever asks may see, in order of their names."""
    return sorted(name for name in names if allowed is None or _sees(name, allowed))


def _sees(name: str, allowed: Allowed) -> bool:
    try:
        allowed(name, name)
    except Refused:
        return False
    return True
