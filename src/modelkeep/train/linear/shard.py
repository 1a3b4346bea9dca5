"""A shard of the parameter server: a process that keeps some of the weights and the steps they have made.

Run as ``python -m modelkeep.train.linear.shard``; reads its setting as one JSON line from standard input, prints
its port, and ends when standard input does, so it never outlives its owner.

Li et al., "Scaling distributed machine learning with the parameter server", OSDI 2014; bounded staleness: Ho et
al., "More effective distributed ML via a stale synchronous parallel parameter server", NIPS 2013. A worker's clock
is the number of its pushes; it may pull at clock ``c`` once every living worker's clock is at least ``c -
staleness``. With staleness 0 the pushes of a clock are added up and make one step together, once all living
workers have pushed; otherwise each push is a step of its own, at once. A worker whose connection ends no longer
counts, so its death holds nobody up.

A part may be begun again, for its worker died or was slow, and gives the same batches each time. So every push
says which batch of its part it is, and a batch counts once in a pass, whichever attempt brings it first. Of
several attempts at a part only the one that is furthest is waited for, and none once one of them has finished.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from modelkeep.train.linear import wire
from modelkeep.train.linear.losses import Array, Objective
from modelkeep.train.linear.table import Steps, Table
from modelkeep.train.linear.wire import Frame, Keys

INTRODUCTION = 5.0
"""Seconds a caller has to prove its token."""


@dataclass
class Shard:
    """Some rows of the table, changed by pushes.

    Attributes:
        table: This shard's rows.
        objective: Its penalty is applied here.
        steps: How far a push goes.
        staleness: See above.
        bias: The row of the intercept, which has no penalty; -1 when it is in another shard.
        turn: The pass under way.
        clocks: Of the workers that count.
        parts: What these are at.
        pushed: Batches that each part has brought in this pass.
        finished: Parts of which this pass has all.
    """

    table: Table
    objective: Objective
    steps: Steps
    staleness: int
    bias: int
    turn: int = -1
    clocks: dict[int, int] = field(default_factory=dict)
    parts: dict[int, int] = field(default_factory=dict)
    pushed: dict[int, int] = field(default_factory=dict)
    finished: set[int] = field(default_factory=set)
    gathered: list[tuple[Keys, Array, float]] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)
    joined: int = 0

    def join(self, turn: int, part: int) -> int:
        """A worker begins a part in a pass, at the slowest one's clock. Returns its number."""
        with self.changed:
            self.joined += 1
            if turn > self.turn:  # who is still here from earlier passes, brings nothing any more
                self.turn = turn
                for of_the_pass in (self.clocks, self.parts, self.pushed, self.finished):
                    of_the_pass.clear()
            if turn == self.turn and part not in self.finished:
                self.clocks[self.joined] = min(self._furthest(), default=0)
                self.parts[self.joined] = part
            return self.joined

    def leave(self, worker: int, *, finished: bool = False) -> None:
        """It has finished its part, or is dead."""
        with self.changed:
            gone = [worker]
            if finished and worker in self.parts:
                self.finished.add(self.parts[worker])
                gone = [other for other, part in self.parts.items() if part == self.parts[worker]]
            for one in gone:
                self.clocks.pop(one, None)
                self.parts.pop(one, None)
            self._advance()

    def pull(self, worker: int, keys: Keys) -> Array:
        """Weights of some rows, (keys, outputs), when the worker may have them.

        Raises:
            TimeoutError: The slowest worker does not move.
        """

        def may() -> bool:
            clock = self.clocks.get(worker)
            return clock is None or min(self._furthest()) >= clock - self.staleness

        with self.changed:
            if not self.changed.wait_for(may, timeout=wire.PATIENCE):
                raise TimeoutError("a worker does not move")
            self._catch_up(keys)
            return self.table.weights[keys]

    def push(self, worker: int, batch: int, keys: Keys, gradients: Array, rows: float) -> None:
        """Sums of gradients over the ``rows`` rows of a batch, (keys, outputs); keys differ from each other."""
        with self.changed:
            if worker not in self.clocks:
                return  # another attempt has finished the part
            self.clocks[worker] += 1
            part = self.parts[worker]
            if batch < self.pushed.get(part, 0):  # another attempt has brought it
                keys, gradients, rows = keys[:0], gradients[:0], 0.0
            else:
                self.pushed[part] = batch + 1
            if self.staleness:
                if rows:
                    self._step(keys, gradients / rows)
                self.changed.notify_all()
                return
            self.gathered.append((keys, gradients, rows))
            self._advance()

    def _furthest(self) -> Collection[int]:
        """For each part that is worked on, the clock of the attempt that is furthest."""
        furthest: dict[int, int] = {}
        for worker, part in self.parts.items():
            furthest[part] = max(self.clocks[worker], furthest.get(part, 0))
        return furthest.values()

    def _advance(self) -> None:
        """With staleness 0, make the step of a clock that everybody has pushed for."""
        if self.gathered and len(set(self._furthest())) <= 1:
            keys = np.concatenate([keys for keys, _, _ in self.gathered])
            rows = sum(rows for _, _, rows in self.gathered)
            unique, places = np.unique(keys, return_inverse=True)
            total = np.zeros((len(unique), self.objective.outputs))
            np.add.at(total, places, np.concatenate([gradients for _, gradients, _ in self.gathered]))
            self.gathered.clear()
            if rows:
                self._step(unique, total / rows)
        self.changed.notify_all()

    def _catch_up(self, keys: Keys) -> None:
        """The penalty of the steps that these rows have missed."""
        self.table.settle(self.objective, self.steps, keys[keys != self.bias])

    def _step(self, keys: Keys, gradient: Array) -> None:
        self._catch_up(keys)
        table = self.table
        now = self.steps.rate / (1.0 + table.clock[1]) ** self.steps.power
        if self.steps.adaptive:
            squares = table.sums[keys] + gradient * gradient
            table.sums[keys] = squares
            table.weights[keys] -= now * gradient / np.sqrt(squares)
        else:
            table.weights[keys] -= now * gradient
            table.sums[keys] += gradient != 0.0
        table.clock += (now, 1.0)

    def read(self) -> Array:
        """All rows, penalties settled, for the owner."""
        with self.changed:
            self._catch_up(np.arange(len(self.table.cells), dtype=np.uint32))
            return self.table.packed.copy()


