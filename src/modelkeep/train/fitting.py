"""One fit and one score: what plain training, ``tune`` and ``auto`` are all made of."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modelkeep.core.errors import Invalid, ModelkeepError
from modelkeep.core.ports import Engine, Progress
from modelkeep.spec.names import unknown
from modelkeep.stats.metrics import METRICS, evaluate
from modelkeep.stats.outputs import Outputs
from modelkeep.train import boosting, forests
from modelkeep.train.algorithms import Algorithm
from modelkeep.train.faults import explain
from modelkeep.train.log import RunLog, UserRun
from modelkeep.train.predict import of_estimator
from modelkeep.train.task import Class
from modelkeep.train.training import Training, fit_function, wants_raw


@dataclass(frozen=True, slots=True)
class Model:
    """A fitted estimator and what must stand before it.

    Attributes:
        estimator: Fitted.
        features: The transformer whose output it takes, or ``passthrough`` when it takes the raw inputs.
        params: In full, as given to the estimator.
    """

    estimator: Any
    features: Any
    params: dict[str, Any]


def fit_one(
    algorithm: Algorithm,
    given: Mapping[str, Any],
    data: Training,
    *,
    seed: int,
    log: RunLog,
    progress: Progress | None = None,
    state: Path | None = None,
    engine: Callable[[], Engine] | None = None,
) -> Model:
    """Fit once.

    Args:
        engine: Opens where parts may be fitted; None fits here.
        progress: Told by an estimator that can be watched.
        state: Where such an estimator keeps checkpoints; None keeps none.

    Raises:
        Invalid: A parameter or the data do not suit the algorithm; the path says which.
        UserCodeFailed: The user's function or class raised.
        Unavailable: Out of memory.
    """
    params = algorithm.params(given, seed=seed, rows=data.rows)
    if algorithm.function:
        made = fit_function(algorithm, data, nested(params), UserRun(log, engine))
        return Model(made, "passthrough" if wants_raw(made, data) else data.features, params)
    estimator = algorithm.estimator(params, smallest_class=data.smallest)
    matrix, features = data.suited(algorithm, estimator)
    try:
        if data.target is None:
            estimator.fit(matrix)
        elif engine is not None and forests.divides(estimator):
            estimator = forests.grow(estimator, matrix, data.target, engine(), progress)
        elif engine is not None and boosting.divides(estimator):
            estimator = boosting.grow(estimator, matrix, data.target, engine())
        elif hasattr(estimator, "fit_watched"):
            estimator.fit_watched(matrix, data.target, log, progress=progress, state=state)
        else:
            estimator.fit(matrix, data.target)
    except Exception as error:
        raise explain(error, algorithm, data) from error
    return Model(estimator, features, params)


def answers(algorithm: Algorithm, model: Model, data: Training) -> Outputs:
    """What a model fitted on other rows of the same table says about these."""
    if model.features == "passthrough":
        rows: Any = data.train
    elif algorithm.function:
        rows = data.matrix
    else:
        rows = data.suited(algorithm, model.estimator)[0]
    return of_estimator(model.estimator, rows, data.task, data.classes)


def score(metric: str, name: str, said: Outputs, data: Training) -> float:
    """The metric of what the algorithm called ``name`` said about rows not fitted on.

    Raises:
        Invalid: At ``train.metric``: the model gives no such answers.
    """
    if METRICS[metric].needs == "probability" and said.probability is None:
        raise Invalid(
            f"{metric} needs probabilities, and {name} gives none",
            path="train.metric",
            hint="choose a metric on labels (f1, accuracy, balanced_accuracy, mcc), or another algorithm",
        )
    return evaluate(metric, np.asarray(data.target), said)


def primary_metric(named: str, task: str, classes: Sequence[Class] | None) -> str:
    """The metric looked at first: as named, else ``roc_auc`` (two classes), ``f1_macro`` (more), or ``rmse``.

    Raises:
        Invalid: At ``train.metric``: unknown, or not for this task.
    """
    if not named:
        if task == "regression":
            return "rmse"
        return "roc_auc" if classes is None or len(classes) == 2 else "f1_macro"
    judged = "regression" if task == "regression" else "classification"
    able = [name for name, metric in METRICS.items() if metric.task == judged]
    if named not in METRICS:
        raise Invalid(unknown(named, able, "a metric"), path="train.metric")
    if named not in able:
        raise Invalid(
            f"{named} is for {METRICS[named].task}, but the task is {task}",
            path="train.metric",
            hint=f"choose one of: {', '.join(able)}",
        )
    return named


def nested(params: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names as maps within maps: ``{"optimizer.lr": 1}`` becomes ``{"optimizer": {"lr": 1}}``."""
    found: dict[str, Any] = {}
    for name, value in params.items():
        *outer, last = name.split(".")
        place = found
        for part in outer:
            inner = place.get(part)
            place[part] = place = dict(inner) if isinstance(inner, Mapping) else {}
        place[last] = value
    return found


@contextmanager
def quietly() -> Iterator[list[str]]:
    """Catch the warnings of a fit, to be told once and not on the terminal for each fold.

    Yields:
        A list that holds the first line of each different warning once the block has ended.
    """
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        try:
            yield notes
        finally:
            lines = (str(warning.message).strip().split("\n", maxsplit=1)[0] for warning in caught)
            notes += dict.fromkeys(lines)


def reason(error: ModelkeepError) -> str:
    """An error as a short note: its beginning, and its end, where a traceback says what was raised."""
    text = " ".join(error.message.split())
    return text if len(text) <= 200 else f"{text[:80]}...{text[-117:]}"
