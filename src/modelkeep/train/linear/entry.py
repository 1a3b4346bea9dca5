"""Training a linear model on a table that is streamed in parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from sklearn.pipeline import Pipeline

from modelkeep.core.errors import Invalid
from modelkeep.core.ports import Engine, Progress, Silent
from modelkeep.spec.declaration import Train
from modelkeep.train.algorithms import resolve
from modelkeep.train.fit import Fitted
from modelkeep.train.fitting import primary_metric, quietly
from modelkeep.train.linear.blocks import Part, TablePart
from modelkeep.train.linear.learner import Watch
from modelkeep.train.log import RunLog, Unlogged
from modelkeep.train.task import Class

NAME = "linear_out_of_core"

Tables = Callable[[], Iterator[pa.Table]]
"""A part of a table: can be pickled, and called again and again; gives the same bounded tables each time."""


def fit_parts(
    train: Train,
    parts: Sequence[Tables],
    transformer: Any,
    target: str,
    classes: Sequence[Class] | None,
    *,
    inputs: Sequence[str] = (),
    engine: Engine | None = None,
    log: RunLog | None = None,
    progress: Progress | None = None,
    state: Path | None = None,
) -> Fitted:
    """Train ``linear_out_of_core`` on parts of a table, none of which is ever held whole.

    Rows should not be sorted by the target: order is mixed among parts and within a table's rows, but not further.
    Each pass reads every part and runs it through the transformer again, in a thread beside the learning one.

    Args:
        train: The declaration's part; its algorithm is ``linear_out_of_core``.
        parts: Each gives tables with at least the inputs and the target, for a classifier with labels out of
            ``classes``. More parts than workers let workers average more often and lose less to a kill.
        transformer: A fitted scikit-learn transformer of a DataFrame of the inputs.
        target: The target's column.
        classes: Sorted labels of all rows; None for regression.
        inputs: Columns in the order the transformer was fitted on; empty takes its ``feature_names_in_``.
        engine: Where parts are worked on; None takes threads of this process.
        log: Where parameters and the metrics of each pass are kept, as the passes end.
        progress: Who watches.
        state: A folder where a killed fit finds its checkpoint again; None keeps none.

    Returns:
        As ``train.fit.fit``.

    Raises:
        Invalid: A parameter, at ``train.params.NAME``; a part that does not fit; a loss that became infinite.
        Unavailable: A worker or the disk is away.
    """
    log, progress = log or Unlogged(), progress or Silent()
    task = "regression" if classes is None else "classification"
    estimator, params = _estimator(train, task)
    metric = primary_metric(train.metric, task, classes)
    names = tuple(inputs) or tuple(transformer.feature_names_in_)
    labels = None if classes is None else tuple(classes)
    handle = (lambda: transformer) if engine is None else engine.put(transformer)
    blocks = [TablePart(tables, handle, names, target, labels) for tables in parts]
    progress.step("fit", 0, 1, NAME)
    with quietly() as notes:
        found = None if labels is None else np.asarray(labels)
        estimator.fit_parts(blocks, features_of(blocks), found, engine, Watch(log, progress, state))
    progress.step("fit", 1, 1, NAME)
    log.params({"algorithm": NAME, **params})
    pipeline = Pipeline([("features", transformer), ("model", estimator)])
    return Fitted(pipeline, NAME, params, task, labels, metric, notes=tuple(notes))


def _estimator(train: Train, task: str) -> tuple[Any, dict[str, Any]]:
    if train.algorithm != NAME:
        raise Invalid(
            f"{train.algorithm} does not learn from parts of a table; {NAME} does", path="train.algorithm"
        )
    algorithm = resolve(NAME, task, base=Path())
    params = algorithm.params(train.params, seed=train.seed, rows=0)
    return algorithm.estimator(params, smallest_class=0), params


def features_of(parts: Sequence[Part]) -> int:
    """Columns of the first block there is.

    Raises:
        Invalid: There is none.
    """
    for part in parts:
        for x, _ in part():
            return int(x.shape[1])
    raise Invalid("there are no rows to train on", path="data")
