"""One fit: passes of stochastic steps, full-batch steps, or both in turn; watched, checkpointed, resumed."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from modelkeep.core.errors import Invalid
from modelkeep.core.ports import Engine, Progress, Silent
from modelkeep.train.linear import passes, scan
from modelkeep.train.linear.blocks import Part, Split
from modelkeep.train.linear.checkpoint import Checkpoint
from modelkeep.train.linear.descent import Descent
from modelkeep.train.linear.losses import Array, Objective, of_rows, penalty
from modelkeep.train.linear.passes import Pass
from modelkeep.train.linear.settings import Settings
from modelkeep.train.linear.table import Steps, Table
from modelkeep.train.linear.threads import Threads
from modelkeep.train.linear.whole import Wholes, held_blocks
from modelkeep.train.log import RunLog, Unlogged

HELD = 100_000
"""Rows that are held out at most: more tell no more about when to stop."""
SMOOTHINGS = (1.0, 0.1, 0.01, 0.001, 0.0001)
"""Widths of the hinge's rounded corner, one after the other, each begun where the last ended; see ``losses``."""


@dataclass(frozen=True)
class Watch:
    """Who is told while it goes on, and where it goes on after a kill."""

    log: RunLog = field(default_factory=Unlogged)
    progress: Progress = field(default_factory=Silent)
    state: Path | None = None


@dataclass
class Learnt:
    """What a fit ended in.

    Attributes:
        weights: (features + 1, outputs), the intercept last.
        passes: Passes over the rows of the stochastic part.
        iterations: Full-batch steps.
        converged: Whether it ended for the tolerance and not for the number of passes.
        history: What was measured after each pass or step.
        batch_size: Rows per stochastic step.
        scan: What ``batch_size: auto`` found.
    """

    weights: Array
    passes: int = 0
    iterations: int = 0
    converged: bool = False
    history: list[dict[str, float]] = field(default_factory=list)
    batch_size: int = 1
    scan: tuple[scan.Size, ...] = ()


def learn(
    parts: Sequence[Part],
    features: int,
    classes: int,
    settings: Settings,
    *,
    engine: Engine | None = None,
    watch: Watch | None = None,
) -> Learnt:
    """Learn from parts.

    Args:
        parts: See ``blocks``.
        features: Columns of every block.
        classes: How many; 0 for numbers.
        engine: Where parts are worked on; None takes threads of this process.
        watch: Who is told.

    Raises:
        Invalid: There are no parts or rows, or the loss became infinite.
        Unavailable: A worker, a shard or the disk is away.
    """
    if not parts:
        raise Invalid("there are no rows to train on", path="data")
    with ExitStack() as stack:
        if engine is None:
            engine = stack.enter_context(Threads(settings.workers or 1))
        return _Learner(list(parts), features, classes, settings, engine, watch or Watch()).run()


