"""MurmurHash3 (x86, 32 bit, seed 0; Appleby 2011) of strings as Arrow keeps them, compiled.

The hash of ``formats.steps.HashBuckets``, without making a Python object of each string.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from modelkeep.core.compiled import compiled, over_strings


def buckets(column: pa.ChunkedArray, count: int, out: npt.NDArray[np.int32], first: int = 0) -> None:
    """``first`` plus the bucket of each string; a missing one is the empty string.

    Args:
        column: Of ``string`` type, (n,).
        count: How many buckets, at least 1.
        out: (n,), filled.
    """
    over_strings(pc.fill_null(column, ""), partial(_hashed, count, first), out)


@compiled
def _mixed(block: Any) -> Any:
    block = np.uint32(block * np.uint32(0xCC9E2D51))
    block = np.uint32((block << np.uint32(15)) | (block >> np.uint32(17)))
    return np.uint32(block * np.uint32(0x1B873593))


@compiled
def _hashed(count: int, first: int, edges: Any, raw: Any, out: Any) -> None:
    for row in range(len(out)):
        begin, end = edges[row], edges[row + 1]
        size = end - begin
        whole = begin + size // 4 * 4
        h = np.uint32(0)
        for at in range(begin, whole, 4):
            block = np.uint32(raw[at]) | np.uint32(raw[at + 1]) << np.uint32(8)
            block |= np.uint32(raw[at + 2]) << np.uint32(16) | np.uint32(raw[at + 3]) << np.uint32(24)
            h ^= _mixed(block)
            h = np.uint32((h << np.uint32(13)) | (h >> np.uint32(19)))
            h = np.uint32(h * np.uint32(5) + np.uint32(0xE6546B64))
        tail = np.uint32(0)
        for at in range(end - 1, whole - 1, -1):
            tail = np.uint32(tail << np.uint32(8)) | np.uint32(raw[at])
        h ^= _mixed(tail)
        h ^= np.uint32(size)
        h ^= h >> np.uint32(16)
        h = np.uint32(h * np.uint32(0x85EBCA6B))
        h ^= h >> np.uint32(13)
        h = np.uint32(h * np.uint32(0xC2B2AE35))
        h ^= h >> np.uint32(16)
        out[row] = first + np.int64(h) % count
