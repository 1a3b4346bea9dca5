"""Tables and pipelines that the tests of this room share: every kind of column, missing values, odd names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

from modelkeep.formats.steps import DateParts, Numbers, RareCategories, Strings

NUMBERS = ["distance", "größe", "count"]
INPUTS = [*NUMBERS, "late", "carrier", "origin", "at"]


def table(rows: int = 600, seed: int = 0) -> pa.Table:
    """Numbers with holes, whole numbers, truth values, strings with holes and Unicode, times."""
    rng = np.random.default_rng(seed)
    distance = rng.gamma(2.0, 300.0, rows)
    distance[::17] = np.nan
    carrier = rng.choice(
        np.array(["UA", "DL", "É∂", "日本", "rare"], dtype=object), rows, p=[0.4, 0.3, 0.15, 0.1, 0.05]
    )
    carrier[5::23] = None
    start = np.datetime64("1969-11-05T03:00:00", "us")
    return pa.table(
        {
            "distance": pa.array(distance, from_pandas=True),
            "größe": rng.normal(size=rows),
            "count": rng.integers(0, 12, rows),
            "late": rng.random(rows) < 0.3,
            "carrier": pa.array(carrier),
            "origin": rng.choice(["JFK", "LGA", "EWR"], rows),
            "at": pa.array(start + (rng.random(rows) * 4e9 * 1e6 / 4).astype("timedelta64[us]")),
        }
    )


def target(data: pa.Table, task: str, kinds: Any = (0, 1), seed: int = 1) -> np.ndarray:
    """Something learnable from the table."""
    rng = np.random.default_rng(seed)
    frame = data.to_pandas()
    signal = (
        frame["größe"]
        + frame["distance"].fillna(0) / 600
        + (frame["carrier"] == "日本")
        - 0.8 * (frame["origin"] == "LGA")
        + rng.normal(size=len(frame)) / 2
    ).to_numpy()
    if task == "regression":
        return signal * 10 + 100
    edges = np.quantile(signal, np.linspace(0, 1, len(kinds) + 1)[1:-1])
    return np.asarray(kinds)[np.searchsorted(edges, signal)]


def features(*, onehot: bool = True, scale: bool = True) -> ColumnTransformer:
    """The steps most declarations have, as ``data`` assembles them."""
    numeric = [("numbers", Numbers()), ("impute", SimpleImputer(strategy="median"))]
    if scale:
        numeric.append(("scale", StandardScaler()))
    if onehot:
        encoder = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    else:
        encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    strings = [("strings", Strings()), ("rare", RareCategories([["rare"], []])), ("encode", encoder)]
    return ColumnTransformer(
        [
            ("numbers", Pipeline(numeric), NUMBERS),
            ("truth", Numbers(), ["late"]),
            ("strings", Pipeline(strings), ["carrier", "origin"]),
            ("times", DateParts(("month", "weekday", "hour", "dayofyear")), ["at"]),
        ],
        sparse_threshold=0.0,
    )