def serve(shard: Shard, caller: socket.socket, token: bytes) -> None:
    """Answer one caller until it goes."""
    worker = 0
    with caller:
        try:
            caller.settimeout(INTRODUCTION)
            if not wire.admit(caller, token):
                return
            caller.settimeout(None)
            while True:
                frame = wire.receive(caller)
                if frame.op == wire.JOIN:
                    turn, part = frame.keys.tolist()
                    worker = shard.join(turn, part)
                    wire.send(caller, Frame(wire.DONE))
                elif frame.op == wire.LEAVE:
                    shard.leave(worker, finished=True)
                    wire.send(caller, Frame(wire.DONE))
                else:
                    _answer(shard, worker, frame, caller)
        except (OSError, ValueError, IndexError, KeyError):
            return  # gone, or no caller of ours
        finally:
            shard.leave(worker)


def _answer(shard: Shard, worker: int, frame: Frame, caller: socket.socket) -> None:
    outputs = shard.objective.outputs
    if frame.op == wire.PULL:
        wire.send(caller, Frame(wire.DONE, values=shard.pull(worker, frame.keys).ravel()))
    elif frame.op == wire.PUSH:
        gradients = frame.values.reshape(len(frame.keys), outputs).astype(np.float64)
        shard.push(worker, frame.clock, frame.keys, gradients, frame.number)
        wire.send(caller, Frame(wire.DONE))
    elif frame.op == wire.READ:
        cells = shard.read()
        wire.send(caller, Frame(wire.STATE, len(cells)))
        caller.sendall(cells.tobytes() + shard.table.clock.tobytes())
    else:
        raise ValueError("an operation that is none")


def main() -> None:
    """Serve one shard until standard input ends."""
    setting: dict[str, Any] = json.loads(sys.stdin.buffer.readline())
    size, rows = 8 * setting["cells"], setting["rows"]
    cells = np.frombuffer(sys.stdin.buffer.read(size)).reshape(rows, -1)
    objective, steps = Objective(**setting["objective"]), Steps(**setting["steps"])
    table = Table.unpacked(cells, np.array(setting["clock"]), adaptive=steps.adaptive)
    shard = Shard(table, objective, steps, setting["staleness"], setting["bias"])
    family = socket.AF_INET6 if ":" in setting["host"] else socket.AF_INET
    listener = socket.create_server((setting["host"], 0), family=family, backlog=256)
    token = bytes.fromhex(setting["token"])
    threading.Thread(target=_end_with_owner, daemon=True).start()
    print(listener.getsockname()[1], flush=True)  # noqa: T201 - how the owner learns it
    while True:
        caller, _ = listener.accept()
        wire.set_up(caller)
        threading.Thread(target=serve, args=(shard, caller, token), daemon=True).start()


def _end_with_owner() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    main()
