"""Every feature step learns from any parts of the rows what it learns from all of them at once.

Counts, categories, words and edges are equal; what rests on sums agrees to a relative 1e-9.
"""

from __future__ import annotations

import datetime
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from cuts import cuts
from modelkeep.core.errors import Invalid
from modelkeep.data.encoders import FITTERS
from modelkeep.data.features import fit
from modelkeep.data.frames import to_frame
from modelkeep.spec import steps

ROWS = 60
NEAR = 1e-9

CODE = """
def spread(table, by=1.0):
    return table[["a", "b"]].to_numpy() * by

def lengths(table):
    return [len(word) for word in table["town"]]

def years(table):
    return table["at"].dt.year

def early(table):
    return table["at_hour"] < 12
"""

NUMBERS, STRINGS, FILLED = ("a", "b"), ("color", "town"), steps.Impute(columns=("a", "b"))

CHAINS: dict[str, tuple[steps.FeatureStep, ...]] = {
    "mean": (steps.Impute(columns=NUMBERS, strategy="mean"),),
    "median": (FILLED,),
    "mode": (steps.Impute(columns=NUMBERS, strategy="mode"),),
    "constant": (steps.Impute(columns=NUMBERS, strategy="constant", value=7),),
    "mode of strings": (steps.Impute(columns=STRINGS, strategy="mode"), steps.Encode(columns=STRINGS)),
    "standard": (FILLED, steps.Scale(columns=NUMBERS)),
    "minmax": (FILLED, steps.Scale(columns=NUMBERS, method="minmax")),
    "robust": (FILLED, steps.Scale(columns=NUMBERS, method="robust")),
    "onehot": (steps.Encode(columns=STRINGS),),
    "onehot of few": (steps.Encode(columns=STRINGS, max_categories=3),),
    "ordinal": (steps.Encode(columns=STRINGS, method="ordinal"), steps.Scale(columns=STRINGS)),
    "label": (steps.Encode(columns=STRINGS, method="label"),),
    "numbers as categories": (steps.Encode(columns=("b",)),),
    "bins": (FILLED, steps.Bin(columns=NUMBERS, bins=4)),
    "even bins": (FILLED, steps.Bin(columns=NUMBERS, method="uniform", encode="onehot")),
    "dates": (
        steps.DateParts(columns=("at",)),
        steps.Impute(columns=("at",)),
        steps.Bin(columns=("at",), method="uniform"),
        steps.Scale(columns=("at",)),
    ),
    "words": (steps.Tfidf(columns=("text",), max_features=4, min_df=2, ngrams=(1, 2)),),
    "hashes": (steps.Hash(columns=STRINGS, buckets=8),),
    "function": (steps.Function(function="feature_makers:spread", columns=NUMBERS),),
    "function after others": (
        FILLED,
        steps.Function(function="feature_makers:spread", columns=NUMBERS, params={"by": 2.0}),
        steps.Scale(columns=NUMBERS),
    ),
    "function of strings": (steps.Function(function="feature_makers:lengths", columns=STRINGS),),
    "function of times": (
        steps.Function(function="feature_makers:years", columns=("at",)),
        steps.Impute(columns=("at",)),
    ),
    "function of parts of dates": (
        steps.DateParts(columns=("at",)),
        steps.Function(function="feature_makers:early", columns=("at",)),
    ),
}


@pytest.fixture(scope="module", autouse=True)
def base(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("own")
    (folder / "feature_makers.py").write_text(CODE)
    yield folder
    sys.modules.pop("feature_makers", None)


def table(seed: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    words = np.array(["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dogs"])
    return pa.table(
        {
            "a": pa.array(rng.normal(1e6, 3, ROWS), mask=rng.random(ROWS) < 0.2),
            "b": pa.array(rng.integers(0, 9, ROWS), mask=rng.random(ROWS) < 0.1),
            "color": pa.array(rng.choice(["red", "green", "blue", ""], ROWS), mask=rng.random(ROWS) < 0.2),
            "town": [f"t{int(x)}" for x in rng.exponential(3, ROWS)],
            "text": [" ".join(rng.choice(words, rng.integers(0, 6))) for _ in range(ROWS)],
            "at": pa.array(
                [
                    datetime.datetime(2020, 1, 1) + datetime.timedelta(hours=int(h))
                    for h in rng.integers(0, 9e3, ROWS)
                ],
                mask=rng.random(ROWS) < 0.1,
            ),
        }
    )


def dense(x) -> np.ndarray:
    return x.toarray() if sparse.issparse(x) else np.asarray(x)


def test_every_step_is_tried() -> None:
    assert {type(step) for chain in CHAINS.values() for step in chain} == set(FITTERS)


@pytest.mark.parametrize("name", CHAINS)
@given(seed=st.integers(0, 3), parts=cuts(ROWS))
@settings(max_examples=12, deadline=None)
def test_parts_teach_what_the_whole_does(base: Path, name: str, seed: int, parts: list[slice]) -> None:
    chain = CHAINS[name]
    data = table(seed)
    columns = list(dict.fromkeys(column for step in chain for column in step.columns))
    whole = fit(chain, data, columns, base=base).to_sklearn()
    pieces = [data.slice(part.start, part.stop - part.start).select for part in parts]
    cut = fit(chain, data, columns, base=base, pieces=pieces).to_sklearn()
    frame = to_frame(data, columns)
    assert cut.get_feature_names_out().tolist() == whole.get_feature_names_out().tolist()
    np.testing.assert_allclose(dense(cut.transform(frame)), dense(whole.transform(frame)), rtol=NEAR, atol=NEAR)


def test_no_row_at_all_is_told() -> None:
    data = table(0).slice(0, 0)
    for chain in (CHAINS["standard"], CHAINS["words"]):
        with pytest.raises(Invalid, match="no training row"):
            fit(chain, data, list(chain[0].columns), pieces=[data.select, data.select])
