"""Small real problems, with the transformer a declaration's features would make."""

from __future__ import annotations

import os

# Two processes whose OpenMP threads spin for the same cores are many times slower than two of one thread each.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import OneHotEncoder, StandardScaler


@dataclass(frozen=True)
class Problem:
    table: pa.Table
    inputs: list[str]
    transformer: ColumnTransformer
    target: str = "y"


def flights_like(rows: int, seed: int = 0, *, target: str = "bool") -> pa.Table:
    """Two numbers that matter, one that does not, a carrier that shifts the odds."""
    rng = np.random.default_rng(seed)
    carrier = rng.choice(["AA", "EV", "UA"], rows, p=[0.5, 0.3, 0.2])
    a, b, noise = rng.normal(size=(3, rows))
    line = 1.5 * a - b + (carrier == "EV")
    late = rng.random(rows) < 1 / (1 + np.exp(-line))
    targets: dict[str, Any] = {
        "bool": late,
        "str": np.where(late, "late", "early"),
        "int": late.astype(np.int64) + (line > 2.5),
        "float": line + rng.normal(scale=0.3, size=rows),
    }
    return pa.table({"a": a, "b": b, "noise": noise, "carrier": carrier, "y": targets[target]})


def tabular(table: pa.Table) -> Problem:
    inputs = ["a", "b", "noise", "carrier"]
    transformer = ColumnTransformer(
        [("scale", StandardScaler(), inputs[:3]), ("encode", OneHotEncoder(handle_unknown="ignore"), ["carrier"])]
    )
    return Problem(table, inputs, transformer.fit(table.select(inputs).to_pandas()))


@pytest.fixture
def problem() -> Callable[..., Problem]:
    def make(rows: int = 600, **keywords: Any) -> Problem:
        return tabular(flights_like(rows, **keywords))

    return make


@pytest.fixture
def text() -> Problem:
    """Sparse: two topics, told apart by a few of 600 words."""
    rng = np.random.default_rng(1)
    words = np.array([f"w{index}" for index in range(600)])
    topic = rng.integers(0, 2, 300)
    texts = [
        " ".join([*rng.choice(words, 20), *rng.choice(words[10 * kind : 10 * kind + 10], 4)]) for kind in topic
    ]
    table = pa.table({"text": texts, "y": np.where(topic, "sport", "politics")})
    transformer = ColumnTransformer([("text", TfidfVectorizer(), "text")])
    return Problem(table, ["text"], transformer.fit(table.select(["text"]).to_pandas()))
