"""Passes of stochastic steps over all rows: by one worker, or by several that average what they learnt.

``sgd`` and ``mini_batch``: one worker reads the parts in turn (Robbins and Monro 1951; Bottou, COMPSTAT 2010).

``local_sgd``: in each round every worker takes a part and learns it by itself from the common weights; then what
they learnt is averaged (Zinkevich, Weimer, Smola, Li, NIPS 2010; McDonald, Hall, Mann 2010; Stich, ICLR 2019). So
the averaging period is the size of a part, and a round costs each worker one message of the size of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from modelkeep.core.ports import Progress
from modelkeep.train.linear.blocks import Block, FilePart, MemoryPart, Part, Split, ahead, kept, learnt_from
from modelkeep.train.linear.checkpoint import Checkpoint
from modelkeep.train.linear.losses import Array, Objective
from modelkeep.train.linear.settings import Settings
from modelkeep.train.linear.table import Moves, Steps, Table, averaged, learn
from modelkeep.train.linear.whole import Wholes, release


class Pass:
    """A pass and how far it has come: parts done, rows learnt from, and the sum of their losses.

    Args:
        stands: As ``stands`` gave it; empty for the beginning.
    """

    def __init__(self, stands: dict[str, Any]) -> None:
        self.number = int(stands.get("number", 0))
        self.parts = int(stands.get("parts", 0))
        self.rows = int(stands.get("rows", 0))
        self.loss = float(stands.get("loss", 0.0))

    def add(self, parts: int, rows: int, loss: float) -> None:
        """More is done."""
        self.parts += parts
        self.rows += rows
        self.loss += loss

    def next(self) -> Pass:
        """The pass after this one."""
        return Pass({"number": self.number + 1})

    def stands(self) -> dict[str, Any]:
        """JSON types."""
        return {"number": self.number, "parts": self.parts, "rows": self.rows, "loss": self.loss}


Save = Callable[[Pass], None]


class Method(Protocol):
    """A way to make passes. A context manager that holds what it needs to."""

    def begin(self, table: Table) -> None:
        """Start from here."""
        ...

    def run(self, at: Pass, progress: Progress, checkpoint: Checkpoint, save: Save) -> None:
        """Finish the pass, counting in ``at``."""
        ...

    def table(self) -> Table:
        """The model now, its penalties settled."""
        ...

    def __enter__(self) -> Method:
        """Take what is needed."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give it back."""
        ...


def of(settings: Settings, objective: Objective, steps: Steps, wholes: Wholes) -> Method:
    """The method that the settings ask for."""
    if settings.method == "parameter_server":
        from modelkeep.train.linear.parameter_server import ParameterServer

        return ParameterServer(settings, objective, steps, wholes)
    workers = 1
    if settings.method in ("local_sgd", "all_reduce"):
        workers = min(settings.workers or wholes.engine.slots(), len(wholes.parts))
    return (_Local if workers > 1 else _InTurn)(settings, objective, steps, wholes, workers)


class _InTurn:
    """One worker, here."""

    def __init__(
        self, settings: Settings, objective: Objective, steps: Steps, wholes: Wholes, workers: int
    ) -> None:
        self._settings, self._objective, self._steps, self._wholes = settings, objective, steps, wholes
        self._workers = workers
        self._table = Table.fresh(0, 1)

    def begin(self, table: Table) -> None:
        self._table = table

    def table(self) -> Table:
        self._table.settle(self._objective, self._steps)
        return self._table

    def run(self, at: Pass, progress: Progress, checkpoint: Checkpoint, save: Save) -> None:
        order = self._order(at.number)
        rng = self._rng(at.number, at.parts)
        blocks = self._blocks(order[at.parts :])
        ready = all(isinstance(part, MemoryPart | FilePart) for part in self._wholes.parts)
        for ended, block in blocks if ready else ahead(blocks):
            if ended:
                at.add(1, 0, 0.0)
                self._told(at, progress)
                if checkpoint.due() and at.parts < len(order):
                    self.table()
                    save(at)
                rng = self._rng(at.number, at.parts)
                continue
            at.add(0, *learn(self._table, self._objective, self._steps, [block], rng))

    def _blocks(self, order: list[int]) -> Iterator[tuple[bool, Block]]:
        """The blocks of the parts, and after each part a mark."""
        for number in order:
            for block in kept(self._wholes.parts[number](), self._wholes.split):
                yield False, block
            yield True, (None, np.empty(0))

    def _order(self, number: int) -> list[int]:
        """The parts in the order of a pass, the same one whenever it is asked for."""
        count = len(self._wholes.parts)
        if not self._settings.shuffle:
            return list(range(count))
        rng = np.random.default_rng([self._settings.seed, number])
        return [int(part) for part in rng.permutation(count)]

    def _rng(self, number: int, part: int) -> np.random.Generator | None:
        return np.random.default_rng([self._settings.seed, number, part]) if self._settings.shuffle else None

    def _told(self, at: Pass, progress: Progress) -> None:
        count = len(self._wholes.parts)
        loss = f", loss {at.loss / at.rows:.6g}" if at.rows else ""
        progress.step(f"pass {at.number + 1}", at.parts, count, f"{at.rows:,} rows{loss}")

    def __enter__(self) -> _InTurn:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class _Local(_InTurn):
    """Several workers; their engine may be anywhere."""

    def run(self, at: Pass, progress: Progress, checkpoint: Checkpoint, save: Save) -> None:
        engine, parts = self._wholes.engine, self._wholes.parts
        order = self._order(at.number)
        stand = np.ascontiguousarray(self._table.packed), self._table.clock
        while at.parts < len(order):
            chosen = order[at.parts : at.parts + self._workers]
            seeds = [[self._settings.seed, at.number, place] for place in range(at.parts, at.parts + len(chosen))]
            given = [(parts[number], seed) for number, seed in zip(chosen, seeds, strict=True)]
            work = Round(
                self._objective,
                self._steps,
                self._wholes.split,
                self._settings.shuffle,
                handle := engine.put(stand[0]),
                stand[1],
            )
            moves = engine.map_reduce(work, given, _plus)
            release(handle)
            stand = averaged(stand, moves, self._objective)
            at.add(len(chosen), moves.rows, moves.loss)
            self._told(at, progress)
            due = checkpoint.due()
            if due or at.parts == len(order):
                self._table = Table.unpacked(*stand, adaptive=self._steps.adaptive)
            if due and at.parts < len(order):
                save(at)


@dataclass(frozen=True)
class Round:
    """What a worker does in a round: learn one part from the common weights."""

    objective: Objective
    steps: Steps
    split: Split
    shuffle: bool
    cells: Callable[[], Array]
    clock: Array

    def __call__(self, given: tuple[Part, list[int]]) -> Moves:
        """Work on one part, rows in an order that the seed decides."""
        part, seed = given
        cells = self.cells()
        end = Table.unpacked(cells, self.clock, adaptive=self.steps.adaptive)
        rng = np.random.default_rng(seed) if self.shuffle else None
        rows, loss = learn(end, self.objective, self.steps, learnt_from(part, self.split), rng)
        return Moves.between((cells, self.clock), end, self.objective, self.steps, rows, loss)


def _plus(a: Moves, b: Moves) -> Moves:
    return a.plus(b)
