"""Whose turn it is: which of the jobs that wait is begun next. Pure, so that every situation can be tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

AGE = 3600.0
"""Seconds of waiting that count as one step of priority, so that nothing waits for ever."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A job as the queue sees it.

    Attributes:
        id: Its number; lower ones were asked for earlier.
        model: Whose it is.
        priority: Higher goes first; 0 is usual.
        cores: What it keeps busy.
        since: Since when it waits, seconds since 1970.
    """

    id: int
    model: str
    priority: int = 0
    cores: float = 1.0
    since: float = 0.0


@dataclass(frozen=True, slots=True)
class Room:
    """What there is.

    Attributes:
        jobs: How many may run at once.
        cores: What they may keep busy together. One that asks for more than all of them runs alone.
    """

    jobs: int = 1
    cores: float = float("inf")


def choose(
    waiting: Sequence[Turn], running: Sequence[Turn], used: Mapping[str, float], room: Room, now: float
) -> Turn | None:
    """The job to begin now; None when none waits, or the next one has no room yet.

    The highest priority goes first, where every ``AGE`` seconds of waiting count as one step. Among equals the
    model goes first that has least running, then the one that has used least (fair share), then the oldest job.
    Nobody overtakes the next one because it is smaller: else a large job would never find room.

    Args:
        used: Seconds of work of each model lately.
        now: Seconds since 1970.
    """
    if not waiting or len(running) >= room.jobs:
        return None
    share: dict[str, float] = {}
    for turn in running:
        share[turn.model] = share.get(turn.model, 0.0) + turn.cores

    def rank(turn: Turn) -> tuple[float, float, float, int]:
        aged = turn.priority + max(0.0, now - turn.since) // AGE
        return -aged, share.get(turn.model, 0.0), used.get(turn.model, 0.0), turn.id

    first = min(waiting, key=rank)
    if running and sum(turn.cores for turn in running) + first.cores > room.cores:
        return None
    return first
