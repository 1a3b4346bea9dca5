"""Whose turn it is: which of the jobs that wait is begun next. Pure, so that every situation can be tried."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from modelkeep.core.machine import Machine, Need
from modelkeep.core.memory import shown

AGE = 3600.0
"""Seconds of waiting that count as one step of priority, so that nothing waits for ever."""
_FULL = 1e-9
"""So much less than nothing free is still nothing: sums of tenths of a GPU are not exact."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A job as the queue sees it.

    Attributes:
        id: Its number; lower ones were asked for earlier.
        model: Whose it is.
        priority: Higher goes first; 0 is usual.
        cores: What it keeps busy.
        since: Since when it waits, seconds since 1970.
        memory: Bytes that it keeps; 0 is not counted.
        gpu: GPUs that it keeps busy; a part of one, or whole ones.
        held: The GPUs it was given, where it runs.
    """

    id: int
    model: str
    priority: int = 0
    cores: float = 1.0
    since: float = 0.0
    memory: float = 0.0
    gpu: float = 0.0
    held: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Room:
    """What there is.

    Attributes:
        jobs: How many may run at once.
        cores: What they may keep busy together.
        memory: Bytes that they may keep together.
        gpus: By name.
    """

    jobs: int = 1
    cores: float = float("inf")
    memory: float = float("inf")
    gpus: tuple[str, ...] = ()

    def parts(self, need: Need, most: int | None = None) -> int:
        """How many parts a job works on at once: as many as fit into its share of this, and at least one.

        Args:
            most: No more than so many.
        """
        return Machine(self.cores, self.memory, self.gpus).parts(need, self.jobs, most)


def choose(
    waiting: Sequence[Turn], running: Sequence[Turn], used: Mapping[str, float], room: Room, now: float
) -> Turn | None:
    """The job to begin now; None when none waits or none has room yet. See ``standing``."""
    return next((turn for turn, why in standing(waiting, running, used, room, now) if not why), None)


def standing(
    waiting: Sequence[Turn], running: Sequence[Turn], used: Mapping[str, float], room: Room, now: float
) -> list[tuple[Turn, str]]:
    """The line, first to last, each with what it waits for; nothing for the one to begin now and those beside it.

    The highest priority goes first, where every ``AGE`` seconds of waiting count as one step. Among equals the
    model goes first that has least running, then the one that has used least (fair share), then the oldest job.

    What a job at the front needs is kept for it while it waits for room: nobody overtakes it because it is
    smaller, else a large job would never begin. Who takes nothing that it needs may go ahead: that delays nobody.

    Args:
        used: Seconds of work of each model lately.
        now: Seconds since 1970.
    """
    share: dict[str, float] = {}
    for turn in running:
        share[turn.model] = share.get(turn.model, 0.0) + turn.cores

    def rank(turn: Turn) -> tuple[float, float, float, int]:
        aged = turn.priority + max(0.0, now - turn.since) // AGE
        return -aged, share.get(turn.model, 0.0), used.get(turn.model, 0.0), turn.id

    line: list[tuple[Turn, str]] = []
    before: list[Turn] = []
    for turn in sorted(waiting, key=rank):
        why = never(turn, room)
        if not why:
            why = _lacks(turn, running, room)
            if not why and _in_the_way(turn, running, before, room):
                why = f"its turn, after job {before[0].id}"
            before.append(turn)
        line.append((turn, why))
    return line


def never(turn: Turn, room: Room) -> str:
    """Why a job can never begin here, by field, value and what there is; nothing when it can."""
    for field, asked, all_, text in _amounts(turn, room):
        if asked > all_ + _FULL:
            return f"resources.{field}: one part asks for {text(asked)}, and this machine has {text(all_)}"
    return ""


def devices(turn: Turn, running: Sequence[Turn], room: Room) -> tuple[str, ...] | None:
    """The GPUs to give to a job now; None when they are not free.

    A part of a GPU comes from the fullest that has it, so that whole ones stay free for those who need them.
    """
    free = dict.fromkeys(room.gpus, 1.0)
    for other in running:
        for name in other.held:
            free[name] = free.get(name, 0.0) - min(1.0, other.gpu)
    need, count = min(1.0, turn.gpu), math.ceil(turn.gpu)
    fitting = sorted(
        (left, at) for at, left in enumerate(free[name] for name in room.gpus) if left >= need - _FULL
    )
    return tuple(room.gpus[at] for _, at in fitting[:count]) if len(fitting) >= count else None


def _lacks(turn: Turn, running: Sequence[Turn], room: Room) -> str:
    """What is not free for a job while these run; nothing when all is."""
    if len(running) >= room.jobs:
        others = ", ".join(str(other.id) for other in running)
        return f"job {others} to end: {room.jobs} may run at once (MODELKEEP_JOBS)"
    for field, asked, all_, text in _amounts(turn, room):
        free = all_ - _held(field, running)
        given = field == "gpu" and devices(turn, running, room) is None
        if asked and (asked > free + _FULL or given):
            return f"{field}: asks for {text(asked)}, {text(max(0.0, free))} of {text(all_)} are free"
    return ""


def _in_the_way(turn: Turn, running: Sequence[Turn], before: Sequence[Turn], room: Room) -> bool:
    """Whether a job would take what those before it in the line need."""
    if not before:
        return False
    if len(running) + len(before) >= room.jobs or (turn.gpu and any(other.gpu for other in before)):
        return True
    together = [*running, *before]
    return any(
        asked and asked + _held(field, together) > all_ + _FULL for field, asked, all_, _ in _amounts(turn, room)
    )


def _amounts(turn: Turn, room: Room) -> tuple[tuple[str, float, float, Callable[[float], str]], ...]:
    """By the names of a declaration: what a job asks for, what there is, and how to say either."""
    return (
        ("cpu", turn.cores, room.cores, _count),
        ("memory", turn.memory, room.memory, shown),
        ("gpu", turn.gpu, float(len(room.gpus)), _count),
    )


def _held(field: str, turns: Iterable[Turn]) -> float:
    return sum({"cpu": turn.cores, "memory": turn.memory, "gpu": turn.gpu}[field] for turn in turns)


def _count(amount: float) -> str:
    return f"{amount:g}"
