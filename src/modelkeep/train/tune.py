"""Hyperparameter search with Optuna, resumable after a kill and repeatable by seed.

Trials are asked for in rounds of fixed size, each with a seed of its own, and told in order. So a search gives the
same trials on any number of cores, and the same whether or not it was interrupted.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import optuna
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, PartialFixedSampler, RandomSampler, TPESampler
from optuna.storages import InMemoryStorage, JournalStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from modelkeep.core import digests
from modelkeep.core.errors import Invalid, ModelkeepError
from modelkeep.core.ports import Progress
from modelkeep.spec.declaration import Range, Train, Tune
from modelkeep.spec.units import seconds
from modelkeep.stats.metrics import METRICS
from modelkeep.train.algorithms import Algorithm
from modelkeep.train.fitting import answers, fit_one, quietly, reason, score
from modelkeep.train.journal import Journal
from modelkeep.train.log import RunLog, Status, Tried
from modelkeep.train.splits import cross_validation, growing_holdout
from modelkeep.train.training import Training

ROUND = 4
"""Trials asked for at a time when one fit uses one core."""
_ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


@dataclass(frozen=True, slots=True)
class Found:
    """The best parameters, and every trial in order."""

    params: dict[str, Any]
    tried: tuple[Tried, ...]


def search(
    train: Train,
    algorithm: Algorithm,
    data: Training,
    metric: str,
    *,
    log: RunLog,
    progress: Progress,
    state: Path | None = None,
) -> Found:
    """Find good parameters.

    Args:
        train: With ``tune`` set.
        algorithm: What to tune; a user's function is called with the trial's parameters.
        data: All training rows.
        metric: What to look at.
        log: Each trial becomes a child run.
        progress: Who watches.
        state: A folder that keeps finished trials across a kill.

    Raises:
        Invalid: The space names a parameter that does not exist, or a grid has no steps.
        Conflict: Another process is searching in the same folder.
        ModelkeepError: Every trial failed; the error of the last one.
    """
    if train.tune is None or data.target is None:
        raise Invalid("tuning needs a target to score on", path="train.tune")
    hunt = _Hunt(train, train.tune, algorithm=algorithm, data=data, metric=metric, log=log)
    stop = time.monotonic() + (seconds(train.tune.timeout) if train.tune.timeout else float("inf"))
    try:
        hunt.begin(state)
        with quietly(), ThreadPoolExecutor(hunt.round) as threads:
            while hunt.done < hunt.total and (time.monotonic() < stop or not hunt.scored):
                hunt.advance(threads)
                progress.step("tune", hunt.done, hunt.total, hunt.best_note())
        return hunt.found()
    finally:
        hunt.close()


class _Hunt:
    """One search under way."""

    def __init__(
        self, train: Train, tune: Tune, *, algorithm: Algorithm, data: Training, metric: str, log: RunLog
    ) -> None:
        self.train, self.tune, self.algorithm = train, tune, algorithm
        self.data, self.metric, self.log = data, metric, log
        self.journal: Journal | None = None
        self.again: dict[int, dict[str, Any]] = {}
        _check_space(tune, algorithm, train)
        self.grid = _grid(tune, train.seed) if tune.sampler == "grid" else None
        self.total = min(tune.trials, len(self.grid)) if self.grid is not None else tune.trials
        # Successive halving compares with trials under way, which only a fixed order makes repeatable.
        self.round = ROUND if algorithm.family.serial and tune.validation == "cv" else 1
        if tune.validation == "cv":
            self.folds = cross_validation(data, tune.folds, train.seed)
        else:
            self.folds = growing_holdout(data, train.seed, prune=tune.prune)
        self.last_error: ModelkeepError | None = None

    def begin(self, state: Path | None) -> None:
        """Open the study, and put what a killed search left unfinished back in line."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        name = digests.of_value(
            [
                msgspec.to_builtins(self.train),
                self.metric,
                list(self.data.matrix.shape),
                np.ascontiguousarray(self.data.target).tobytes(),
            ]
        )
        storage: Any = InMemoryStorage()
        if state is not None:
            self.journal = Journal(state / f"{name[:32]}.journal")
            storage = JournalStorage(self.journal)
        self.study = optuna.create_study(
            storage=storage,
            study_name=name,
            direction="maximize" if METRICS[self.metric].higher_is_better else "minimize",
            pruner=self._pruner(),
            load_if_exists=True,
        )
        for trial in self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            if "end" in trial.user_attrs:
                self._close(trial.number, trial.user_attrs["end"])
            else:
                self.study.tell(trial.number, state=TrialState.FAIL)
        for trial in self.study.get_trials(deepcopy=False, states=[TrialState.FAIL]):
            if trial.user_attrs.keys() >= {"slot", "params"} and "end" not in trial.user_attrs:
                self.again[int(trial.user_attrs["slot"])] = trial.params
        for trial in self.kept():
            self._relog(trial)

    def close(self) -> None:
        """Let go of the file, if any."""
        if self.journal is not None:
            self.journal.close()

    def kept(self) -> list[FrozenTrial]:
        """Trials that ended by themselves, in order of their slots; those a kill cut short have no ``end``."""
        trials = self.study.get_trials(deepcopy=False, states=_ENDED)
        return sorted((t for t in trials if "end" in t.user_attrs), key=lambda t: int(t.user_attrs["slot"]))

    @property
    def done(self) -> int:
        """How many trials ended."""
        return len(self.kept())

    @property
    def scored(self) -> bool:
        """Whether any trial has a final score."""
        return any(trial.state is TrialState.COMPLETE for trial in self.kept())

    def advance(self, threads: ThreadPoolExecutor) -> None:
        """Ask for one round of trials, run them, tell the study in order."""
        taken = {int(trial.user_attrs["slot"]) for trial in self.kept()}
        slots = [slot for slot in range(self.total) if slot not in taken][: self.round]
        asked = [self._ask(slot) for slot in slots]
        # Pruning looks at finished trials, so none of a round counts as finished before all are.
        ended = list((map if len(asked) == 1 else threads.map)(lambda pair: self._run(*pair), asked))
        for (trial, _), end in zip(asked, ended, strict=True):
            trial.set_user_attr("end", end.told())
            self._close(trial.number, end.told())
            end.run.end(end.status)

    def _ask(self, slot: int) -> tuple[Trial, dict[str, Any]]:
        seed = (self.train.seed * 1_000_003 + slot) % 2**32
        sampler: BaseSampler = RandomSampler(seed=seed)
        if self.tune.sampler == "tpe":
            sampler = TPESampler(seed=seed, n_startup_trials=min(10, max(3, self.total // 3)))
        fixed = self.again.get(slot) or (self.grid[slot] if self.grid is not None else None)
        self.study.sampler = PartialFixedSampler(fixed, sampler) if fixed else sampler
        trial = self.study.ask()
        trial.set_user_attr("slot", slot)
        params = {name: _suggest(trial, name, choice) for name, choice in self.tune.space.items()}
        trial.set_user_attr("params", msgspec.to_builtins(params))
        return trial, params

    def _run(self, trial: Trial, params: dict[str, Any]) -> _Ended:
        """Fit and score fold after fold; the study hears of each, and may call it off."""
        begun, scores, rows = time.perf_counter(), [], 0
        run = self.log.child(f"trial {trial.user_attrs['slot']}")
        run.params(params)
        given = {**self.train.params, **params}
        try:
            for step, (fitted, held) in enumerate(self.folds):
                model = fit_one(self.algorithm, given, fitted, seed=self.train.seed, log=run)
                said = answers(self.algorithm, model, held)
                scores.append(score(self.metric, self.algorithm.name, said, held))
                rows = fitted.rows
                value = self._value(scores)
                run.metric(self.metric, value, step)
                trial.report(value, step)
                if step + 1 < len(self.folds) and trial.should_prune():
                    return _Ended("KILLED", value, rows, time.perf_counter() - begun, "stopped early", run)
        except ModelkeepError as error:
            self.last_error = error
            return _Ended("FAILED", None, rows, time.perf_counter() - begun, reason(error), run)
        value = self._value(scores)
        if not np.isfinite(value):
            return _Ended("FAILED", None, rows, time.perf_counter() - begun, f"{self.metric} is undefined", run)
        return _Ended("FINISHED", value, rows, time.perf_counter() - begun, "", run)

    def _value(self, scores: list[float]) -> float:
        """Folds are averaged; on a growing hold-out the latest, on the most rows, counts."""
        return float(np.mean(scores)) if self.tune.validation == "cv" else scores[-1]

    def _close(self, number: int, end: Mapping[str, Any]) -> None:
        if end["status"] == "FINISHED":
            self.study.tell(number, end["score"])
        else:
            self.study.tell(number, state=TrialState.PRUNED if end["status"] == "KILLED" else TrialState.FAIL)

    def _relog(self, trial: FrozenTrial) -> None:
        run = self.log.child(f"trial {trial.user_attrs['slot']}")
        run.params(trial.user_attrs["params"])
        end: Mapping[str, Any] = trial.user_attrs["end"]
        for step, value in sorted(trial.intermediate_values.items()):
            run.metric(self.metric, value, step)
        status: Status = end["status"]
        run.end(status)

    def _pruner(self) -> BasePruner:
        if not self.tune.prune:
            return NopPruner()
        if self.tune.validation == "holdout":
            return SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
        return MedianPruner(n_startup_trials=5)

    def best_note(self) -> str:
        """Where the search stands, for people."""
        if not self.scored:
            return ""
        best = self._best()
        return f"best {self.metric} {best.value:.4g} (trial {best.user_attrs['slot']})"

    def _best(self) -> FrozenTrial:
        complete = [trial for trial in self.kept() if trial.state is TrialState.COMPLETE]
        sign = -1.0 if METRICS[self.metric].higher_is_better else 1.0
        return min(complete, key=lambda trial: (sign * float(trial.value or 0.0), int(trial.user_attrs["slot"])))

    def found(self) -> Found:
        """The outcome; raises the last error when no trial was scored."""
        if not self.scored:
            raise self.last_error or Invalid(
                "no trial could be scored: "
                + "; ".join(sorted({str(t.user_attrs["end"]["note"]) for t in self.kept()})),
                path="train.tune",
            )
        best = self._best()
        tried = tuple(_tried(self.algorithm.name, trial, chosen=trial is best) for trial in self.kept())
        return Found({**self.train.params, **best.user_attrs["params"]}, tried)


@dataclass(frozen=True, slots=True)
class _Ended:
    status: Status
    score: float | None
    rows: int
    seconds: float
    note: str
    run: RunLog

    def told(self) -> dict[str, Any]:
        """What the study keeps of it."""
        return {name: getattr(self, name) for name in ("status", "score", "rows", "seconds", "note")}


def _tried(name: str, trial: FrozenTrial, *, chosen: bool) -> Tried:
    end: Mapping[str, Any] = trial.user_attrs["end"]
    return Tried(
        algorithm=name,
        params=trial.user_attrs["params"],
        score=end["score"],
        rows=end["rows"],
        seconds=end["seconds"],
        note="chosen" if chosen else end["note"],
    )


def _check_space(tune: Tune, algorithm: Algorithm, train: Train) -> None:
    if not tune.space:
        raise Invalid("there is nothing to search", path="train.tune.space", hint="e.g. {max_depth: [3, 6, 9]}")
    algorithm.params(tune.space, seed=train.seed, rows=1, path="train.tune.space")


def _suggest(trial: Trial, name: str, choice: tuple[Any, ...] | Range) -> Any:
    if isinstance(choice, Range):
        if choice.int:
            step = int(choice.step) if choice.step else 1
            return trial.suggest_int(name, int(choice.low), int(choice.high), log=choice.log, step=step)
        return trial.suggest_float(name, choice.low, choice.high, log=choice.log, step=choice.step)
    # Optuna takes only plain values as categories, so lists and maps go by their place.
    return choice[int(trial.suggest_categorical(name, list(range(len(choice)))))]


def _grid(tune: Tune, seed: int) -> list[dict[str, Any]]:
    """Every combination in a shuffled order, so that the first trials already spread over the space."""
    axes: list[list[Any]] = []
    for name, choice in tune.space.items():
        if not isinstance(choice, Range):
            axes.append(list(range(len(choice))))
        elif choice.step or choice.int:
            step = choice.step or 1.0
            values = choice.low + step * np.arange(int((choice.high - choice.low) / step + 1e-9) + 1)
            axes.append([int(value) if choice.int else float(value) for value in values])
        else:
            raise Invalid(
                "a grid needs a step here", path=f"train.tune.space.{name}", hint="add step, or list the values"
            )
    points = [dict(zip(tune.space, point, strict=True)) for point in itertools.product(*axes)]
    return [points[index] for index in np.random.default_rng(seed).permutation(len(points))]
