"""Who of a batch that failed is answered all the same.

Rows that fail a check are named by it, so the other requests run without them. When the model's code raised, the
batch is halved until the guilty are alone. When the process was lost, the one retry that is promised runs request
by request: so what killed it kills only itself, and no request runs a third time. What may not be repeated is not.

All of it is bounded: one bad row must not keep a model busy for as long as others like to send it. It runs in one
thread, one batch after the other, so that it takes no more from other models than the batch itself did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from modelkeep.core.errors import Invalid, Lost, ModelkeepError, Problem, Unavailable
from modelkeep.serve.columns import Rows, by_row

RERUNS = 128
"""Most times the model runs again for a batch that failed."""
LOSSES = 3
"""Processes that may be lost to the retry of one batch: each takes time to be started again."""


class Held(Protocol):
    """What is needed of a call."""

    rows: Rows


C = TypeVar("C", bound=Held)
B = TypeVar("B")


def sifted(
    calls: list[C], done: B | ModelkeepError, work: Callable[[list[C]], B | ModelkeepError]
) -> tuple[list[tuple[list[C], Invalid]], list[C], B | ModelkeepError]:
    """Whose rows failed the check with what, who is left, and what became of those, who run for the first time."""
    guilty: list[tuple[list[C], Invalid]] = []
    while isinstance(done, Invalid) and calls:
        faults = by_row(done.problems)
        innocent: list[C] = []
        start = 0
        for call in calls:
            end = start + call.rows.count
            mine = [(row - start, p) for row, found in faults.items() if start <= row < end for p in found]
            if mine:
                told = Invalid([Problem(f"inputs.{p.path}[{row}]", p.message) for row, p in mine])
                guilty.append(([call], told))
            else:
                innocent.append(call)
            start = end
        if len(innocent) == len(calls):  # it names no row
            break
        calls = innocent
        done = work(calls) if calls else done
    return guilty, calls, done


def settled(
    calls: list[C], done: B | ModelkeepError, work: Callable[[list[C]], B | ModelkeepError], *, repeatable: bool
) -> Iterator[tuple[list[C], B | ModelkeepError]]:
    """What becomes of each call of a batch, as soon as that is known.

    Args:
        done: What became of the batch as a whole.
        work: Runs the model on some of the calls.
        repeatable: Whether the model may run on the same call more than once.
    """
    guilty, calls, done = sifted(calls, done, work)
    yield from guilty
    if not calls:
        return
    if isinstance(done, Lost):
        parts = _retried(calls, done, work) if repeatable and not done.late else iter([(calls, done)])
    elif isinstance(done, ModelkeepError):
        parts = _halved(calls, done, work, repeatable)
    else:
        parts = iter([(calls, done)])
    for part, found in parts:
        yield part, _shared(found) if len(part) > 1 and isinstance(found, ModelkeepError) else found


def _retried(
    calls: list[C], lost: Lost, work: Callable[[list[C]], B | ModelkeepError]
) -> Iterator[tuple[list[C], B | ModelkeepError]]:
    """Each call once more, by itself; of very many some together."""
    losses = 0
    over: ModelkeepError | None = None
    for part in _cut(calls, -(-len(calls) // RERUNS)):
        found = work(part) if over is None else over
        if over is None and isinstance(found, Lost):
            found = found.twice()
            losses += 1
            over = lost if losses == LOSSES else None
        elif isinstance(found, Unavailable):  # the others would wait as long, for nothing
            over = found
        yield part, found


def _halved(
    calls: list[C], failed: ModelkeepError, work: Callable[[list[C]], B | ModelkeepError], repeatable: bool
) -> Iterator[tuple[list[C], B | ModelkeepError]]:
    """Halves of what failed, until those that fail are alone."""
    left = RERUNS
    waiting: list[list[C]] = []
    part = calls
    found: B | ModelkeepError = failed
    while True:
        # what cannot be put before the model, as text that is not Unicode, did not run
        again = isinstance(found, Invalid) or (repeatable and isinstance(found, ModelkeepError))
        if isinstance(found, Unavailable):
            left, failed = 0, found
        elif again and not isinstance(found, Lost) and len(part) > 1 and left:
            waiting += reversed(list(_cut(part, -(-len(part) // 2))))
            part = []
        if part:
            yield part, found
        if not waiting:
            return
        part = waiting.pop()
        found = work(part) if left else failed
        left = max(left - 1, 0)


def _cut(calls: Sequence[C], size: int) -> Iterator[list[C]]:
    return (list(calls[start : start + size]) for start in range(0, len(calls), size))


def _shared(error: ModelkeepError) -> ModelkeepError:
    """An error as several requests may be told it: what the model's code said may hold the rows of one of them."""
    if isinstance(error, Lost | Unavailable):
        return error
    return ModelkeepError(
        "the model failed on requests that were predicted together, and which of them it cannot take is not known",
        hint="try again; a request that fails alone is told why",
    )
