"""Which task it is, and the target as an array that fits it."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from modelkeep.core.errors import Invalid
from modelkeep.core.plugins import load_object
from modelkeep.spec.declaration import Train
from modelkeep.train.algorithms import tasks_of

Class = bool | int | str

FEW = 20
"""Distinct whole numbers up to which they are taken for classes."""


@dataclass(frozen=True, slots=True)
class Target:
    """The target, read.

    Attributes:
        task: ``classification``, ``regression`` or ``anomaly``.
        y: Shape (n,): labels of their own type, float64 values, or None without a target.
        classes: Sorted, of their own type; None unless classification.
        smallest: Rows of the rarest class; 0 unless classification.
    """

    task: str
    y: npt.NDArray[Any] | None
    classes: tuple[Class, ...] | None = None
    smallest: int = 0


def read_target(train: Train, table: pa.Table, target: str, *, base: Path) -> Target:
    """Decide the task and read the target column.

    Without an explicit ``train.task`` the algorithm decides if it does one task only; else the target: booleans,
    strings and few distinct whole numbers are classes, other numbers are values.

    Raises:
        Invalid: At ``data.target``: no such column, missing values, a constant, infinite values, a type that does
            not fit the task. At ``train.task``: the algorithm cannot do it.
    """
    if not target:
        if "anomaly" not in (train.task, *_one_task(train, base)):
            raise Invalid(
                f"{train.algorithm} needs a target", path="data.target", hint="name the column to predict"
            )
        return Target("anomaly", None)
    column = _column(table, target)
    task = infer(train, column, base=base)
    if task == "classification":
        y, classes, smallest = labels(column)
        return Target(task, y, classes, smallest)
    if task == "regression":
        return Target(task, values(column))
    return Target(task, None)


def infer(train: Train, column: pa.ChunkedArray, *, base: Path) -> str:
    """``classification``, ``regression`` or ``anomaly``, by the declaration, the algorithm, then the target."""
    if train.task != "auto":
        return train.task
    possible = _one_task(train, base)
    if len(possible) == 1:
        return possible[0]
    kind = column.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_boolean(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "classification"
    if pa.types.is_integer(kind):
        return "classification" if pc.count_distinct(column).as_py() <= FEW else "regression"
    if pa.types.is_floating(kind) and pc.count_distinct(column).as_py() == 2:
        return "classification" if pc.all(pc.is_in(column, pa.array([0.0, 1.0], kind))).as_py() else "regression"
    return "regression"


def labels(column: pa.ChunkedArray) -> tuple[npt.NDArray[Any], tuple[Class, ...], int]:
    """Labels of their own type, the sorted classes, and the rows of the rarest.

    Strings become fixed-width Unicode, whole-number floats become int64.

    Raises:
        Invalid: Only one class, or values that are no labels.
    """
    names, codes = _coded(column)
    counts = np.bincount(codes, minlength=len(names))
    seen = np.flatnonzero(counts)  # a dictionary may name categories that no row has
    if len(seen) < 2:
        only = f"only {names[seen[0]]!r}" if len(seen) else "nothing"
        raise Invalid(
            f"the target holds {only}; a classifier needs at least two classes",
            path="data.target",
            hint="check the filters and the source, or choose another target",
        )
    order = seen[np.argsort(names[seen], kind="stable")]
    return names[codes], tuple(names[order].tolist()), int(counts[seen].min())


def truth(table: pa.Table, target: str, task: str) -> npt.NDArray[Any] | None:
    """What metrics compare answers with: the target of rows not fitted on, (n,).

    Labels of their own type, of any number of classes; float64 values; for anomaly detection True where anomalous
    (true, 1 of 0 and 1, or -1 of -1 and 1). None when there is no such column.

    Raises:
        Invalid: At ``data.target``: missing values, or a type that does not fit the task.
    """
    if not target or target not in table.column_names:
        return None
    column = _column(table, target)
    if task == "regression":
        return _numbers(column)
    names, codes = _coded(column)
    if task == "classification":
        return np.asarray(names[codes])
    if names.dtype.kind not in "bi" or not {*names.tolist()} <= {-1, 0, 1} or len(names) > 2:
        raise Invalid(
            f"the target marks anomalies with {', '.join(str(name) for name in names[:5])}",
            path="data.target",
            hint="use true and false, 1 and 0, or scikit-learn's -1 and 1; or name no target",
        )
    return np.asarray(names[codes] == (-1 if -1 in names else 1))


def values(column: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    """The target as float64 of shape (n,).

    Raises:
        Invalid: Not a number, infinite or NaN, or always the same.
    """
    y = _numbers(column)
    if len(y) and y.min() == y.max():
        raise Invalid(f"the target is always {y[0]:g}; there is nothing to learn", path="data.target")
    return y


def _numbers(column: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        raise Invalid(
            f"the target is of type {kind}; regression needs numbers",
            path="data.target",
            hint="cast it under data.clean, or set train.task: classification",
        )
    y: npt.NDArray[np.float64] = column.cast(pa.float64()).to_numpy()
    bad = len(y) - int(np.isfinite(y).sum())
    if bad:
        raise Invalid(
            f"{bad} of {len(y)} target values are infinite or NaN",
            path="data.target",
            hint="drop_missing or filter them under data.clean",
        )
    return y


def _coded(column: pa.ChunkedArray) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Different labels in order of appearance, and each row's place among them."""
    coded = column.combine_chunks()
    coded = coded if pa.types.is_dictionary(coded.type) else coded.dictionary_encode()
    if isinstance(coded, pa.ChunkedArray):
        coded = coded.unify_dictionaries().combine_chunks()
    return _class_array(coded.dictionary), coded.indices.to_numpy(zero_copy_only=False)


def _column(table: pa.Table, target: str) -> pa.ChunkedArray:
    if target not in table.column_names:
        raise Invalid(
            f"no column {target!r}; the table has {', '.join(table.column_names[:50])}", path="data.target"
        )
    column = table.column(target)
    if not table.num_rows:
        raise Invalid("there are no rows to train on", path="data")
    missing = column.null_count
    if missing:
        raise Invalid(
            f"{missing} of {table.num_rows} rows have no target {target!r}",
            path="data.target",
            hint=f"add '- drop_missing: {{columns: [{target}]}}' under data.clean",
        )
    return column


def _class_array(dictionary: pa.Array) -> npt.NDArray[Any]:
    kind = dictionary.type
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind):
        return np.asarray(dictionary.to_numpy(zero_copy_only=False))
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return np.array(dictionary.to_pylist(), dtype=np.str_)
    if pa.types.is_floating(kind):
        floats = dictionary.to_numpy(zero_copy_only=False)
        whole = floats.astype(np.int64) if np.isfinite(floats).all() else None
        if whole is not None and (whole == floats).all():
            return np.asarray(whole)
    raise Invalid(
        f"the target is of type {kind}; classes are booleans, whole numbers or strings",
        path="data.target",
        hint="cast it under data.clean, or set train.task: regression",
    )


def _one_task(train: Train, base: Path) -> tuple[str, ...]:
    """The tasks the algorithm can do, as far as its name or class tells."""
    known = tasks_of(train.algorithm)
    if known or ("." not in train.algorithm and ":" not in train.algorithm):
        return known
    found = load_object(train.algorithm, base=base, path="train.algorithm")
    if not inspect.isclass(found):
        return ()
    from sklearn.base import ClassifierMixin, OutlierMixin, RegressorMixin

    mixins = ((ClassifierMixin, "classification"), (RegressorMixin, "regression"), (OutlierMixin, "anomaly"))
    return tuple(task for mixin, task in mixins if issubclass(found, mixin))
