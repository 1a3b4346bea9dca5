"""Features straight from Arrow: equal, to the last bit, to what the fitted transformer gives."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from modelkeep.data import features
from modelkeep.spec import steps
from modelkeep.train import encoding
from modelkeep.train.encoding import encoded
from modelkeep.train.training import to_frame

INPUTS = ["a", "i", "c", "d", "p"]


def table(rows: int = 600) -> pa.Table:
    random = np.random.default_rng(0)
    holes = np.where(random.random(rows) < 0.1, np.nan, random.normal(5, 3, rows))
    return pa.table(
        {
            "a": pa.array(holes, from_pandas=True),
            "i": random.integers(0, 9, rows),
            "c": pa.array([None if x < 0.05 else f"v{int(x * 7)}" for x in random.random(rows)]),
            "d": pa.array([f"w{int(x * 40)}" for x in random.random(rows)]),
            "p": random.normal(0, 1, rows),
        }
    )


@pytest.mark.parametrize("method", ["standard", "minmax", "robust"])
def test_equals_the_transformer(method: str) -> None:
    rows = table()
    fitted = features.fit(
        [
            steps.Impute(columns=("a", "i"), strategy="median"),
            steps.Scale(columns=("a", "i"), method=method),
            steps.Impute(columns=("c",), strategy="mode"),
            steps.Encode(columns=("c",), method="onehot"),
            steps.Encode(columns=("d",), method="ordinal", max_categories=5),
        ],
        rows.slice(0, 400),  # the rest has categories never seen
        INPUTS,
    ).to_sklearn(dense=True)
    late = rows.slice(350)
    assert encoding._branches(fitted, late) is not None
    for order in ("C", "F"):
        np.testing.assert_array_equal(
            encoded(fitted, late, INPUTS, order), fitted.transform(to_frame(late, INPUTS)), strict=True
        )


def test_what_is_not_known_here_is_asked_of_the_transformer() -> None:
    rows = table()
    made = [steps.Bin(columns=("a",), bins=3), steps.Hash(columns=("c", "d"), buckets=64)]
    fitted = features.fit([steps.Impute(columns=("a",)), *made], rows, INPUTS).to_sklearn()
    assert encoding._branches(fitted, rows) is None
    found, wanted = encoded(fitted, rows, INPUTS), fitted.transform(to_frame(rows, INPUTS))
    np.testing.assert_array_equal(found.toarray(), wanted.toarray())
