"""Answers kept for rows that come again.

The key is BLAKE3 of a request's rows as they go into the model, and of its params, so it does not matter by which
door, in which format or in which order of fields they came. A cache belongs to one version in one role: a swap
begins with none.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from threading import Lock
from typing import Any

import msgspec
import numpy as np
from blake3 import blake3

from modelkeep.formats.batch import Batch as Blocks
from modelkeep.formats.outputs import form_of, formed
from modelkeep.serve.columns import Array

Answer = Mapping[str, Array]
_encode = msgspec.msgpack.Encoder().encode
_OVERHEAD = 300


class Cache:
    """Least recently used first to go, bounded by rows and by bytes. Safe to use from several threads.

    Args:
        rows: Most rows held.
        size: Most bytes held: digests, arrays and texts.
    """

    def __init__(self, rows: int, size: int) -> None:
        self._limit = (rows, size)
        self._kept: OrderedDict[bytes, tuple[Answer, int, int]] = OrderedDict()
        self._guard = Lock()
        self.rows = 0
        self.size = 0

    def predict(
        self, inputs: Blocks, counts: Sequence[int], model: Callable[[Blocks], Mapping[str, Any]]
    ) -> tuple[Answer, int, int]:
        """Answer requests of ``counts`` rows each from what is kept, and what is not with the model.

        Returns:
            The outputs of all rows in order, the requests that were kept, and the rows the model was given.
        """
        ends = np.cumsum(counts).tolist()
        spans = list(zip([0, *ends[:-1]], ends, strict=True))
        keys = _keys(inputs, spans)
        with self._guard:
            found = [self._get(key) for key in keys]
        missing = [place for place, one in enumerate(found) if one is None]
        if not missing:
            return _joined(found), len(found), 0
        if len(missing) == len(found):
            outputs = model(inputs)
            self._put([(key, _cut(outputs, span)) for key, span in zip(keys, spans, strict=True)])
            return outputs, 0, inputs.rows
        rows = np.concatenate([np.arange(*spans[place]) for place in missing])
        outputs = model(inputs.take(rows))
        start, fresh = 0, []
        for place in missing:
            one = _cut(outputs, (start, start + counts[place]))
            start += counts[place]
            found[place] = one
            fresh.append((keys[place], one))
        self._put(fresh)
        return _joined(found), len(found) - len(missing), len(rows)

    def _get(self, key: bytes) -> Answer | None:
        kept = self._kept.get(key)
        if kept is None:
            return None
        self._kept.move_to_end(key)
        return kept[0]

    def _put(self, fresh: Sequence[tuple[bytes, Answer]]) -> None:
        most_rows, most_bytes = self._limit
        with self._guard:
            for key, outputs in fresh:
                rows = len(next(iter(outputs.values())))
                size = _OVERHEAD + sum(map(_size, outputs.values()))
                if key in self._kept or rows > most_rows or size > most_bytes:
                    continue
                self._kept[key] = (outputs, rows, size)
                self.rows += rows
                self.size += size
            while self.rows > most_rows or self.size > most_bytes:
                _, (_, rows, size) = self._kept.popitem(last=False)
                self.rows -= rows
                self.size -= size


def _keys(inputs: Blocks, spans: Sequence[tuple[int, int]]) -> list[bytes]:
    """A digest of each request's rows and params; equal exactly when both are, bit by bit."""
    hashed = partial(blake3, key=blake3(inputs.params).digest()) if inputs.params else blake3
    numbers = inputs.numbers.T
    width = numbers.shape[1] * numbers.itemsize
    block = memoryview(numbers.tobytes())
    if not len(inputs.strings):
        return [hashed(block[start * width : end * width]).digest() for start, end in spans]
    texts = inputs.strings.T.tolist()
    return [
        hashed(block[start * width : end * width]).update(_encode(texts[start:end])).digest()
        for start, end in spans
    ]


def _cut(outputs: Answer, span: tuple[int, int]) -> Answer:
    """A request's own rows, copied: a view would keep the whole batch."""
    return formed({name: column[span[0] : span[1]].copy() for name, column in outputs.items()}, form_of(outputs))


def _joined(parts: Sequence[Answer | None]) -> Answer:
    whole = [part for part in parts if part is not None]
    if len(whole) == 1:
        return whole[0]
    return formed({name: np.concatenate([part[name] for part in whole]) for name in whole[0]}, form_of(whole[0]))


def _size(column: Array) -> int:
    held = sum(map(sys.getsizeof, column.ravel().tolist())) if column.dtype.kind == "O" else 0
    return column.nbytes + held
