"""From training rows to a fitted scikit-learn Pipeline: plain, tuned, or chosen automatically."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from msgspec.structs import replace
from sklearn.pipeline import Pipeline

from modelkeep.core.ports import Engine, Progress, Silent
from modelkeep.spec.declaration import Train
from modelkeep.store.studies import Study
from modelkeep.train import auto, tune
from modelkeep.train.algorithms import Algorithm, resolve
from modelkeep.train.fitting import fit_one, primary_metric, quietly
from modelkeep.train.log import RunLog, Tried, Unlogged
from modelkeep.train.task import Class, read_target
from modelkeep.train.training import Training


@dataclass(frozen=True, slots=True)
class Fitted:
    """A fitted model.

    Attributes:
        pipeline: scikit-learn Pipeline of ``features`` and ``model``, taking a DataFrame of the inputs.
        algorithm: The one fitted; what ``auto`` chose.
        params: All parameters it was fitted with, defaults of ours and the seed included.
        task: ``classification``, ``regression`` or ``anomaly``.
        classes: Sorted labels of their own type; None unless classification.
        metric: The metric looked at first.
        tried: What tuning or ``auto`` tried, in order; empty for a plain fit.
        notes: Warnings of the last fit, each once.
    """

    pipeline: Pipeline
    algorithm: str
    params: dict[str, Any]
    task: str
    classes: tuple[Class, ...] | None
    metric: str
    tried: tuple[Tried, ...] = ()
    notes: tuple[str, ...] = ()


def fit(
    train: Train,
    table: pa.Table,
    target: str,
    inputs: Sequence[str],
    transformer: Any,
    *,
    base: Path,
    log: RunLog | None = None,
    progress: Progress | None = None,
    state: Path | None = None,
    study: Study | None = None,
    engine: Callable[[], Engine] | None = None,
) -> Fitted:
    """Train as declared. Equal arguments give equal models, given enough time for ``auto`` and ``tune``.

    The transformer runs once, before tuning divides the rows; so scores of tuning lean on feature statistics
    (means, vocabularies) of held-out rows too, never on their targets.

    Args:
        train: The declaration's part.
        table: The training rows, at least the inputs and the target.
        target: The target's column; empty for anomaly detection.
        inputs: Input columns, in the order the transformer was fitted on.
        transformer: A fitted scikit-learn transformer of a DataFrame of the inputs.
        base: The declaration's folder.
        log: Where parameters and trials are kept.
        progress: Who watches.
        state: A folder where a killed fit goes on; None keeps none.
        study: Where a killed tuning finds its finished trials; None keeps none.
        engine: Opens where trials are fitted, trees grow in parts and a user's function may work; None: here.

    Raises:
        Invalid: The declaration or the data cannot be trained on; the path says which.
        UserCodeFailed: The user's function or class raised.
        Conflict: Another process is tuning with the same study.
        Unavailable: Out of memory, or the engine is away.
    """
    log, progress = log or Unlogged(), progress or Silent()
    aim = read_target(train, table, target, base=base)
    metric = primary_metric(train.metric, aim.task, aim.classes)
    data = Training.of(table, inputs, aim, transformer)
    algorithm, given, tried = _settled(train, data, metric, base, log, progress, study, engine)
    progress.step("fit", 0, 1, name := algorithm.name)
    with quietly() as notes:
        model = fit_one(
            algorithm, given, data, seed=train.seed, log=log, progress=progress, state=state, engine=engine
        )
    progress.step("fit", 1, 1, name)
    log.params({"algorithm": name, **model.params})
    return Fitted(
        pipeline=Pipeline([("features", model.features), ("model", model.estimator)]),
        algorithm=name,
        params=model.params,
        task=aim.task,
        classes=aim.classes,
        metric=metric,
        tried=tried,
        notes=tuple(notes),
    )


def _settled(
    train: Train,
    data: Training,
    metric: str,
    base: Path,
    log: RunLog,
    progress: Progress,
    study: Study | None,
    engine: Callable[[], Engine] | None,
) -> tuple[Algorithm, dict[str, Any], tuple[Tried, ...]]:
    """Which algorithm with which parameters, after ``auto`` and ``tune`` had their say."""
    name, given = train.algorithm, dict(train.params)
    tried: tuple[Tried, ...] = ()
    if name == "auto":
        chosen = auto.choose(train, data, metric, base=base, log=log, progress=progress)
        name, given, tried = chosen.algorithm, chosen.params, chosen.tried
    algorithm = resolve(name, data.task, base=base)
    if train.tune:
        tuned = replace(train, params=given)
        found = tune.search(tuned, algorithm, data, metric, log=log, progress=progress, study=study, engine=engine)
        given, tried = found.params, (*tried, *found.tried)
    return algorithm, given, tried
