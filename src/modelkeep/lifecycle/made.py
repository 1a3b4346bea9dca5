"""What making a version ended in, remembered: a version, or the refusal of its gates."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy import Connection

from modelkeep.core import digests
from modelkeep.lifecycle.stages import Keys
from modelkeep.registry import models
from modelkeep.registry.models import Version
from modelkeep.store import stages as cache
from modelkeep.train.results import GateResult

_MEASURED = "latency_ms."


class Made(Struct, frozen=True, kw_only=True):
    """What the register stage remembers.

    Attributes:
        version: The version; None when its gates refused it.
        gates: How each gate was decided.
        metrics: By name.
        run_id: The run that trained it.
    """

    version: int | None
    gates: tuple[GateResult, ...]
    metrics: dict[str, float | None]
    run_id: str

    @property
    def said(self) -> str:
        """How it ended, as a sentence."""
        if self.version is not None:
            return f"version {self.version} was made from exactly this"
        failed = sum(not result.passed for result in self.gates)
        return f"refused: {failed} of {len(self.gates)} gates did not pass"


def champion(conn: Connection, model: str) -> Version | None:
    """The champion as it stands; None before the first."""
    number = models.alias(conn, model, "champion")
    return None if number is None else models.version(conn, model, number)


def compared(keys: Keys, against: Version | None) -> str:
    """Key of the evaluate stage. The champion is part of it: a later champion must be compared with anew."""
    return digests.of_value([keys.evaluate, against.package if against else ""])


def recall(conn: Connection, keys: Keys, against: Version | None) -> Made | None:
    """What was made from exactly this: a version, or a refusal that the same champion would bring about again."""
    known = cache.recall(conn, keys.version) or cache.recall(conn, _refusal(keys, against))
    return None if known is None else msgspec.convert(known, Made, strict=False)


def remember(conn: Connection, keys: Keys, against: Version | None, model: str, made: Made, now: float) -> None:
    """Keep how it ended. A refusal that rests on a measured time is not kept: the next try may be quicker."""
    row: dict[str, Any] = msgspec.to_builtins(made)
    if made.version is not None:
        cache.remember(conn, keys.version, "version", model, row, now)
    elif not any(_MEASURED in result.gate for result in made.gates if not result.passed):
        cache.remember(conn, _refusal(keys, against), "refusal", model, row, now)


def _refusal(keys: Keys, against: Version | None) -> str:
    return digests.of_value(["refused", keys.version, against.package if against else ""])
