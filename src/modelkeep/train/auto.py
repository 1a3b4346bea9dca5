"""Choosing an algorithm: several families race on growing samples of the rows (successive halving).

Jamieson and Talwalkar 2016: all start on few rows, the better half goes on to four times as many. Candidates go in
order of their last score, so when time runs out the favourite has been seen furthest.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from modelkeep.core.errors import Invalid, ModelkeepError
from modelkeep.core.ports import Progress
from modelkeep.spec.declaration import Train
from modelkeep.spec.units import seconds
from modelkeep.stats.bootstrap import interval
from modelkeep.stats.metrics import METRICS
from modelkeep.train.algorithms import resolve
from modelkeep.train.fitting import answers, fit_one, quietly, reason, score
from modelkeep.train.log import RunLog, Tried
from modelkeep.train.splits import holdout
from modelkeep.train.training import Training

GROWTH = 4
FIRST = 2_000
"""Fewest rows of the first rung."""
SLOW = 20_000
"""Rows above which neighbours and kernels are left out: their prediction time grows with the rows."""

Candidate = tuple[str, Mapping[str, Any]]
_FINER: Mapping[str, Any] = {"learning_rate": 0.05, "max_iter": 300, "max_leaf_nodes": 63}
_TEXT: dict[str, tuple[Candidate, ...]] = {
    "classification": (
        ("logistic_regression", {}),
        ("logistic_regression", {"C": 10.0}),
        ("linear_svm", {}),
        ("multinomial_naive_bayes", {"alpha": 0.1}),
        ("sgd", {}),
    ),
    "regression": (("ridge", {}), ("sgd", {}), ("linear_svm", {})),
}
_TABLE: dict[str, tuple[Candidate, ...]] = {
    "classification": (
        ("hist_gradient_boosting", {}),
        ("hist_gradient_boosting", _FINER),
        ("random_forest", {"min_samples_leaf": 3}),
        ("extra_trees", {"min_samples_leaf": 3}),
        ("logistic_regression", {}),
        ("gaussian_naive_bayes", {}),
    ),
    "regression": (
        ("hist_gradient_boosting", {}),
        ("hist_gradient_boosting", _FINER),
        ("random_forest", {"min_samples_leaf": 2}),
        ("extra_trees", {"min_samples_leaf": 2}),
        ("ridge", {}),
        ("lasso", {}),
    ),
}
_SMALL: dict[str, tuple[Candidate, ...]] = {
    "classification": (("knn", {"n_neighbors": 15}), ("svm", {})),
    "regression": (("knn", {"n_neighbors": 15}), ("svm", {})),
}
WIDE = 500
"""Sparse columns from which the features are taken for text: trees are slow there and rarely better."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """The winner, and everything tried in order."""

    algorithm: str
    params: dict[str, Any]
    tried: tuple[Tried, ...]


@dataclass(slots=True)
class _Racer:
    name: str
    params: Mapping[str, Any]
    best: float = -math.inf
    rows: int = 0
    seconds: float = 0.0
    outcomes: list[int] = field(default_factory=list)


def candidates(train: Train, data: Training) -> list[Candidate]:
    """What to try: the families named, else a good mixture for the task, the size and the sparsity."""
    if train.families:
        return [(name, {}) for name in train.families]
    if sparse.issparse(data.matrix) and data.matrix.shape[1] >= WIDE:
        return list(_TEXT[data.task])
    small = _SMALL[data.task] if data.rows <= SLOW else ()
    return [*_TABLE[data.task], *small]


def choose(train: Train, data: Training, metric: str, *, base: Path, log: RunLog, progress: Progress) -> Chosen:
    """Race the candidates within ``train.time_budget`` and name the best.

    A fit under way is not broken off; none is begun that, by its time on fewer rows, would not end in time. At
    least one candidate is scored however small the budget.

    Raises:
        Invalid: ``auto`` was given parameters, or has no target to score on.
        ModelkeepError: Every candidate failed; the error of the last.
    """
    if train.params:
        raise Invalid("auto chooses the parameters", path="train.params", hint="name an algorithm, or drop params")
    if data.task not in _TABLE:
        raise Invalid(f"auto does not do {data.task}", path="train.algorithm", hint="use isolation_forest")
    with quietly():
        return _Race(train, data, metric, base=base, log=log, progress=progress).run()


class _Race:
    def __init__(
        self, train: Train, data: Training, metric: str, *, base: Path, log: RunLog, progress: Progress
    ) -> None:
        self.train, self.data, self.metric, self.base = train, data, metric, base
        self.log, self.progress = log, progress
        self.sign = 1.0 if METRICS[metric].higher_is_better else -1.0
        self.fit_rows, held = holdout(data, train.seed)
        self.held = data.take(held)
        self.begun = time.monotonic()
        self.budget = seconds(train.time_budget)
        self.tried: list[Tried] = []
        self.last_error: ModelkeepError | None = None

    def run(self) -> Chosen:
        racers = [_Racer(name, params) for name, params in candidates(self.train, self.data)]
        sizes = _rungs(len(self.fit_rows))
        for rung, rows in enumerate(sizes):
            sample = self.data.take(np.sort(self.fit_rows[:rows]))
            for racer in racers:
                if self._no_time(racer, rows, racers):
                    self._skip(racer)
                    continue
                self._try(racer, sample, last=rows == sizes[-1])
                note = f"{racer.name} on {rows:,} rows"
                self.progress.step("auto", rung + (racers.index(racer) + 1) / len(racers), len(sizes), note)
            racers = sorted((r for r in racers if r.rows), key=lambda r: (-r.rows, -r.best))
            if not racers:
                raise self.last_error or Invalid("no algorithm could be scored", path="train.families")
            if racers[0].rows < rows:
                break
            racers = racers[: max(2, math.ceil(len(racers) / 2))]
        return self._won(racers[0])

    def _no_time(self, racer: _Racer, rows: int, racers: list[_Racer]) -> bool:
        if not any(other.rows for other in racers):
            return False
        expected = racer.seconds * rows / racer.rows if racer.rows else 0.0
        return time.monotonic() - self.begun + expected > self.budget

    def _skip(self, racer: _Racer) -> None:
        entry = Tried(
            algorithm=racer.name, params=dict(racer.params), score=None, rows=0, seconds=0.0, note="no time left"
        )
        if racer.outcomes:
            last = self.tried[racer.outcomes[-1]]
            self.tried[racer.outcomes[-1]] = Tried(**{**_fields(last), "note": "no time left for more rows"})
        else:
            self.tried.append(entry)

    def _try(self, racer: _Racer, sample: Training, *, last: bool) -> None:
        begun = time.perf_counter()
        run = self.log.child(f"auto {racer.name} on {sample.rows} rows")
        run.params({"algorithm": racer.name, **racer.params})
        value: float | None = None
        low = high = None
        note = ""
        try:
            algorithm = resolve(racer.name, sample.task, base=self.base)
            model = fit_one(algorithm, racer.params, sample, seed=self.train.seed, log=run)
            said = answers(algorithm, model, self.held)
            value = score(self.metric, racer.name, said, self.held)
            taken = time.perf_counter() - begun
            if last:
                found = interval(self.metric, np.asarray(self.held.target), said)
                low, high = found.low, found.high
            run.metric(self.metric, value)
            run.end()
        except ModelkeepError as error:
            taken, note, self.last_error = time.perf_counter() - begun, reason(error), error
            run.end("FAILED")
        if value is not None and math.isfinite(value):
            racer.best, racer.rows, racer.seconds = self.sign * value, sample.rows, taken
        else:
            racer.rows, value = 0, None
        racer.outcomes.append(len(self.tried))
        self.tried.append(
            Tried(
                algorithm=racer.name,
                params=dict(racer.params),
                score=value,
                low=low,
                high=high,
                rows=sample.rows,
                seconds=taken,
                note=note,
            )
        )

    def _won(self, racer: _Racer) -> Chosen:
        place = next(index for index in racer.outcomes[::-1] if self.tried[index].score is not None)
        self.tried[place] = Tried(**{**_fields(self.tried[place]), "note": "chosen"})
        return Chosen(racer.name, dict(racer.params), tuple(self.tried))


def _rungs(rows: int) -> list[int]:
    sizes = [rows]
    while sizes[0] // GROWTH >= FIRST and len(sizes) < 4:
        sizes.insert(0, sizes[0] // GROWTH)
    return sizes


def _fields(tried: Tried) -> dict[str, Any]:
    return {name: getattr(tried, name) for name in Tried.__struct_fields__}
