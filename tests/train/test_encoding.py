"""Features straight from Arrow: equal, to the last bit, to what the fitted transformer gives."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from modelkeep.core.compiled import Pays
from modelkeep.data import features
from modelkeep.spec import steps
from modelkeep.train import encoding
from modelkeep.train.encoding import encoded, to_frame

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


def test_hashed_strings_equal_the_transformer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "_pays", Pays(1))
    words = ["", "a", "ab", "abc", "abcd", "Zürich", "東京都", "naïve café", "x" * 1000, None, "a\x00b"]
    columns = {name: pa.array([words[i * step % 11] for i in range(90)]) for name, step in (("c", 1), ("d", 5))}
    rows = pa.table(columns | {"a": [None if i % 7 == 0 else i / 3 for i in range(90)], "i": range(90)})
    made = [
        steps.Impute(columns=("a", "i")),
        steps.Scale(columns=("a", "i")),
        steps.Hash(columns=("c", "d"), buckets=64),
    ]
    fitted = features.fit(made, rows, ["d", "a", "c", "i"]).to_sklearn()
    late = pa.concat_tables([rows.slice(3, 20), rows.slice(40)])  # two chunks, neither from its start
    assert encoding._branches(fitted, late) is not None
    found = encoded(fitted, late, ["d", "a", "c", "i"])
    found.check_format()
    np.testing.assert_array_equal(found.toarray(), fitted.transform(to_frame(late, rows.column_names)).toarray())


def test_what_is_not_known_here_is_asked_of_the_transformer() -> None:
    rows = table()
    made = [steps.Bin(columns=("a",), bins=3), steps.Hash(columns=("c", "d"), buckets=64)]
    fitted = features.fit([steps.Impute(columns=("a",)), *made], rows, INPUTS).to_sklearn()
    assert encoding._branches(fitted, rows) is None
    found, wanted = encoded(fitted, rows, INPUTS), fitted.transform(to_frame(rows, INPUTS))
    np.testing.assert_array_equal(found.toarray(), wanted.toarray())
