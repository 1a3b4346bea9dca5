"""Whether one part fits anywhere: told before work starts, by the field that asks for too much."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from modelkeep.core import memory
from modelkeep.core.errors import Refused
from modelkeep.spec.declaration import Resources
from modelkeep.spec.engines import size


class Room(NamedTuple):
    """What one worker has.

    Attributes:
        cpu: Cores.
        memory: Bytes; infinite where nothing bounds it.
        gpu: GPUs.
    """

    cpu: float
    memory: float
    gpu: float

    def parts(self, needed: Resources) -> int:
        """How many parts fit at once."""
        fits = [has / asked for has, asked in zip(self, amounts(needed), strict=True) if asked]
        return int(min(fits, default=0) + 1e-9)


def amounts(needed: Resources) -> Room:
    """What one part asks for, in the same units; 0 is not counted."""
    return Room(needed.cpu, size(needed.memory) if needed.memory else 0, needed.gpu)


def must_fit(needed: Resources, rooms: Iterable[Room], where: str, more: Mapping[str, str]) -> None:
    """See that one part fits on some worker, as far as is known: when there is none, all is well.

    Args:
        needed: By one part.
        rooms: What each worker has.
        where: The workers, for the message, as ``no node of ray://head:10001``.
        more: What to do to have more of a field, by its name.

    Raises:
        Refused: It does not. Names the field, what it asks for and the most that there is.
    """
    found = list(rooms)
    if not found or any(room.parts(needed) for room in found):
        return
    asked, said = amounts(needed), _said(needed)
    for name in Room._fields:
        most = max(getattr(room, name) for room in found)
        if getattr(asked, name) > most:
            has = f"more than {_shown(name, most)}" if most else f"any {_UNITS[name]}"
            raise Refused(
                f"resources.{name}: {where} has {has}, and one part asks for {said[name]}",
                hint=f"ask for less, or {more[name]}",
            )
    together = ", ".join(f"{name} {said[name]}" for name in Room._fields if getattr(asked, name))
    raise Refused(
        f"resources: {where} has all that one part asks for: {together}",
        hint="ask for less of one, or start workers with as much of each",
    )


_UNITS = {"cpu": "cores", "memory": "memory", "gpu": "GPUs"}


def _said(needed: Resources) -> dict[str, str]:
    return {"cpu": f"{needed.cpu:g}", "memory": needed.memory, "gpu": f"{needed.gpu:g}"}


def _shown(name: str, amount: float) -> str:
    return memory.shown(int(amount)) if name == "memory" else f"{amount:g} {_UNITS[name]}"
