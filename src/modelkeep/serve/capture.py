"""What was predicted, kept for monitoring: bounded, off the request path, never in its way.

A batch is offered as references to arrays that exist already; nothing is copied and nothing waits. A channel that
is full counts what it drops. ``modelkeep.serve.spool`` takes the records from another thread and writes them.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from modelkeep.formats.batch import Batch as Blocks
from modelkeep.formats.batch import Layout
from modelkeep.formats.signature import Signature
from modelkeep.serve.columns import Array

RING_ROWS = 65_536
BATCH_ROWS = 5_000


@dataclass(frozen=True, slots=True)
class Record:
    """One batch as it was answered. Arrays are shared with the answer: read only.

    Attributes:
        time: Seconds since 1970 UTC.
        ids: Request ids.
        counts: Rows of each request.
        keys: Request keys, None where there was none; or None when no request had one.
        latency: Milliseconds of each request, float32.
        numbers: (kept numeric inputs, rows) float64, as in ``formats.batch``; without the masked ones.
        strings: (kept string inputs, rows) objects, likewise.
        outputs: Arrays by output name, first axis rows.
        rows: Sum of ``counts``.
    """

    time: float
    ids: list[str]
    counts: list[int]
    keys: list[str | None] | None
    latency: Array
    numbers: Array
    strings: Array
    outputs: Mapping[str, Array]
    rows: int


class Channel:
    """The captured predictions of one version in one role at one endpoint.

    One thread offers, one other takes. Whoever offers counts what it begins in ``begun`` and, once that is offered
    or refused, in ``ended``: so a channel that nothing leads to any more is not forgotten too soon.

    Args:
        limit: Most rows held; more are dropped and counted.
        full: Set once there is enough for a file, to wake the spool.
    """

    def __init__(
        self,
        endpoint: str,
        model: str,
        version: int,
        mode: str,
        signature: Signature,
        *,
        sample: float = 1.0,
        mask: Iterable[str] = (),
        limit: int = RING_ROWS,
        full: threading.Event | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.model = model
        self.version = version
        self.mode = mode
        self.sample = sample
        # images and whole requests are not watched value by value, and would fill the memory
        hidden = frozenset(mask) | {field.name for field in signature.inputs if field.shape or signature.verbatim}
        layout = Layout(signature)
        self.numbers = [layout.fields[name] for name in layout.numbers if name not in hidden]
        self.strings = [layout.fields[name] for name in layout.strings if name not in hidden]
        self.order = [field.name for field in signature.inputs if field.name not in hidden]
        self._masked = len(self.order) < len(signature.inputs)
        self._number_places = [layout.number_at[field.name] for field in self.numbers]
        self._string_places = [layout.string_at[field.name] for field in self.strings]
        self._limit = limit
        self._full = full or threading.Event()
        self._records: deque[Record] = deque()
        self._random = np.random.default_rng()
        # Each counter has one writer, so none needs a lock: the offering thread or the spool.
        self._offered = self._taken = 0
        self.errors = self.dropped = self.lost = 0
        self.begun = self.ended = 0
        self.reported = (0, 0)

    @property
    def idle(self) -> bool:
        """Whether nothing that has begun can still offer rows."""
        return self.begun == self.ended

    @property
    def held(self) -> int:
        """Rows waiting to be written."""
        return self._offered - self._taken

    def offer(
        self,
        inputs: Blocks,
        outputs: Mapping[str, Array],
        *,
        time: float,
        ids: list[str],
        counts: list[int],
        keys: list[str | None] | None,
        latency: Array,
    ) -> None:
        """Keep a batch if there is room; never waits, never fails."""
        rows = inputs.rows
        if self.sample <= 0.0:
            return
        if self._offered - self._taken + rows > self._limit:
            self.dropped += rows
            return
        numbers, strings = inputs.numbers, inputs.strings
        if self._masked:
            numbers, strings = numbers[self._number_places], strings[self._string_places]
        record = Record(time, ids, counts, keys, latency, numbers, strings, outputs, rows)
        if self.sample < 1.0:
            chosen = self._sampled(record)
            if chosen is None:
                return
            record = chosen
        self._records.append(record)
        self._offered += record.rows
        if self._offered - self._taken >= BATCH_ROWS:
            self._full.set()

    def _sampled(self, record: Record) -> Record | None:
        """The share of the requests that is kept."""
        chosen = self._random.random(len(record.ids)) < self.sample
        if not chosen.any():
            return None
        if chosen.all():
            return record
        which = np.flatnonzero(chosen).tolist()
        rows = np.repeat(chosen, record.counts)
        return Record(
            record.time,
            [record.ids[i] for i in which],
            [record.counts[i] for i in which],
            None if record.keys is None else [record.keys[i] for i in which],
            record.latency[chosen],
            record.numbers[:, rows],
            record.strings[:, rows],
            {name: column[rows] for name, column in record.outputs.items()},
            int(rows.sum()),
        )

    def take(self) -> list[Record]:
        """Everything held, for the spool; frees the room at once."""
        found: list[Record] = []
        rows = 0
        while self._records:
            record = self._records.popleft()
            found.append(record)
            rows += record.rows
        self._taken += rows
        return found
