"""The engine for work that needs none."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Here:
    """The engine that is no engine: everything runs in this process, one part after the other."""

    def map(self, fn: Callable[[T], R], parts: Iterable[T], **_: Any) -> Iterator[R]:
        """``fn`` of every part, as it is asked for."""
        return map(fn, parts)

    def reduce(self, fn: Callable[[R, R], R], results: Iterable[R]) -> R:
        """From left to right. At least one result."""
        return functools.reduce(fn, results)

    def put(self, obj: T) -> Callable[[], T]:
        """The object itself."""
        return lambda: obj
