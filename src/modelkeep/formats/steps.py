"""The transformers scikit-learn lacks. ``data`` fits them, this room writes them as ONNX.

All follow scikit-learn's estimator contract and hold only plain values and NumPy arrays, so that skops keeps them.
A missing string is the empty string from here on: ONNX strings cannot be null, and so training and serving agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.impute import SimpleImputer
from sklearn.utils import murmurhash3_32

from modelkeep.core.errors import UserCodeFailed
from modelkeep.core.plugins import load_function, user_code

Floats = npt.NDArray[np.float64]
Array = npt.NDArray[Any]

DATE_PARTS = ("year", "month", "day", "weekday", "hour", "minute", "dayofyear")
"""Parts a timestamp can be taken apart into; weekday counts from Monday 0, the rest as on a calendar (UTC)."""


def columns_of(X: Any) -> list[Any]:
    """The columns of a DataFrame, a Series, or an array of shape (n,) or (n, k)."""
    if isinstance(X, pd.DataFrame):
        return [X.iloc[:, index] for index in range(X.shape[1])]
    if isinstance(X, pd.Series):
        return [X]
    array = np.asarray(X)
    return [array] if array.ndim == 1 else [array[:, index] for index in range(array.shape[1])]


class _Step(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Remembers how many columns it was fitted on and their names, as scikit-learn's own transformers do."""

    def fit(self, X: Any, y: Any = None) -> Any:
        """Note the columns; ``X`` is a DataFrame or an array of shape (n, k)."""
        self.n_features_in_ = len(columns_of(X))
        if isinstance(X, pd.DataFrame):
            self.feature_names_in_ = np.array([str(name) for name in X.columns], dtype=object)
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "n_features_in_")

    def _names(self, input_features: Sequence[str] | None) -> list[str]:
        if input_features is not None:
            return [str(name) for name in input_features]
        known = getattr(self, "feature_names_in_", None)
        return [f"x{index}" for index in range(self.n_features_in_)] if known is None else [str(n) for n in known]


class _SameNames(_Step):
    def get_feature_names_out(self, input_features: Sequence[str] | None = None) -> Array:
        """The input names, unchanged."""
        return np.array(self._names(input_features), dtype=object)


class Strings(_SameNames):
    """Strings as an object array of the same shape, missing values as the empty string."""

    def transform(self, X: Any) -> Array:
        """Shape (n, k) of ``str``; (n,) when ``X`` has one dimension."""
        made = [_strings(column) for column in columns_of(X)]
        if getattr(X, "ndim", 2) == 1:
            return made[0]
        out = np.empty((len(made[0]), len(made)), dtype=object)
        for index, column in enumerate(made):
            out[:, index] = column
        return out


class Numbers(_SameNames):
    """Booleans and numbers, possibly missing, as float64 of shape (n, k) with NaN for missing."""

    def transform(self, X: Any) -> Floats:
        """Shape (n, k)."""
        return np.column_stack([_numbers(column) for column in columns_of(X)])


class RareCategories(_SameNames):
    """Replaces the categories that were too rare to keep by one shared name; leaves all others as they are.

    Args:
        rare: Per column, the sorted categories to replace.
        other: What replaces them.
    """

    def __init__(self, rare: Sequence[Sequence[str]] = (), other: str = "(other)") -> None:
        self.rare = rare
        self.other = other

    def transform(self, X: Any) -> Array:
        """Object array of shape (n, k)."""
        columns = [_strings(column) for column in columns_of(X)]
        out = np.empty((len(columns[0]), len(columns)), dtype=object)
        for index, (column, rare) in enumerate(zip(columns, self.rare, strict=True)):
            codes, known = pd.factorize(column)
            gone = set(rare)
            names = np.array([self.other if name in gone else name for name in known], dtype=object)
            out[:, index] = names[codes] if len(names) else column
        return out


class DateParts(_Step):
    """Timestamps to calendar numbers in UTC, after Hinnant's ``civil_from_days``
    (https://howardhinnant.github.io/date_algorithms.html); a missing timestamp gives NaN.

    Args:
        parts: Among ``DATE_PARTS``.
    """

    def __init__(self, parts: Sequence[str] = ("month", "weekday", "hour")) -> None:
        self.parts = parts

    def transform(self, X: Any) -> Floats:
        """Float64 of shape (n, k * parts): all parts of the first column, then of the second.

        ``X`` holds datetimes, ISO 8601 strings, or numbers of seconds since 1970 UTC.
        """
        return np.column_stack([self._parts(seconds_of(column)) for column in columns_of(X)])

    def get_feature_names_out(self, input_features: Sequence[str] | None = None) -> Array:
        """``column_part`` for each column and part."""
        names = [f"{name}_{part}" for name in self._names(input_features) for part in self.parts]
        return np.array(names, dtype=object)

    def _parts(self, seconds: Floats) -> Floats:
        missing = ~np.isfinite(seconds)
        whole = np.floor(np.where(missing, 0.0, seconds)).astype(np.int64)
        days, second = np.divmod(whole, 86_400)
        era, day_of_era = np.divmod(days + 719_468, 146_097)
        year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
        day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)  # from 1 March
        shifted = (5 * day_of_year + 2) // 153
        month = np.where(shifted < 10, shifted + 3, shifted - 9)
        year = year_of_era + era * 400 + (month <= 2)
        leap = (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))
        made: dict[str, Array] = {
            "year": year,
            "month": month,
            "day": day_of_year - (153 * shifted + 2) // 5 + 1,
            "weekday": (days + 3) % 7,
            "hour": second // 3600,
            "minute": second % 3600 // 60,
            "dayofyear": np.where(month <= 2, day_of_year - 305, day_of_year + 60 + leap),
        }
        out = np.column_stack([made[part] for part in self.parts]).astype(np.float64)
        out[missing] = np.nan
        return out


