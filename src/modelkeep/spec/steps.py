"""Cleaning and feature steps. In YAML each is a map with one entry: ``impute: {columns: numeric}``."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct, field

Names = tuple[str, ...]
Columns = str | Names
"""Column names, or one of ``numeric``, ``categorical``, ``text``, ``all``."""


class _Step(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="step"):
    pass


class DropDuplicates(_Step, frozen=True, tag="drop_duplicates"):
    """Keep the first of equal rows. ``columns`` empty compares all columns."""

    columns: Names = ()


class DropMissing(_Step, frozen=True, tag="drop_missing"):
    """Drop rows where any of the columns is missing (NaN counts as missing). Empty means any column."""

    columns: Names = ()


class FillMissing(_Step, frozen=True, tag="fill_missing"):
    """Fill missing values. ``forward`` carries the last value on in order of time."""

    columns: Columns
    strategy: Literal["constant", "mean", "median", "mode", "forward"] = "constant"
    value: Any = None


class _Outliers(_Step, frozen=True):
    """How far out is too far.

    ``zscore``: more than ``limit`` standard deviations from the mean (default 3);
    ``iqr``: more than ``limit`` interquartile ranges beyond the quartiles (default 1.5);
    ``quantile``: outside the ``limit`` and 1 - ``limit`` quantiles (default 0.01);
    ``isolation_forest``: the ``limit`` share of most isolated rows (default 0.01).
    """

    columns: Columns = "numeric"
    method: Literal["zscore", "iqr", "quantile", "isolation_forest"] = "iqr"
    limit: float | None = None


class DropOutliers(_Outliers, frozen=True, tag="drop_outliers"):
    """Drop rows with an outlier in any of the columns."""


class ClipOutliers(_Outliers, frozen=True, tag="clip_outliers"):
    """Move outliers to the nearest bound (not for ``isolation_forest``, which has none)."""


class Cast(_Step, frozen=True, tag="cast"):
    """Change types: ``int``, ``float``, ``string``, ``bool``, ``timestamp``, ``date``."""

    columns: dict[str, str]


class Rename(_Step, frozen=True, tag="rename"):
    """New names by old."""

    columns: dict[str, str]


class Filter(_Step, frozen=True, tag="filter"):
    """Keep the rows for which the expression holds: ``distance > 0 and origin in ('JFK', 'LGA')``."""

    where: str


CleanStep = DropDuplicates | DropMissing | FillMissing | DropOutliers | ClipOutliers | Cast | Rename | Filter


class Impute(_Step, frozen=True, tag="impute"):
    """Fill what is missing with a statistic of the training rows."""

    columns: Columns
    strategy: Literal["mean", "median", "mode", "constant"] = "median"
    value: Any = None


class Scale(_Step, frozen=True, tag="scale"):
    """``standard``: zero mean, unit variance; ``minmax``: to [0, 1]; ``robust``: median and quartiles."""

    columns: Columns = "numeric"
    method: Literal["standard", "minmax", "robust"] = "standard"


class Encode(_Step, frozen=True, tag="encode"):
    """Categories to numbers.

    Attributes:
        method: ``onehot``, ``ordinal`` (``label`` is the same).
        unseen: A category not in training: ``ignore`` (all zeros; -1 for ordinal) or ``error`` (request refused).
        max_categories: Keep the most frequent; the rest share one.
    """

    columns: Columns = "categorical"
    method: Literal["onehot", "ordinal", "label"] = "onehot"
    unseen: Literal["ignore", "error"] = "ignore"
    max_categories: int | None = None


class Bin(_Step, frozen=True, tag="bin"):
    """Numbers to ``bins`` intervals by ``quantile`` or ``uniform`` width, as ordinals or one-hot."""

    columns: Columns
    bins: int = 5
    method: Literal["quantile", "uniform"] = "quantile"
    encode: Literal["ordinal", "onehot"] = "ordinal"


class DateParts(_Step, frozen=True, tag="date_parts"):
    """Timestamps to numbers: year, month, day, weekday (Monday 0), hour, minute, dayofyear."""

    columns: Columns
    parts: Names = ("month", "weekday", "hour")


class Tfidf(_Step, frozen=True, tag="tfidf"):
    """Text to weighted word counts (smooth idf, L2 norm, as scikit-learn's TfidfVectorizer)."""

    columns: Columns
    max_features: int | None = 20000
    min_df: int = 1
    ngrams: tuple[int, int] = (1, 1)
    lowercase: bool = True
    stop_words: Literal["english"] | None = None


class Hash(_Step, frozen=True, tag="hash"):
    """Categories to ``buckets`` columns by a hash: no vocabulary to keep."""

    columns: Columns
    buckets: int = 64


class Function(_Step, frozen=True, tag="function"):
    """Your own: an import path of ``f(table of the columns, **params) -> array (rows, features)``."""

    function: str
    columns: Columns
    params: dict[str, Any] = field(default_factory=dict)


FeatureStep = Impute | Scale | Encode | Bin | DateParts | Tfidf | Hash | Function
