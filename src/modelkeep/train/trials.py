"""Fits of a search: one fold of one trial each, in threads here or as tasks of an engine.

Whoever works on them knows nothing of the search: parameters come in; a score, and what is to be logged, go out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from modelkeep.core.errors import ModelkeepError
from modelkeep.core.ports import Engine
from modelkeep.train.algorithms import Algorithm
from modelkeep.train.fitting import answers, fit_one, quietly, score
from modelkeep.train.log import Recorded, RunLog
from modelkeep.train.splits import Folds


@dataclass(frozen=True, slots=True)
class Problem:
    """What all trials have in common.

    Attributes:
        algorithm: What is tuned.
        folds: Of the training rows.
        metric: Of the rows not fitted on.
        seed: Of every fit.
    """

    algorithm: Algorithm
    folds: Folds
    metric: str
    seed: int


class Fit(NamedTuple):
    """One fit to be done.

    Attributes:
        params: Of the algorithm, as declared and as tried.
        fold: Its number.
        run: Hears of it, where it is worked on in this process.
    """

    params: dict[str, Any]
    fold: int
    run: RunLog


class Scored(NamedTuple):
    """What came of a fit.

    Attributes:
        score: Of the rows held out; None when it failed.
        error: Why.
        rows: How many it was fitted on.
        seconds: What fitting and scoring took.
        said: To be logged.
    """

    score: float | None
    error: ModelkeepError | None
    rows: int
    seconds: float
    said: Recorded


Fits = Callable[[Sequence[Fit]], Iterable[Scored]]
"""Does fits and gives what came of them, in order."""


@contextmanager
def fitting(problem: Problem, parallel: int, engine: Callable[[], Engine] | None) -> Iterator[Fits]:
    """Where fits are done.

    Args:
        parallel: The most that are done at once in this process, where a fit uses one core.
        engine: Opens where else they are done; None does them here.
    """
    if engine is not None:
        opened = engine()
        shared = opened.put(problem)
        yield lambda fits: opened.map(partial(_there, shared), [(fit.params, fit.fold) for fit in fits])
        return
    at_once = min(parallel, os.cpu_count() or 1) if problem.algorithm.family.serial else 1
    with ThreadPoolExecutor(at_once) as threads:
        yield lambda fits: (map if at_once == 1 else threads.map)(partial(_here, problem), fits)


def _here(problem: Problem, fit: Fit) -> Scored:
    return _done(problem, fit.params, fit.fold, fit.run)


def _there(shared: Callable[[], Problem], fit: tuple[dict[str, Any], int]) -> Scored:
    """At a worker, which has a core of its own but no runs."""
    problem, (params, fold), said = shared(), fit, Recorded()
    if "n_jobs" in problem.algorithm.family.defaults:
        params = {"n_jobs": 1, **params}
    with quietly():
        return _done(problem, params, fold, said)._replace(said=said)


def _done(problem: Problem, params: dict[str, Any], fold: int, run: RunLog) -> Scored:
    begun, (fitted, held) = time.perf_counter(), problem.folds[fold]
    found, fault = None, None
    try:
        model = fit_one(problem.algorithm, params, fitted, seed=problem.seed, log=run)
        said = answers(problem.algorithm, model, held)
        found = score(problem.metric, problem.algorithm.name, said, held)
    except ModelkeepError as error:
        fault = error
    return Scored(found, fault, fitted.rows, time.perf_counter() - begun, Recorded())
