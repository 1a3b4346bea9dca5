"""Hyperparameter search with Optuna, resumable after a kill and repeatable by seed.

Trials are asked for in rounds of fixed size, each with a seed of its own, and told in order once a whole round has
ended. Only this process asks and tells; fits are done wherever there is room. So a search gives the same trials on
any engine and any number of cores, whether or not it was interrupted.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import optuna
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, PartialFixedSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from modelkeep.core import digests
from modelkeep.core.errors import Invalid, ModelkeepError
from modelkeep.core.ports import Engine, Progress
from modelkeep.spec.declaration import Range, Train, Tune
from modelkeep.spec.units import seconds
from modelkeep.stats.metrics import METRICS
from modelkeep.store.studies import Study
from modelkeep.train.algorithms import Algorithm
from modelkeep.train.fitting import quietly, reason
from modelkeep.train.journal import Journal
from modelkeep.train.log import RunLog, Status, Tried
from modelkeep.train.splits import cross_validation, growing_holdout
from modelkeep.train.training import Training
from modelkeep.train.trials import Fit, Fits, Problem, Scored, fitting

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
    study: Study | None = None,
    engine: Callable[[], Engine] | None = None,
) -> Found:
    """Find good parameters.

    Args:
        train: With ``tune`` set.
        algorithm: What to tune; a user's function is called with the trial's parameters.
        data: All training rows.
        metric: What to look at.
        log: Each trial becomes a child run.
        progress: Who watches.
        study: Keeps finished trials across a kill.
        engine: Opens where trials are fitted; None fits them here.

    Raises:
        Invalid: The space names a parameter that does not exist, or a grid has no steps.
        Conflict: Another process has gone on with the study.
        Unavailable: The engine is away, or a fit kills every worker it is given to.
        ModelkeepError: Every trial failed; the error of the last one.
    """
    if train.tune is None or data.target is None:
        raise Invalid("tuning needs a target to score on", path="train.tune")
    hunt = _Hunt(train, train.tune, algorithm=algorithm, data=data, metric=metric, log=log)
    stop = time.monotonic() + (seconds(train.tune.timeout) if train.tune.timeout else float("inf"))
    hunt.begin(study)
    with quietly(), fitting(hunt.problem, train.tune.parallel, engine) as fits:
        while hunt.done < hunt.total and (time.monotonic() < stop or not hunt.scored):
            hunt.advance(fits)
            progress.step("tune", hunt.done, hunt.total, hunt.best_note())
    return hunt.found()


class _Hunt:
    """One search under way."""

    def __init__(
        self, train: Train, tune: Tune, *, algorithm: Algorithm, data: Training, metric: str, log: RunLog
    ) -> None:
        self.train, self.tune, self.algorithm = train, tune, algorithm
        self.data, self.metric, self.log = data, metric, log
        _check_space(tune, algorithm, train)
        self.grid = _grid(tune, train.seed) if tune.sampler == "grid" else None
        self.total = min(tune.trials, len(self.grid)) if self.grid is not None else tune.trials
        if tune.validation == "cv":
            folds = cross_validation(data, tune.folds, train.seed)
        else:
            folds = growing_holdout(data, train.seed, prune=tune.prune)
        self.problem = Problem(algorithm, folds, metric, train.seed)
        every = range(len(folds))
        # A trial that may be called off after a fold waits for what that fold says.
        self.waves = [[fold] for fold in every] if tune.prune else [list(every)]
        self.last_error: ModelkeepError | None = None

    def begin(self, study: Study | None) -> None:
        """Open the study, and log the trials that it has."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        name = digests.of_value(
            [
                msgspec.to_builtins(self.train),
                self.metric,
                list(self.data.matrix.shape),
                np.ascontiguousarray(self.data.target).tobytes(),
            ]
        )
        self.journal = Journal(study)
        self.study = optuna.create_study(
            storage=JournalStorage(self.journal),
            study_name=name,
            direction="maximize" if METRICS[self.metric].higher_is_better else "minimize",
            pruner=self._pruner(),
            load_if_exists=True,
        )
        for trial in self.kept():
            self._relog(trial)

    def kept(self) -> list[FrozenTrial]:
        """Trials that have ended, in order. Only whole rounds are kept, so none is ever found under way."""
        return self.study.get_trials(deepcopy=False, states=_ENDED)

    @property
    def done(self) -> int:
        """How many trials ended."""
        return len(self.kept())

    @property
    def scored(self) -> bool:
        """Whether any trial has a final score."""
        return any(trial.state is TrialState.COMPLETE for trial in self.kept())

    def advance(self, fits: Fits) -> None:
        """Ask for one round of trials, have them fitted, tell the study in order, keep it."""
        begin = self.done
        asked = [self._ask(slot) for slot in range(begin, min(begin + self.tune.parallel, self.total))]
        for wave in self.waves:
            wanted = [(one, fold) for one in asked if one.end is None for fold in wave]
            given = [Fit({**self.train.params, **one.params}, fold, one.run) for one, fold in wanted]
            for (one, fold), scored in zip(wanted, fits(given), strict=True):
                self._settle(one, fold, scored)
        # Pruning looks at finished trials, so none of a round counts as finished before all are.
        for one in asked:
            end = one.end or self._ended(one)
            one.trial.set_user_attr("end", end)
            if end["status"] == "FINISHED":
                self.study.tell(one.trial, end["score"])
            else:
                pruned = end["status"] == "KILLED"
                self.study.tell(one.trial, state=TrialState.PRUNED if pruned else TrialState.FAIL)
            one.run.end(end["status"])
        self.journal.keep()

    def _ask(self, slot: int) -> _Asked:
        seed = (self.train.seed * 1_000_003 + slot) % 2**32
        sampler: BaseSampler = RandomSampler(seed=seed)
        if self.tune.sampler == "tpe":
            sampler = TPESampler(seed=seed, n_startup_trials=min(10, max(3, self.total // 3)))
        self.study.sampler = PartialFixedSampler(self.grid[slot], sampler) if self.grid is not None else sampler
        trial = self.study.ask()
        params = {name: _suggest(trial, name, choice) for name, choice in self.tune.space.items()}
        trial.set_user_attr("params", msgspec.to_builtins(params))
        run = self.log.child(f"trial {trial.number}")
        run.params(params)
        return _Asked(trial, params, run)

    def _settle(self, one: _Asked, fold: int, scored: Scored) -> None:
        """A fold of a trial was scored: the study hears of it, and may call the trial off."""
        if one.end is not None:  # it failed on an earlier fold, when this one was under way
            return
        one.seconds += scored.seconds
        scored.said.replay(one.run)
        if scored.error is not None or scored.score is None:
            self.last_error = scored.error
            one.end = one.ended("FAILED", None, reason(scored.error) if scored.error else "")
            return
        one.rows = scored.rows
        one.scores.append(scored.score)
        value = self._value(one.scores)
        one.run.metric(self.metric, value, fold)
        one.trial.report(value, fold)
        if fold + 1 < len(self.problem.folds) and one.trial.should_prune():
            one.end = one.ended("KILLED", value, "stopped early")

    def _ended(self, one: _Asked) -> dict[str, Any]:
        """How a trial ended that was scored on all folds."""
        value = self._value(one.scores)
        if not np.isfinite(value):
            return one.ended("FAILED", None, f"{self.metric} is undefined")
        return one.ended("FINISHED", value, "")

    def _value(self, scores: list[float]) -> float:
        """Folds are averaged; on a growing hold-out the latest, on the most rows, counts."""
        return float(np.mean(scores)) if self.tune.validation == "cv" else scores[-1]

    def _relog(self, trial: FrozenTrial) -> None:
        run = self.log.child(f"trial {trial.number}")
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
        return f"best {self.metric} {best.value:.4g} (trial {best.number})"

    def _best(self) -> FrozenTrial:
        complete = [trial for trial in self.kept() if trial.state is TrialState.COMPLETE]
        sign = -1.0 if METRICS[self.metric].higher_is_better else 1.0
        return min(complete, key=lambda trial: (sign * float(trial.value or 0.0), trial.number))

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


@dataclass(slots=True)
class _Asked:
    """A trial under way."""

    trial: Trial
    params: dict[str, Any]
    run: RunLog
    scores: list[float] = field(default_factory=list)
    rows: int = 0
    seconds: float = 0.0
    end: dict[str, Any] | None = None

    def ended(self, status: Status, score: float | None, note: str) -> dict[str, Any]:
        """What the study keeps of it."""
        return {"status": status, "score": score, "rows": self.rows, "seconds": self.seconds, "note": note}


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
