"""Hashes that occur more than once: sorted in memory or, where there are too many, in parts on the disk."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from modelkeep.core import scratch
from modelkeep.core.errors import Unavailable

Ints = npt.NDArray[np.int64]
UInts = npt.NDArray[np.uint64]

_SIEVE = 1 << 24

_PARTS = 256
"""Of a disk's hashes, each of a range of its own, so that one is sorted at a time."""


def among(pieces: Iterator[UInts], room: int) -> dict[int, Ints]:
    """By piece the positions of hashes that occur more than once.

    Args:
        pieces: Hashes of each piece's rows.
        room: Bytes of hashes that may be held; sorting takes as much again. More go to the folder for temporary
            files, 16 bytes a row.

    Raises:
        Unavailable: The disk is full.
    """
    held: list[UInts] = []
    size = 0
    for piece in pieces:
        held.append(piece)
        size += piece.nbytes
        if size > room:
            with scratch.temporary("hashes") as folder:
                return _on_disk(folder, itertools.chain(_given_up(held), pieces))
    return _positions(_again(np.concatenate(held)), held)


def _on_disk(folder: Path, pieces: Iterator[UInts]) -> dict[int, Ints]:
    bounds = np.arange(_PARTS, dtype=np.uint64) << np.uint64(56)
    sizes: list[int] = []
    with ExitStack() as opened:
        whole = opened.enter_context((folder / "whole").open("wb"))
        parts = [opened.enter_context((folder / str(number)).open("wb")) for number in range(_PARTS)]
        for piece in pieces:
            sizes.append(len(piece))
            _write(piece, whole)
            ordered = np.sort(piece)
            for part, hashes in zip(parts, np.split(ordered, np.searchsorted(ordered, bounds[1:])), strict=True):
                _write(hashes, part)
        for part in (whole, *parts):
            _write(np.empty(0, np.uint64), part, flush=True)
    found = []
    for number in range(_PARTS):
        path = folder / str(number)
        found.append(_again(np.fromfile(path, np.uint64)))
        path.unlink()
    with (folder / "whole").open("rb") as file:
        return _positions(np.concatenate(found), (np.fromfile(file, np.uint64, size) for size in sizes))


def _given_up(held: list[UInts]) -> Iterator[UInts]:
    """The pieces, each let go of when the next is wanted."""
    held.reverse()
    while held:
        yield held.pop()


def _write(hashes: UInts, file: IO[bytes], *, flush: bool = False) -> None:
    try:
        file.write(hashes.tobytes())
        if flush:
            file.flush()
    except OSError as error:
        raise Unavailable(
            f"the hashes by which equal rows are found cannot be written to the disk: {error.strerror}",
            hint="free space in the folder for temporary files (TMPDIR), or raise MODELKEEP_MEMORY",
        ) from error


def _again(hashes: UInts) -> UInts:
    """Those that occur more than once, in order."""
    hashes.sort()
    again: UInts = hashes[1:][hashes[1:] == hashes[:-1]]
    return again


def _positions(again: UInts, pieces: Iterable[UInts]) -> dict[int, Ints]:
    if not len(again):
        return {}
    # A bit of each hash that occurs again passes by nearly all others; the few left are looked up.
    low = np.uint64(_SIEVE - 1)
    sieve: npt.NDArray[Any] = np.zeros(_SIEVE, dtype=bool)
    sieve[again & low] = True
    found: dict[int, Ints] = {}
    for number, piece in enumerate(pieces):
        passed = np.flatnonzero(sieve[piece & low])
        wanted = piece[passed]
        places = np.minimum(np.searchsorted(again, wanted), len(again) - 1)
        positions = passed[again[places] == wanted]
        if len(positions):
            found[number] = positions
    return found
