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


def over_strings(column: Any, work: Callable[[Any, Any, Any], None], out: Any) -> None:
    """Have compiled code fill ``out`` from the strings as Arrow keeps them, chunk by chunk.

    Args:
        column: A ChunkedArray of ``string`` type without nulls, (n,).
        work: Given the places between which each string lies (rows + 1,), their bytes, and the part of ``out``.
        out: (n,), an array.
    """
    import numpy as np

    at = 0
    for chunk in column.chunks:
        if not len(chunk):
            continue
        _, offsets, text = chunk.buffers()
        edges = np.frombuffer(offsets, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
        raw = np.empty(0, np.uint8) if text is None else np.frombuffer(text, np.uint8)
        work(edges, raw, out[at : at + len(chunk)])
        at += len(chunk)


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
