"""What is asked of all rows of a table in parts that are never held together: a model, metrics, a signature."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, reduce
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from modelkeep.core.ports import BlobStore, Engine, Progress
from modelkeep.formats.inference import infer_fields, merge_fields
from modelkeep.formats.signature import Field
from modelkeep.lifecycle.tables import BlobParts, PartRows, TablePart
from modelkeep.spec.declaration import Declaration
from modelkeep.train import evaluate_parts
from modelkeep.train.evaluate_parts import Sums
from modelkeep.train.fit import Fitted
from modelkeep.train.linear import entry
from modelkeep.train.log import RunLog
from modelkeep.train.predict import outputs
from modelkeep.train.task import read_target, truth

MOST_VALUES = 100_000
"""Distinct values of a target up to which all are told."""


def learns(declaration: Declaration) -> bool:
    """Whether what is declared learns from parts, none of which is held whole."""
    return declaration.train.algorithm == entry.NAME and not declaration.train.tune


def fit(
    blobs: BlobStore,
    parts: Sequence[TablePart],
    engine: Engine,
    declaration: Declaration,
    transformer: Any,
    inputs: Sequence[str],
    *,
    base: Path,
    log: RunLog,
    progress: Progress,
    state: Path,
) -> Fitted:
    """Train on the rows of all parts; what the task is and which classes there are is asked of all rows too.

    Raises:
        Invalid: As ``train.fit.fit``.
    """
    train, target = declaration.train, declaration.data.target
    aim = read_target(train, distinct(blobs, parts, engine, target), target, base=base)
    columns = (*inputs, *(() if target in inputs else (target,)))
    return entry.fit_parts(
        train,
        [PartRows(blobs, part, columns) for part in parts],
        transformer,
        target,
        aim.classes,
        inputs=inputs,
        engine=engine,
        log=log,
        progress=progress,
        state=state,
    )


def metrics(
    blobs: BlobStore,
    parts: Sequence[TablePart],
    engine: Engine,
    *,
    pipeline: Any,
    inputs: Sequence[str],
    target: str,
    task: str,
    classes: Sequence[Any] | None,
    names: Sequence[str],
) -> dict[str, float]:
    """The metrics of all rows, of those that sums tell.

    Args:
        names: Metrics of interest.
    """
    columns = [*inputs, *([] if target in inputs else [target])]
    work = partial(
        _summed, blobs, engine.put(pipeline), tuple(columns), tuple(inputs), target, task, classes, tuple(names)
    )
    sums = reduce(Sums.merge, engine.map(work, parts), Sums(0, np.zeros((0, 0))))
    return evaluate_parts.finish(sums, names, classes) if sums.rows else {}


def _summed(
    blobs: BlobStore,
    pipeline: Callable[[], Any],
    columns: tuple[str, ...],
    inputs: tuple[str, ...],
    target: str,
    task: str,
    classes: Sequence[Any] | None,
    names: tuple[str, ...],
    part: TablePart,
) -> Sums:
    table = BlobParts(blobs).read(part, columns)
    known = truth(table, target, task)
    if known is None or not len(known):
        return Sums(0, np.zeros((0, 0)))
    return evaluate_parts.partial(known, outputs(pipeline(), table, inputs, task, classes), names)


def fields(
    blobs: BlobStore, parts: Sequence[TablePart], engine: Engine, inputs: Sequence[str], strict: Sequence[str]
) -> tuple[Field, ...]:
    """The fields of a signature, with what all rows hold."""
    work = partial(_fields, blobs, tuple(inputs), tuple(strict))
    return reduce(merge_fields, engine.map(work, parts))


def _fields(
    blobs: BlobStore, inputs: tuple[str, ...], strict: tuple[str, ...], part: TablePart
) -> tuple[Field, ...]:
    return infer_fields(BlobParts(blobs).read(part, inputs), inputs, strict)


def distinct(blobs: BlobStore, parts: Sequence[TablePart], engine: Engine, column: str) -> pa.Table:
    """The distinct values of a column, each once; only the first 100,000 of more."""
    found: pa.ChunkedArray | None = None
    for values in engine.map(partial(_distinct, blobs, column), parts):
        both = values if found is None else pa.chunked_array([*found.chunks, *values.chunks])
        found = pa.chunked_array([pc.unique(both).slice(0, MOST_VALUES)])
    return pa.table({column: found})


def _distinct(blobs: BlobStore, column: str, part: TablePart) -> pa.ChunkedArray:
    values = pc.unique(BlobParts(blobs).read(part, [column]).column(column)).slice(0, MOST_VALUES)
    return pa.chunked_array([values])