class _Learner:
    def __init__(
        self, parts: list[Part], features: int, classes: int, settings: Settings, engine: Engine, watch: Watch
    ) -> None:
        l1, l2 = settings.penalties
        outputs = classes if classes > 2 else 1
        self.objective = Objective(settings.loss, l1, l2, outputs, settings.fit_intercept)
        self.settings, self.watch = settings, watch
        most = max(1, HELD // len(parts))
        split = Split(settings.validation_fraction, most) if settings.early_stopping else Split()
        self.wholes = Wholes(parts, engine, split)
        self.held = held_blocks(engine, parts, split) if settings.early_stopping else []
        if settings.early_stopping and not self.held:
            raise Invalid("too few rows to hold any out", path="train.params.early_stopping")
        self.table = Table.fresh(features, outputs)
        self.found = Learnt(self.table.weights)
        self.features = features
        about = {**dataclasses.asdict(settings), "features": features, "outputs": outputs, "parts": len(parts)}
        self.checkpoint = Checkpoint(watch.state, about)
        self.saved = self.checkpoint.load()

    def run(self) -> Learnt:
        """All phases."""
        settings = self.settings
        descends = settings.method in ("full_batch", "all_reduce")
        if settings.method != "full_batch":
            self._stochastic(1 if descends else settings.passes)
        steps = settings.passes if descends else settings.refine
        if steps:
            self._descent(steps)
        if not np.isfinite(self.found.weights).all():
            raise Invalid("the weights became infinite", path="train.params.learning_rate", hint="lower it")
        self.checkpoint.clear()
        return self.found

    def _stochastic(self, most: int) -> None:
        stands = None
        if self.saved is not None:
            stands, arrays = self.saved
            self.found.history = stands["history"]
            if stands["phase"] == "descent":
                self.found.passes, self.found.batch_size = stands["passes"], stands["batch_size"]
                return
            self.table = Table(arrays["cells"], arrays["clock"])
        steps = self._steps(stands)
        self.found.batch_size = steps.batch
        stopping = Stopping(self.settings, self.found.history)
        best = arrays["best"] if stands is not None and "best" in arrays else None
        method = passes.of(self.settings, self.objective, steps, self.wholes)
        begun = Pass(stands["pass"]) if stands is not None else Pass({})
        with method:
            method.begin(self.table)
            while begun.number < most and not stopping.done:
                at = time.perf_counter()
                rows_before = begun.rows

                def save(now: Pass, best: Array | None = best) -> None:
                    self._save_pass(method.table(), now, steps, best)

                method.run(begun, self.watch.progress, self.checkpoint, save)
                self.table = method.table()
                seconds = time.perf_counter() - at
                self._told_pass(begun, (begun.rows - rows_before) / max(seconds, 1e-9))
                if stopping.improved(self.found.history):
                    best = self.table.weights.copy()
                begun = begun.next()
                self._save_pass(self.table, begun, steps, best)
        keep_best = self.settings.early_stopping and best is not None
        self.found.weights = best if keep_best and best is not None else self.table.weights.copy()
        self.found.passes, self.found.converged = begun.number, stopping.done

    def _steps(self, stands: dict[str, Any] | None) -> Steps:
        settings = self.settings
        size = settings.batch_size
        steps = Steps(settings.step, settings.learning_rate, 1 if size == "auto" else size)
        if size != "auto":
            return steps
        if stands is not None:
            return dataclasses.replace(steps, batch=int(stands["batch_size"]))
        self.found.scan = scan.sizes(self.wholes.parts, self.features, self.objective, steps, settings.seed)
        chosen = scan.choose(self.found.scan)
        scan.tell(self.watch.log, self.found.scan, chosen)
        return dataclasses.replace(steps, batch=chosen)

    def _told_pass(self, done: Pass, speed: float) -> None:
        if not done.rows:
            raise Invalid("there are no rows to train on", path="data")
        measured = {
            "train_loss": done.loss / done.rows + penalty(self.objective, self.table.weights),
            "rows_per_second": speed,
        }
        if self.held:
            measured["validation_loss"] = self._validation(self.table.weights)
        self._tell(measured)

    def _tell(self, measured: dict[str, float]) -> None:
        self.found.history.append(measured)
        for key, value in measured.items():
            self.watch.log.metric(key, value, len(self.found.history))

    def _validation(self, weights: Array) -> float:
        sums = [of_rows(self.objective, weights, x, y, slope=False) for x, y in self.held]
        return sum(part.loss for part in sums) / sum(part.rows for part in sums)

    def _save_pass(self, table: Table, now: Pass, steps: Steps, best: Array | None) -> None:
        arrays = {"cells": table.cells, "clock": table.clock}
        if best is not None and self.settings.early_stopping:
            arrays["best"] = best
        stands = {
            "phase": "passes",
            "pass": now.stands(),
            "history": self.found.history,
            "batch_size": steps.batch,
        }
        self.checkpoint.save(stands, arrays)

    def _descent(self, most: int) -> None:
        """Full-batch steps; for the hinge one descent per width of its rounded corner."""
        widths = SMOOTHINGS if self.objective.loss == "hinge" else (0.0,)
        at, descent = 0, Descent(np.array(self.found.weights))
        if self.saved is not None and self.saved[0]["phase"] == "descent":
            at, descent = _resumed(*self.saved)
        first = descent.first
        for place, width in enumerate(widths[at:], at):
            objective = dataclasses.replace(self.objective, smoothing=width)
            if place > at or descent.slope is None:
                descent = Descent(descent.weights, descent.iteration, first=first)
            with self.wholes.of(objective) as whole:
                if not descent.first:  # zero weights are what every start is measured against
                    descent.first = _norm_at_zero(objective, whole, descent.weights)
                descent.begin(objective, whole)
                first = descent.first
                budget = most * (place + 1) // len(widths)
                last = place == len(widths) - 1  # where the others end is only where the next begins
                tolerance = self.settings.tolerance if last else max(self.settings.tolerance, 1e-3)
                while not descent.converged(tolerance) and not descent.stuck:
                    if descent.iteration >= budget:
                        break
                    descent.step(objective, whole)
                    self._told_step(descent, most)
                    self._save_step(descent, place)
        self.found.weights = descent.weights
        self.found.iterations = descent.iteration
        self.found.converged = descent.converged(self.settings.tolerance) or descent.stuck

    def _told_step(self, descent: Descent, most: int) -> None:
        measured = {"train_loss": descent.value, "gradient_norm": descent.norm}
        if self.held:
            measured["validation_loss"] = self._validation(descent.weights)
        self._tell(measured)
        self.watch.progress.step("full-batch steps", descent.iteration, most, f"loss {descent.value:.6g}")

    def _save_step(self, descent: Descent, place: int) -> None:
        if descent.slope is None:
            return
        arrays = {"weights": descent.weights, "slope": descent.slope}
        for number, (moved, bent) in enumerate(descent.pairs):
            arrays |= {f"moved{number}": moved, f"bent{number}": bent}
        stands = {
            "phase": "descent",
            "place": place,
            "iteration": descent.iteration,
            "value": descent.value,
            "first": descent.first,
            "norm": descent.norm,
            "stuck": descent.stuck,
            "history": self.found.history,
            "passes": self.found.passes,
            "batch_size": self.found.batch_size,
        }
        self.checkpoint.save(stands, arrays)


def _resumed(stands: dict[str, Any], arrays: dict[str, Array]) -> tuple[int, Descent]:
    count = sum(name.startswith("moved") for name in arrays)
    pairs = [(arrays[f"moved{number}"], arrays[f"bent{number}"]) for number in range(count)]
    names = ("iteration", "value", "first", "norm", "stuck")
    descent = Descent(arrays["weights"], slope=arrays["slope"], pairs=pairs, **{key: stands[key] for key in names})
    return stands["place"], descent


def _norm_at_zero(objective: Objective, whole: Any, weights: Array) -> float:
    if not weights.any():
        return 0.0  # the descent begins there and looks itself
    start = Descent(np.zeros_like(weights))
    start.begin(objective, whole)
    return start.norm


class Stopping:
    """When passes bring nothing more: ``patience`` of them without improving by ``tolerance`` of the loss.

    The loss is that of the held-out rows with ``early_stopping``, else of the training rows as they were met.
    """

    def __init__(self, settings: Settings, history: list[dict[str, float]]) -> None:
        self._settings = settings
        self._best = np.inf
        self._waited = 0
        for number in range(len(history)):
            self.improved(history[: number + 1])

    def improved(self, history: list[dict[str, float]]) -> bool:
        """Whether the last pass was the best so far; counts those that brought nothing."""
        loss = history[-1]["validation_loss" if self._settings.early_stopping else "train_loss"]
        better = loss < self._best
        if loss < self._best - self._settings.tolerance * max(abs(self._best), 1e-12) or self._best == np.inf:
            self._waited = 0
        else:
            self._waited += 1
        self._best = min(self._best, loss)
        return better

    @property
    def done(self) -> bool:
        """Whether it is time to stop."""
        return self._waited >= self._settings.patience
