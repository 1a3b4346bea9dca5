"""MD5 (RFC 1321) of short strings as Arrow keeps them: compiled, many rows in step.

A message of up to 55 bytes is one block. Each step is done for ``LANES`` rows before the next, as processors do it
for eight or sixteen numbers at once; so a row takes a quarter of the time it takes one by one.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from modelkeep.core.compiled import compiled, over_strings

LANES = 128
LONGEST = 55
"""Bytes of a message, the salt with it."""

_SINES = np.array([int(abs(math.sin(i + 1)) * 2**32) for i in range(64)], np.uint32)
_TURNS = np.array([[7, 12, 17, 22], [5, 9, 14, 20], [4, 11, 16, 23], [6, 10, 15, 21]], np.uint32)
_START = np.array([0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476], np.uint32)


def last_eight(column: pa.ChunkedArray, salt: str) -> npt.NDArray[np.uint64] | None:
    """The last 8 bytes of the MD5 of the salt and each text, as big-endian numbers; None when a text is too long.

    Args:
        column: Of ``string`` type without nulls, (n,).
    """
    head = np.frombuffer(salt.encode(), np.uint8)
    if len(head) + (pc.max(pc.binary_length(column)).as_py() or 0) > LONGEST:
        return None
    out = np.empty(len(column), np.uint64)
    over_strings(column, partial(_hashed, head), out)
    return out


@compiled
def _hashed(head: Any, edges: Any, raw: Any, out: Any) -> None:
    lead, rows = len(head), len(out)
    words, state = np.zeros((16, LANES), np.uint32), np.empty((4, LANES), np.uint32)
    block = np.zeros(64, np.uint8)
    block[:lead] = head
    block_words = block.view(np.uint32)
    for first in range(0, rows, LANES):
        lanes = min(LANES, rows - first)
        for lane in range(lanes):
            begin = edges[first + lane]
            size = edges[first + lane + 1] - begin
            for at in range(size):
                block[lead + at] = raw[begin + at]
            block[lead + size] = 0x80
            for at in range(lead + size + 1, 56):
                block[at] = 0
            for word in range(14):
                words[word, lane] = block_words[word]
            words[14, lane] = np.uint32((lead + size) << 3)
        for part in range(4):
            state[part] = _START[part]
        _mixed(state[0], state[1], state[2], state[3], words)
        for lane in range(lanes):  # what was there before is added only to what is asked for
            high = _turned(np.uint32(state[2, lane] + _START[2]))
            low = _turned(np.uint32(state[3, lane] + _START[3]))
            out[first + lane] = np.uint64(high) << np.uint64(32) | np.uint64(low)


@compiled
def _mixed(a: Any, b: Any, c: Any, d: Any, words: Any) -> None:
    for first in range(0, 64, 4):
        _step(a, b, c, d, words, first)
        _step(d, a, b, c, words, first + 1)
        _step(c, d, a, b, words, first + 2)
        _step(b, c, d, a, words, first + 3)


@compiled
def _step(a: Any, b: Any, c: Any, d: Any, words: Any, i: int) -> None:
    by, sine = _TURNS[i >> 4, i & 3], _SINES[i]
    back = np.uint32(32) - by
    if i < 16:
        word = words[i]
        for lane in range(LANES):
            t = np.uint32(a[lane] + (d[lane] ^ (b[lane] & (c[lane] ^ d[lane]))) + sine + word[lane])
            a[lane] = np.uint32(b[lane] + ((t << by) | (t >> back)))
    elif i < 32:
        word = words[(5 * i + 1) & 15]
        for lane in range(LANES):
            t = np.uint32(a[lane] + (c[lane] ^ (d[lane] & (b[lane] ^ c[lane]))) + sine + word[lane])
            a[lane] = np.uint32(b[lane] + ((t << by) | (t >> back)))
    elif i < 48:
        word = words[(3 * i + 5) & 15]
        for lane in range(LANES):
            t = np.uint32(a[lane] + (b[lane] ^ c[lane] ^ d[lane]) + sine + word[lane])
            a[lane] = np.uint32(b[lane] + ((t << by) | (t >> back)))
    else:
        word = words[(7 * i) & 15]
        for lane in range(LANES):
            t = np.uint32(a[lane] + (c[lane] ^ (b[lane] | ~d[lane])) + sine + word[lane])
            a[lane] = np.uint32(b[lane] + ((t << by) | (t >> back)))


@compiled
def _turned(word: Any) -> Any:
    """The bytes in the other order."""
    swapped = (word << np.uint32(16)) | (word >> np.uint32(16))
    high = (swapped & np.uint32(0x00FF00FF)) << np.uint32(8)
    return np.uint32(high | ((swapped >> np.uint32(8)) & np.uint32(0x00FF00FF)))
