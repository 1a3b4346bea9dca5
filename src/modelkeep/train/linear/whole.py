"""Sums over all rows: each part gives its own wherever an engine works on it; they are merged as a tree."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from modelkeep.core.errors import Invalid
from modelkeep.core.ports import Engine
from modelkeep.train.linear.blocks import Block, Part, Split, held_out, learnt_from
from modelkeep.train.linear.losses import Array, Objective, Sums, of_rows


@dataclass(frozen=True)
class Wholes:
    """The rows to learn from, wherever they are.

    Attributes:
        parts: All of them.
        engine: Where they are worked on.
        split: Which rows are left out.
    """

    parts: list[Part]
    engine: Engine
    split: Split

    @contextmanager
    def of(self, objective: Objective) -> Iterator[Callable[[Array], Sums]]:
        """Loss and gradient over all rows, as a function of the weights."""

        def whole(weights: Array) -> Sums:
            handle = self.engine.put(weights)
            work = PartSums(objective, handle, self.split)
            sums = self.engine.map_reduce(work, self.parts, _plus)
            release(handle)
            if not sums.rows:
                raise Invalid("there are no rows to train on", path="data")
            return sums

        yield whole


def release(handle: Any) -> None:
    """Let go of something shared by ``Engine.put``, where the engine does not by itself."""
    forget = getattr(handle, "forget", None)
    if forget is not None:
        forget()


@dataclass(frozen=True)
class PartSums:
    """The partial step: one part's loss and gradient."""

    objective: Objective
    weights: Callable[[], Array]
    split: Split

    def __call__(self, part: Part) -> Sums:
        """Work on one part."""
        weights = self.weights()
        total = Sums(0, 0.0, np.zeros_like(weights))
        for x, y in learnt_from(part, self.split):
            total = total.plus(of_rows(self.objective, weights, x, np.asarray(y)))
        return total


def _plus(a: Sums, b: Sums) -> Sums:
    return a.plus(b)


@dataclass(frozen=True)
class _Held:
    split: Split

    def __call__(self, part: Part) -> list[Block]:
        return list(held_out(part(), self.split))


def held_blocks(engine: Engine, parts: Sequence[Part], split: Split) -> list[Block]:
    """The held-out rows of all parts, brought here."""
    return [block for blocks in engine.map(_Held(split), parts) for block in blocks]
