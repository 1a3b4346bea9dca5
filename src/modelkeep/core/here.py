"""The engine for work that needs none, and the tree that every engine merges by."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from functools import partial
from typing import Any, TypeVar

from modelkeep.core.errors import Invalid
from modelkeep.core.ports import Progress, Silent

T = TypeVar("T")
R = TypeVar("R")

BLOCK = 64
"""Results that are merged in parallel at once; a power of two, so that the tree does not depend on it."""


class Here:
    """The engine that is no engine: everything runs in this process, one part after the other."""

    address = "local"
    host = "127.0.0.1"

    def map(
        self,
        fn: Callable[[T], R],
        parts: Iterable[T],
        *,
        progress: Progress | None = None,
        name: str = "parts",
    ) -> Iterator[R]:
        """``fn`` of every part, as it is asked for."""
        told, total = progress or Silent(), len(parts) if isinstance(parts, Sized) else None
        for done, part in enumerate(parts, 1):
            result = fn(part)
            told.step(name, done, total)
            yield result

    def map_reduce(self, fn: Callable[[T], R], parts: Sequence[T], merge: Callable[[R, R], R]) -> R:
        """``fn`` of every part, merged as a tree. At least one part."""
        return self.reduce(merge, self.map(fn, parts))

    def reduce(self, fn: Callable[[R, R], R], results: Iterable[R]) -> R:
        """What is here already, merged as a tree. At least one result."""
        return tree(self.map, fn, results, block=1)

    def put(self, obj: T) -> Callable[[], T]:
        """The object itself."""
        return lambda: obj

    def slots(self) -> int:
        """One."""
        return 1

    def close(self) -> None:
        """Nothing is held."""


def tree(
    map_: Callable[[Callable[[Any], Any], list[Any]], Iterable[Any]],
    fn: Callable[[R, R], R],
    results: Iterable[R],
    *,
    block: int = BLOCK,
) -> R:
    """Merge results pairwise as a tree, the same tree on every engine of any size.

    Neighbours are merged, then their neighbours, and so on. At most ``block`` results are held at once, and one
    more per doubling.

    Args:
        map_: Of the engine.
        fn: Associative and commutative.
        results: At least one.
        block: Results merged in parallel at once, a power of two; 1 where nothing is parallel.

    Raises:
        Invalid: There are none.
    """
    source = iter(results)
    peaks: list[tuple[int, R]] = []  # merged runs of 2^height blocks, from left to right
    while taken := list(itertools.islice(source, block)):
        height, state = 0, _level(map_, fn, taken)
        while len(taken) == block and peaks and peaks[-1][0] == height:
            height, state = height + 1, fn(peaks.pop()[1], state)
        peaks.append((height, state))
    if not peaks:
        raise Invalid("there is nothing to reduce")
    merged = peaks.pop()[1]
    while peaks:
        merged = fn(peaks.pop()[1], merged)
    return merged


def _level(
    map_: Callable[[Callable[[Any], Any], list[Any]], Iterable[Any]], fn: Callable[[R, R], R], level: list[R]
) -> R:
    while len(level) > 1:
        pairs = list(zip(level[::2], level[1::2], strict=False))
        odd = level[-1:] if len(level) % 2 else []
        # A single pair gains nothing from a trip to another process.
        merged = map_(partial(_merge, fn), pairs) if len(pairs) > 1 else [_merge(fn, pairs[0])]
        level = [*merged, *odd]
    return level[0]


def _merge(fn: Callable[[R, R], R], pair: tuple[R, R]) -> R:
    return fn(*pair)
