"""Merging at the workers: what parts gave stays where it is, and is merged there, eight at a time.

So what one machine receives in a round grows with the tree's width and not with the number of parts, as in a
reduction tree of MPI (Thakur et al., "Optimization of collective communication operations in MPICH", 2005). Only
the last result comes home. Small results come home at once: a task costs more than they do.

The tree is that of ``core.here.tree``: groups are of a power of two neighbours, in order, so results are the same
to the last bit wherever they are merged.
"""

from __future__ import annotations

import contextlib
import itertools
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from modelkeep.core.here import Here
from modelkeep.engines import flow, tasks

T = TypeVar("T")
R = TypeVar("R")

WIDTH = 8
"""Results merged by one task, a power of two."""
SMALL = 1 << 16
"""Bytes of a result up to which it comes home: eight such take about as long to send as a task to start."""


class Merges(flow.Workers, Protocol):
    """What an engine does for this beside the flow."""

    def keep(self, packet: tasks.Packet) -> flow.Running:
        """Hand a part to any worker, which keeps its result unless that is small.

        The answer's ``kept`` is then a handle with which other packets may refer to the result.
        """
        ...


@dataclass(frozen=True, slots=True)
class Merge:
    """What a task does with a group of neighbours: each is a handle to a result, or the result itself."""

    merge: Callable[[Any, Any], Any]

    def __call__(self, group: list[tuple[tasks.Load | None, Any]]) -> Any:
        """The group merged, neighbours first; one after the other is loaded."""
        return Here().reduce(self.merge, (value if load is None else load() for load, value in group))


def map_reduce(engine: Merges, fn: Callable[[T], R], parts: Sequence[T], merge: Callable[[R, R], R]) -> R:
    """``fn`` of every part, merged. Raises as ``flow.stream`` does, and ``Invalid`` when there are no parts."""
    if len(parts) <= WIDTH:
        return Here().reduce(merge, flow.stream(engine, fn, parts))
    with contextlib.ExitStack() as under_way:

        def kept(work: Callable[[Any], Any], given: Iterable[Any]) -> Iterator[Any]:
            made = flow.stream(engine, work, given, submit=engine.keep, opens=_pair)
            return under_way.enter_context(contextlib.closing(made))

        level = kept(fn, parts)
        first = next(level)
        level = itertools.chain([first], level)
        if first[0] is None:
            found: R = Here().reduce(merge, (_home(engine, merge, [pair]) for pair in level))
            return found
        count = len(parts)
        while count > WIDTH:
            level, count = kept(Merge(merge), _groups(level)), -(-count // WIDTH)
        last: R = _home(engine, merge, list(level))
        return last


def _home(engine: Merges, merge: Callable[[Any, Any], Any], group: list[tuple[Any, Any]]) -> Any:
    """A group merged where its results are, if any of them is not here."""
    if any(load is not None for load, _ in group):
        return next(flow.stream(engine, Merge(merge), [group]))
    return Merge(merge)(group)


def _groups(pairs: Iterable[tuple[Any, Any]]) -> Iterator[list[tuple[Any, Any]]]:
    source = iter(pairs)
    while group := list(itertools.islice(source, WIDTH)):
        yield group


def _pair(answer: tasks.Answer) -> tuple[Any, Any]:
    if answer.worked and answer.kept is not None:
        return answer.kept, None
    return None, tasks.opened(answer)


def told(answer: tasks.Answer) -> tasks.Answer:
    """What of an answer comes home: all of it, or that the worker keeps it."""
    large = answer.worked and len(answer.content) > SMALL
    return answer._replace(content=b"") if large else answer


def load(content: bytes) -> Any:
    """A kept result, at a worker that merges it. Raises what the part raised when it was begun anew."""
    found = pickle.loads(content)  # noqa: S301 - from our own worker
    if isinstance(found, tasks.Failure):
        raise found.rebuilt()
    return found
