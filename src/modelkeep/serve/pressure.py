"""When memory runs short, models that nobody asks for are unloaded before the machine ends a process.

A budget (``residency``) bounds what models take; what else lives on the machine it does not know. So what is left
is watched too, of the machine or of the container, whichever is less. Below a reserve, versions that no route
leads to and that rest are let go, the one asked longest ago first. What carries traffic stays, whatever is left.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Protocol, TypeVar

from modelkeep.core import machine
from modelkeep.core.errors import Invalid
from modelkeep.serve.residency import Residency, Resident

if TYPE_CHECKING:
    from modelkeep.serve.dataplane import DataPlane

log = logging.getLogger(__name__)

SETTING = "MODELKEEP_MODELS_RESERVE"
RESERVE = "5%"
LOOK = 0.5
REST = 5.0
"""Seconds without a request after which a model rests: one that is asked all the time would only be reloaded."""


@dataclass(frozen=True, slots=True)
class ModelsMemory:
    """What models may take.

    Attributes:
        budget: Bytes that those of one process may take together; 0 for no limit.
        reserve: What is to be left of the machine, as ``5%`` or in bytes; ``0`` for nothing.
        root: Where ``proc`` and ``sys`` are, which say what is left.
    """

    budget: int = 0
    reserve: str = RESERVE
    root: Path = Path("/")


class Rests(Protocol):
    """What is needed of a model that may go."""

    @property
    def used(self) -> float:
        """``time.monotonic`` when it was asked last."""
        ...

    @property
    def taken(self) -> int:
        """Bytes that it is known to take."""
        ...


R = TypeVar("R", bound=Rests)


def reserve(text: str, total: int) -> int:
    """Bytes that a reserve is.

    Args:
        text: ``5%`` of ``total``, or bytes.

    Raises:
        Invalid: It is neither.
    """
    found = re.fullmatch(r"(\d{1,18}(?:\.\d{1,6})?)(%?)", text.strip(), re.ASCII)
    if found is None or (found[2] and float(found[1]) >= 100) or (not found[2] and not found[1].isdigit()):
        raise Invalid(f"is {text[:40]!r}; expected a share of the machine such as 5%, or bytes", path=SETTING)
    return int(float(found[1]) / 100 * total) if found[2] else int(found[1])


def chosen(left: int, wanted: int, resting: Sequence[R], now: float) -> list[R]:
    """Who goes: those asked longest ago, as few as should bring back what is wanted.

    Args:
        left, wanted: Bytes.
        resting: Who could go, unless it was asked within the last ``REST`` seconds.
        now: As ``Rests.used``.
    """
    gone: list[R] = []
    for one in sorted(resting, key=lambda each: each.used):
        if left >= wanted or now - one.used < REST:
            break
        gone.append(one)
        left += one.taken
    return gone


class Pressure:
    """The thread that watches what is left.

    Args:
        plane: Whose models may go.
        residency: Unloads them.
        limits: How much is to be left, and of what.

    Raises:
        Invalid: The reserve is none.
    """

    def __init__(self, plane: DataPlane, residency: Residency, limits: ModelsMemory) -> None:
        self._plane = plane
        self._residency = residency
        self._root = limits.root
        self._wanted = reserve(limits.reserve, machine.memory(limits.root))
        self._gone = 0
        self._said = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory-pressure", daemon=True)

    def start(self) -> None:
        """Begin to watch, if anything is to be left."""
        if self._wanted:
            self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(5)

    def unloads(self) -> Mapping[str, int]:
        """How many models were unloaded, by reason."""
        return {"budget": self._residency.unloads - self._gone, "pressure": self._gone}

    def _run(self) -> None:
        while not self._stop.wait(LOOK):
            try:
                self._look()
            except Exception:  # without this thread nothing else would keep the machine from running out
                log.exception("what memory is left could not be seen to")

    def _look(self) -> None:
        left = machine.available(self._root)
        if left >= self._wanted:
            self._said = False
            return
        gone = chosen(left, self._wanted, resting(self._plane), monotonic())
        if gone:
            self._gone += len(gone)
            self._residency.let_go(gone)
            log.warning(
                "%d MB of memory are left, %d should be: unloaded %s, asked longest ago",
                left >> 20,
                self._wanted >> 20,
                ", ".join(one.label for one in gone),
            )
        elif not self._said:
            log.warning(
                "%d MB of memory are left, %d should be, and every model that is loaded is in use",
                left >> 20,
                self._wanted >> 20,
            )
            self._said = True


def resting(plane: DataPlane) -> list[Resident]:
    """Loaded models that no traffic is routed to and that nothing is under way for. From any thread."""
    ways = [way for endpoint in plane.endpoints.values() for way in endpoint.ways]
    busy = {id(way.lane.loaded.model) for way in ways if way.weight or way.shadow or not way.lane.idle}
    found: dict[int, Resident] = {}
    for way in ways:
        model = way.lane.loaded.model
        if id(model) not in busy and isinstance(model, Resident) and model.here:
            found[id(model)] = model
    return list(found.values())