class HashBuckets(_Step):
    """Categories to ``buckets`` indicator columns each, by MurmurHash3 (x86, 32 bit, seed 0) of their UTF-8 text.

    The same hash is ``com.microsoft.MurmurHash3`` in ONNX Runtime. Weinberger et al. (2009), "Feature hashing for
    large scale multitask learning".

    Args:
        buckets: Columns per input column.
    """

    def __init__(self, buckets: int = 64) -> None:
        self.buckets = buckets

    def transform(self, X: Any) -> Any:
        """A SciPy CSR matrix of shape (n, k * buckets) with one 1 per row and input column."""
        from scipy.sparse import csr_matrix

        columns = columns_of(X)
        rows, width = len(columns[0]), len(columns)
        positions = np.empty((rows, width), dtype=np.int32)
        for index, column in enumerate(columns):
            codes, known = pd.factorize(_strings(column))
            hashed = [murmurhash3_32(name, seed=0, positive=True) % self.buckets for name in known]
            positions[:, index] = np.array(hashed, dtype=np.int32)[codes] + index * self.buckets
        ones = np.ones(rows * width, dtype=np.float64)
        edges = np.arange(0, rows * width + 1, width, dtype=np.int32)
        return csr_matrix((ones, positions.ravel(), edges), shape=(rows, width * self.buckets))

    def get_feature_names_out(self, input_features: Sequence[str] | None = None) -> Array:
        """``column_hash_bucket`` for each column and bucket."""
        names = [f"{name}_hash_{bucket}" for name in self._names(input_features) for bucket in range(self.buckets)]
        return np.array(names, dtype=object)


class UserFunction(_Step):
    """The user's own ``f(frame of the columns, **params) -> array (n, features)``.

    Args:
        function: Import path ``module:name``.
        params: Its keyword arguments.
        base: Folder searched first.
    """

    def __init__(self, function: str = "", params: Mapping[str, Any] | None = None, base: str = ".") -> None:
        self.function = function
        self.params = params
        self.base = base

    def fit(self, X: Any, y: Any = None) -> Any:
        """Note the columns and how many features the function makes of them."""
        super().fit(X, y)
        self.n_features_out_ = self.transform(X).shape[1]
        return self

    def transform(self, X: Any) -> Floats:
        """Float64 of shape (n, features).

        Raises:
            UserCodeFailed: The function raised, or returned something else than one row of numbers per row.
        """
        names = getattr(self, "feature_names_in_", None)
        if names is not None and not isinstance(X, pd.DataFrame):  # what a step before it made has no names
            X = pd.DataFrame(X, columns=names)
        function = load_function(self.function, base=Path(self.base), path="features.function")
        with user_code(f"{self.function}(table)"):
            made = np.asarray(function(X, **dict(self.params or {})), dtype=np.float64)
        made = made.reshape(-1, 1) if made.ndim == 1 else made
        if made.ndim != 2 or made.shape[0] != len(X):
            raise UserCodeFailed(
                f"{self.function} returned an array of shape {made.shape}, expected ({len(X)}, features)",
                traceback="",
            )
        return made

    def get_feature_names_out(self, input_features: Sequence[str] | None = None) -> Array:
        """``name_0``, ``name_1``, ... after the function's name."""
        name = self.function.replace(":", ".").rpartition(".")[2]
        return np.array([f"{name}_{index}" for index in range(self.n_features_out_)], dtype=object)


def only_fills(step: Any) -> bool:
    """Whether a fitted step only puts a number of each column where NaN is, which others can do too."""
    if not isinstance(step, SimpleImputer) or step.add_indicator:
        return False
    missing, known = step.missing_values, np.asarray(step.statistics_)
    return (
        isinstance(missing, float)
        and np.isnan(missing)
        and known.dtype.kind in "fiu"
        and not np.isnan(known).any()
    )


def seconds_of(column: Any) -> Floats:
    """A column of datetimes, ISO 8601 strings or numbers as seconds since 1970 UTC; missing is NaN. Shape (n,)."""
    if isinstance(column, pd.Series) and isinstance(column.dtype, pd.DatetimeTZDtype):
        column = column.dt.tz_convert("UTC").dt.tz_localize(None)
    array = column.to_numpy() if isinstance(column, pd.Series) else column
    if array.dtype.kind in "fiu":
        return np.asarray(array, dtype=np.float64)
    if array.dtype.kind != "M":
        text = pd.Series(array, dtype=object).replace("", None)
        array = pd.to_datetime(text, utc=True, format="ISO8601").dt.tz_localize(None).to_numpy()
    micros = array.astype("datetime64[us]")
    seconds = micros.astype(np.int64) / 1e6
    seconds[np.isnat(micros)] = np.nan
    return np.asarray(seconds, dtype=np.float64)


def _strings(column: Any) -> Array:
    """Object array (n,) of ``str``, missing as the empty string; equal strings are one object."""
    codes, known = pd.factorize(column)
    # Index -1, a missing value, takes the last name.
    names = np.array([*(name if isinstance(name, str) else str(name) for name in known), ""], dtype=object)
    return names[codes]


def _numbers(column: Any) -> Floats:
    array = column.to_numpy() if isinstance(column, pd.Series) else column
    if array.dtype.kind in "fiub":
        return np.asarray(array, dtype=np.float64)
    return np.asarray(
        pd.to_numeric(pd.Series(array, dtype=object).replace("", None).astype("Float64")), np.float64
    )
