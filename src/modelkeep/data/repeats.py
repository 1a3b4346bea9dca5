"""Hashes that occur more than once: sorted in memory or, where there are too many, in parts on the disk."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

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
    bounds = np.arange(1, _PARTS, dtype=np.uint64) << np.uint64(56)
    whole, parts = folder / "whole", [folder / str(number) for number in range(_PARTS)]
    sizes: list[int] = []
    for piece in pieces:
        sizes.append(len(piece))
        _append(piece, whole)
        ordered = np.sort(piece)
        for hashes, part in zip(np.split(ordered, np.searchsorted(ordered, bounds)), parts, strict=True):
            _append(hashes, part)
    found = [_again(np.fromfile(part, np.uint64)) for part in parts if part.exists()]
    with whole.open("rb") as file:
        return _positions(np.concatenate(found), (np.fromfile(file, np.uint64, size) for size in sizes))


def _given_up(held: list[UInts]) -> Iterator[UInts]:
    """The pieces, each let go of when the next is wanted."""
    held.reverse()
    while held:
        yield held.pop()


def _append(hashes: UInts, path: Path) -> None:
    if not len(hashes):
        return
    try:
        with path.open("ab") as file:
            file.write(hashes.tobytes())
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
