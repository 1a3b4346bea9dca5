"""Learning with weights that are shared through processes, each keeping a range of the features.

For weights too many to send whole: a worker takes a batch of rows, pulls the weights of the features in it, works
the gradient out and pushes it back; see ``shard`` for what the shards do with it and how far workers may drift
apart, and ``wire`` for how they talk. A worker that dies is forgotten by the shards and its part begun again by
the engine, and a slow one's part may be begun twice; what was pushed stays, and of what is pushed again nothing
counts. A shard that dies ends the fit; it goes on from the checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np

from modelkeep.core.errors import Invalid, Unavailable
from modelkeep.core.ports import Progress
from modelkeep.train.linear import wire
from modelkeep.train.linear.blocks import Block, Part, Split, ahead, kept
from modelkeep.train.linear.checkpoint import Checkpoint
from modelkeep.train.linear.losses import Array, Objective, of_margins
from modelkeep.train.linear.passes import Pass, Save
from modelkeep.train.linear.settings import Settings
from modelkeep.train.linear.table import Steps, Table
from modelkeep.train.linear.whole import Wholes
from modelkeep.train.linear.wire import Frame

START = 60.0
"""Seconds for the shards to come up."""


class ParameterServer:
    """A method of ``passes``: shards as processes here, workers on the engine."""

    def __init__(self, settings: Settings, objective: Objective, steps: Steps, wholes: Wholes) -> None:
        self._settings, self._objective, self._steps, self._wholes = settings, objective, steps, wholes
        self._host = wholes.engine.host
        self._token = secrets.token_bytes(32)
        self._shards: list[subprocess.Popen[bytes]] = []
        self._addresses: list[tuple[str, int]] = []
        self._edges: list[int] = []
        self._table = Table.fresh(0, 1)

    def begin(self, table: Table) -> None:
        """Start the shards with their share of the table."""
        table.settle(self._objective, self._steps)
        self._table = table
        rows = len(table.cells)
        count = min(self._settings.shards, rows)
        self._edges = np.linspace(0, rows, count + 1).astype(int).tolist()
        for begin, end in zip(self._edges[:-1], self._edges[1:], strict=True):
            self._shards.append(self._start(table, begin, end))
        for shard in self._shards:
            assert shard.stdout is not None
            line = shard.stdout.readline()
            if not line.strip().isdigit():
                raise Unavailable(f"a shard of the parameter server did not start to listen at {self._host}")
            self._addresses.append((self._host, int(line)))

    def _start(self, table: Table, begin: int, end: int) -> subprocess.Popen[bytes]:
        cells = np.ascontiguousarray(table.packed[begin:end])
        setting = {
            "rows": end - begin,
            "cells": cells.size,
            "clock": table.clock.tolist(),
            "objective": dataclasses.asdict(self._objective),
            "steps": dataclasses.asdict(self._steps),
            "staleness": self._settings.staleness,
            "bias": end - begin - 1 if end == len(table.cells) else -1,
            "host": self._host,
            "token": self._token.hex(),
        }
        command = [sys.executable, "-m", "modelkeep.train.linear.shard"]
        shard = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert shard.stdin is not None
        try:
            shard.stdin.write(json.dumps(setting).encode() + b"\n")
            shard.stdin.write(cells.tobytes())
            shard.stdin.flush()
        except BrokenPipeError as error:
            raise Unavailable("a shard of the parameter server did not start") from error
        return shard

    def run(self, at: Pass, progress: Progress, checkpoint: Checkpoint, save: Save) -> None:
        """One pass: every part once, as many at a time as the engine has workers."""
        del checkpoint, save  # the shards hold the state; it is read at the end of each pass
        settings, parts = self._settings, self._wholes.parts
        order = np.random.default_rng([settings.seed, at.number]).permutation(len(parts)).tolist()
        work = Worker(
            tuple(self._addresses),
            tuple(self._edges),
            self._token,
            self._objective,
            self._steps.batch,
            self._wholes.split,
            settings.shuffle,
            at.number,
        )
        seeds = [[settings.seed, at.number, place] for place in range(len(parts))]
        given = [(parts[number], seed) for number, seed in zip(order, seeds, strict=True)]
        for rows, loss in self._wholes.engine.map(work, given):
            at.add(1, rows, loss)
            progress.step(f"pass {at.number + 1}", at.parts, len(parts), f"{at.rows:,} rows")
        self._read()

    def _read(self) -> None:
        packed, clock = np.array(self._table.packed), self._table.clock
        for address, begin, end in zip(self._addresses, self._edges[:-1], self._edges[1:], strict=True):
            with wire.connect(address, self._token) as shard:
                try:
                    wire.send(shard, Frame(wire.READ))
                    wire.receive(shard)
                    size = (end - begin) * packed.shape[1]
                    body = np.frombuffer(wire.exactly(shard, 8 * (size + 2)))
                except OSError as error:
                    raise Unavailable(f"a shard of the parameter server is gone: {error}") from error
            packed[begin:end] = body[:size].reshape(end - begin, -1)
            clock = body[size:]
        self._table = Table.unpacked(packed, clock, adaptive=self._steps.adaptive)

    def table(self) -> Table:
        """The weights as the shards had them at the end of the last pass."""
        return self._table

    def __enter__(self) -> ParameterServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for shard in self._shards:
            for stream in (shard.stdin, shard.stdout):
                if stream is not None:
                    stream.close()
        for shard in self._shards:
            try:
                shard.wait(5)
            except subprocess.TimeoutExpired:
                shard.kill()
                shard.wait()


@dataclass(frozen=True)
class Worker:
    """Learns one part against the shards; may be begun again elsewhere.

    Attributes:
        turn: The pass.
    """

    addresses: tuple[tuple[str, int], ...]
    edges: tuple[int, ...]
    token: bytes
    objective: Objective
    batch: int
    split: Split
    shuffle: bool
    turn: int

    def __call__(self, given: tuple[Part, list[int]]) -> tuple[int, float]:
        """Work on one part. Returns rows and the sum of their losses before they were learnt from."""
        part, seed = given
        rng = np.random.default_rng(seed) if self.shuffle else None
        rows, total = 0, 0.0
        try:
            with closing(Shards(self, part=seed[-1])) as shards:
                for number, (x, y) in enumerate(ahead(self._batches(part, rng))):
                    total += self._step(shards, number, x, y)
                    rows += len(y)
                    if not np.isfinite(total):
                        raise Invalid(
                            "the loss became infinite",
                            path="train.params.learning_rate",
                            hint="scale the features",
                        )
                shards.leave()
        except OSError as error:
            raise Unavailable(f"the parameter server is gone: {error}") from error
        return rows, total

    def _batches(self, part: Part, rng: np.random.Generator | None) -> Iterator[Block]:
        for x, y in kept(part(), self.split):
            if rng is not None:
                order = rng.permutation(len(y))
                x, y = x[order], y[order]
            for at in range(0, len(y), self.batch):
                yield x[at : at + self.batch], y[at : at + self.batch]

    def _step(self, shards: Shards, number: int, x: Any, y: Array) -> float:
        last = self.edges[-1] - 1
        if isinstance(x, np.ndarray):
            keys, small = np.arange(last, dtype=np.uint32), x
        else:
            keys, places = np.unique(x.indices, return_inverse=True)
            keys = keys.astype(np.uint32)
            small = type(x)((x.data, places.reshape(-1), x.indptr), shape=(len(y), len(keys)))
        asked = np.append(keys, np.uint32(last))
        weights = shards.pull(asked, self.objective.outputs)
        loss, by_margin = of_margins(self.objective, np.asarray(small @ weights[:-1]) + weights[-1], y)
        gradient = np.empty_like(weights)
        gradient[:-1] = small.T @ by_margin
        gradient[-1] = by_margin.sum(axis=0) if self.objective.intercept else 0.0
        shards.push(number, asked, gradient, len(y))
        return loss


class Shards:
    """A worker's connections to all shards; each has its own keys, and its own clock of this worker."""

    def __init__(self, worker: Worker, part: int) -> None:
        self._edges = np.asarray(worker.edges)
        self._sockets = [wire.connect(address, worker.token) for address in worker.addresses]
        for shard in self._sockets:
            self._ask(shard, Frame(wire.JOIN, keys=np.array([worker.turn, part], np.uint32)))

    def pull(self, keys: wire.Keys, outputs: int) -> Array:
        """Weights of sorted keys, (keys, outputs)."""
        spans = np.searchsorted(keys, self._edges)
        for number, shard in enumerate(self._sockets):
            mine = keys[spans[number] : spans[number + 1]] - np.uint32(self._edges[number])
            wire.send(shard, Frame(wire.PULL, keys=mine))
        found = [wire.receive(shard).values for shard in self._sockets]
        return np.concatenate(found).astype(np.float64).reshape(len(keys), outputs)

    def push(self, batch: int, keys: wire.Keys, gradient: Array, rows: int) -> None:
        """Sums of gradients of sorted keys, over so many rows; ``batch`` is the place of these in the part."""
        spans = np.searchsorted(keys, self._edges)
        for number, shard in enumerate(self._sockets):
            span = slice(spans[number], spans[number + 1])
            mine = keys[span] - np.uint32(self._edges[number])
            wire.send(shard, Frame(wire.PUSH, batch, float(rows), mine, gradient[span].ravel()))
        for shard in self._sockets:
            wire.receive(shard)

    def leave(self) -> None:
        """Done; nobody waits for this worker any more."""
        for shard in self._sockets:
            self._ask(shard, Frame(wire.LEAVE))

    def close(self) -> None:
        """End the connections."""
        for shard in self._sockets:
            shard.close()

    @staticmethod
    def _ask(shard: Any, frame: Frame) -> None:
        wire.send(shard, frame)
        wire.receive(shard)
