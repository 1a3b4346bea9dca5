"""Fitted feature steps over Arrow tables: what scikit-learn's transform gives, each string encoded once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    RobustScaler,
    StandardScaler,
)

from modelkeep.core.compiled import Pays
from modelkeep.core.errors import ModelkeepError
from modelkeep.formats import unfit
from modelkeep.formats.steps import HashBuckets, RareCategories, Strings, only_fills

Floats = npt.NDArray[np.float64]

_pays = Pays(200_000)
"""Hashing here, which needs compiled code."""


def to_frame(table: pa.Table, inputs: Sequence[str]) -> pd.DataFrame:
    """The input columns as pandas sees them: numbers with missing values become float64 with NaN.

    Floats of other widths and decimals become float64 too, as they are when served. Columns stay blocks of their
    own, so that numbers without missing values are not copied.
    """
    chosen = table.select(list(inputs))
    for place, field in enumerate(chosen.schema):
        narrow = pa.types.is_float32(field.type) or pa.types.is_float16(field.type)
        if narrow or pa.types.is_decimal(field.type):
            chosen = chosen.set_column(place, field.name, chosen.column(place).cast(pa.float64()))
    return chosen.to_pandas(split_blocks=True, self_destruct=False, date_as_object=False)  # type: ignore[no-any-return]


def encoded(transformer: Any, table: pa.Table, inputs: Sequence[str], order: Literal["C", "F"] = "C") -> Any:
    """``transformer.transform`` of the rows, equal to the last bit.

    Imputed and scaled numbers and encoded or hashed strings are worked on column by column, straight from Arrow;
    where there is anything else the transformer itself is asked.

    Args:
        transformer: A fitted ColumnTransformer of DataFrames, as ``FittedFeatures.to_sklearn`` makes them.
        table: At least the columns ``inputs``.
        inputs: In the order of fitting.
        order: Of the matrix in memory, where it is worked on here.

    Returns:
        Shape (rows, features), float64; a SciPy matrix where the transformer gives one (made here it holds every
        number, also those that are 0).

    Raises:
        Invalid: A step does not take what some rows hold; names their columns.
        UserCodeFailed: A feature function of the user's raised.
    """
    try:
        return transformed(transformer, table, inputs, order)
    except ModelkeepError:
        raise
    except Exception as error:
        raise refused(error, transformer, table, inputs) from error


def refused(error: Exception, pipeline: Any, table: pa.Table, inputs: Sequence[str], start: int = 0) -> Exception:
    """The error to raise in place of one that a fitted pipeline raised of these rows.

    Args:
        start: The place of the first of them.
    """
    found = unfit.found(pipeline, to_frame(table, inputs))
    return unfit.told(found, table.num_rows, start) if found else error


def transformed(transformer: Any, table: pa.Table, inputs: Sequence[str], order: Literal["C", "F"] = "C") -> Any:
    """The same with the errors that the steps themselves raise."""
    branches = _branches(transformer, table)
    hashes = branches is not None and transformer.sparse_output_
    if branches is None or (hashes and not _pays.with_more(table.num_rows)):
        return transformer.transform(to_frame(table, inputs))
    if hashes:
        return _sparse(branches, table)
    widths = [_width(steps, columns) for steps, columns in branches]
    out = np.empty((table.num_rows, sum(widths)), order=order)
    at = 0
    for (steps, columns), width in zip(branches, widths, strict=True):
        work = _categories if steps and isinstance(steps[0], Strings) else _numbers
        work(steps, [table.column(name) for name in columns], out[:, at : at + width])
        at += width
    return out


Branch = tuple[list[Any], list[str]]
"""Fitted transformers in order, and the columns that go through them."""


def _branches(transformer: Any, table: pa.Table) -> list[Branch] | None:
    """None where not all is known here."""
    is_sparse = getattr(transformer, "sparse_output_", None)
    if is_sparse is None or not table.num_rows:
        return None
    last = _hashing if is_sparse else _last
    found: list[Branch] = []
    for _, part, columns in transformer.transformers_:
        if isinstance(columns, str) or part == "drop":
            return None
        steps = [step for _, step in part.steps] if isinstance(part, Pipeline) else [part]
        if isinstance(steps[0], FunctionTransformer) or steps == ["passthrough"]:
            if steps != ["passthrough"] and steps[0].func is not None:
                return None
            steps = []
        types = [table.schema.field(name).type for name in columns]
        if steps and isinstance(steps[0], Strings):
            known = all(map(_of_strings, steps[1:-1])) and len(steps) > 1 and last(steps[-1])
            known = known and (len(steps) == 2 or not is_sparse)
            known = known and all(map(pa.types.is_string, types))
        else:
            known = all(map(_of_numbers, steps)) and any(map(pa.types.is_floating, types)) | bool(steps)
            known = known and all(pa.types.is_integer(kind) or pa.types.is_float64(kind) for kind in types)
        if not known:
            return None
        found.append((steps, list(columns)))
    return found


def _of_numbers(step: Any) -> bool:
    if only_fills(step):
        return True
    if isinstance(step, StandardScaler):
        return bool(step.with_mean and step.with_std)
    if isinstance(step, RobustScaler):
        return bool(step.with_centering and step.with_scaling)
    return isinstance(step, MinMaxScaler) and not step.clip


def _of_strings(step: Any) -> bool:
    if isinstance(step, SimpleImputer):
        return not step.add_indicator
    return isinstance(step, RareCategories) or _last(step)


def _last(step: Any) -> bool:
    if isinstance(step, OneHotEncoder):
        return step.drop is None and step.min_frequency is None and step.max_categories is None
    return isinstance(step, OrdinalEncoder)


def _hashing(step: Any) -> bool:
    return isinstance(step, HashBuckets)


def _sparse(branches: list[Branch], table: pa.Table) -> Any:
    """Every row has a value of each number, and a 1 for each hashed string."""
    from scipy.sparse import csr_matrix

    from modelkeep.train import murmur  # Numba takes a while to import

    rows, entries = table.num_rows, sum(len(columns) for _, columns in branches)
    values = np.ones((rows, entries))
    places = np.empty((rows, entries), np.int32)
    at = width = 0
    for steps, columns in branches:
        end = at + len(columns)
        chosen = [table.column(name) for name in columns]
        if steps and _hashing(steps[-1]):
            count = steps[-1].buckets
            for column in chosen:
                murmur.buckets(column, count, places[:, at], width)
                at, width = at + 1, width + count
        else:
            _numbers(steps, chosen, values[:, at:end])
            places[:, at:end] = np.arange(width, width + len(columns))
            at, width = end, width + len(columns)
    edges = np.arange(0, rows * entries + 1, entries)  # SciPy makes them as narrow as they may be
    return csr_matrix((values.ravel(), places.ravel(), edges), shape=(rows, width))


def _width(steps: list[Any], columns: list[str]) -> int:
    last = steps[-1] if steps else None
    return sum(map(len, last.categories_)) if isinstance(last, OneHotEncoder) else len(columns)


def _numbers(steps: list[Any], columns: list[pa.ChunkedArray], out: Floats) -> None:
    for at, column in enumerate(columns):
        values = out[:, at]
        values[:] = column.cast(pa.float64(), safe=False).to_numpy()
        for step in steps:  # in scikit-learn's own order of operations
            if isinstance(step, SimpleImputer):
                np.copyto(values, step.statistics_[at], where=np.isnan(values))
            elif isinstance(step, StandardScaler):
                values -= step.mean_[at]
                values /= step.scale_[at]
            elif isinstance(step, RobustScaler):
                values -= step.center_[at]
                values /= step.scale_[at]
            else:
                values *= step.scale_[at]
                values += step.min_[at]


def _categories(steps: list[Any], columns: list[pa.ChunkedArray], out: Floats) -> None:
    coded = [_coded(column) for column in columns]
    # Short columns are padded with their first string: each goes through the steps on its own.
    longest = max(len(names) for _, names in coded)
    made: Any = np.array([names + names[:1] * (longest - len(names)) for _, names in coded], dtype=object).T
    for step in steps[1:]:
        made = step.transform(made)
    table = np.asarray(made.toarray() if hasattr(made, "toarray") else made, dtype=np.float64)
    last, at = steps[-1], 0
    for place, (codes, names) in enumerate(coded):
        width = len(last.categories_[place]) if isinstance(last, OneHotEncoder) else 1
        wide = codes.astype(np.intp)
        for feature in range(at, at + width):
            np.take(np.ascontiguousarray(table[: len(names), feature]), wide, out=out[:, feature], mode="clip")
        at += width


def _coded(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.int32], list[str]]:
    """The place of each row's string, and the strings; a missing one is the empty string."""
    whole = column.dictionary_encode().unify_dictionaries().combine_chunks()
    whole = whole.combine_chunks() if isinstance(whole, pa.ChunkedArray) else whole
    names: list[str] = whole.dictionary.to_pylist()
    if not whole.null_count:
        return whole.indices.to_numpy(), names
    return whole.indices.fill_null(len(names)).to_numpy(), [*names, ""]
