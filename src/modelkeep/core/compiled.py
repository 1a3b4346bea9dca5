"""Loops compiled by Numba, which takes a while to import and to load what it compiled before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F, **options: Any) -> F:
    """The function compiled when first called, without the GIL.

    Compiled code is kept beside its file or, where that cannot be written, in the user's cache folder; where
    nothing can be written it is compiled anew by each process.
    """
    from numba import njit
    from numba.core.errors import NumbaError

    try:
        return njit(cache=True, nogil=True, **options)(function)  # type: ignore[no-any-return]
    except (RuntimeError, OSError, NumbaError):  # no folder can be written
        return njit(nogil=True, **options)(function)  # type: ignore[no-any-return]


class Pays:
    """Whether a process has had so much work of a kind that loading compiled code for it pays.

    Args:
        rows: From how many on.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self._seen = 0

    def with_more(self, rows: int) -> bool:
        """Count these rows too, and tell."""
        self._seen += rows
        return self._seen >= self.rows
