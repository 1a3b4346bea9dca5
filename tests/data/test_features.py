"""Feature steps equal scikit-learn's own fit, whatever the partitioning."""

from __future__ import annotations

import datetime
import io
import itertools
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import (
    KBinsDiscretizer,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    RobustScaler,
    StandardScaler,
)

from modelkeep.core.errors import Invalid, UserCodeFailed
from modelkeep.data import statistics
from modelkeep.data.features import fit
from modelkeep.data.frames import to_frame
from modelkeep.data.statistics import Moments, Values
from modelkeep.formats.steps import DATE_PARTS, DateParts, HashBuckets
from modelkeep.spec import steps

ROWS = 500


def table(rows: int = ROWS, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    a = rng.normal(50, 10, rows)
    a[rng.random(rows) < 0.1] = np.nan
    return pa.table(
        {
            "a": pa.array(a, from_pandas=True),
            "b": rng.integers(0, 40, rows),
            "constant": np.full(rows, 3.25),
            "color": pa.array(
                [None if i % 17 == 0 else ["red", "green", "blue", "grey"][i % 7 % 4] for i in range(rows)]
            ),
            "town": [f"t{int(x)}" for x in rng.exponential(4, rows)],
            "text": [
                " ".join(rng.choice(["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dogs"], 9))
                for _ in range(rows)
            ],
            "at": pa.array([datetime.datetime(2020, 1, 1) + datetime.timedelta(hours=7 * i) for i in range(rows)]),
            "flag": pa.array([None if i % 50 == 0 else i % 3 == 0 for i in range(rows)]),
        }
    )


def features_of(made: list, columns: list[str], data: pa.Table | None = None, cuts: list[int] | None = None):
    data = table() if data is None else data
    edges = [0, *(cuts or []), data.num_rows]
    parts = [data.slice(a, b - a) for a, b in itertools.pairwise(edges)]
    return fit(made, data, columns, pieces=[part.select for part in parts])


def dense(x) -> np.ndarray:
    return x.toarray() if sparse.issparse(x) else np.asarray(x)


PAIRS = {
    "mean": (steps.Impute(columns=("a", "b"), strategy="mean"), lambda: SimpleImputer(strategy="mean")),
    "median": (steps.Impute(columns=("a", "b"), strategy="median"), lambda: SimpleImputer(strategy="median")),
    "mode": (steps.Impute(columns=("a", "b"), strategy="mode"), lambda: SimpleImputer(strategy="most_frequent")),
    "standard": (steps.Scale(columns=("a", "b")), StandardScaler),
    "minmax": (steps.Scale(columns=("a", "b"), method="minmax"), MinMaxScaler),
    "robust": (steps.Scale(columns=("a", "b"), method="robust"), RobustScaler),
    "ordinal numbers": (steps.Encode(columns=("a", "b"), method="ordinal"), OrdinalEncoder),
    "onehot numbers": (steps.Encode(columns=("a", "b")), OneHotEncoder),
}


@pytest.mark.parametrize("name", PAIRS)
@given(cuts=st.lists(st.integers(0, ROWS), max_size=4).map(sorted))
@settings(max_examples=8, deadline=None)
def test_equals_scikit_learn_over_any_partitioning(name: str, cuts: list[int]) -> None:
    step, theirs = PAIRS[name]
    ours = features_of([step], ["a", "b"], cuts=cuts).to_sklearn()
    frame = to_frame(table(), ["a", "b"])
    expected = ColumnTransformer([("x", theirs(), ["a", "b"])]).fit(frame)
    np.testing.assert_allclose(
        dense(ours.transform(frame)), dense(expected.transform(frame)), rtol=1e-9, atol=1e-12
    )
    assert len(ours.get_feature_names_out()) == ours.transform(frame).shape[1]


@pytest.mark.parametrize("strategy", ["quantile", "uniform"])
@pytest.mark.parametrize("encode", ["ordinal", "onehot"])
def test_bins_equal_scikit_learn(strategy: str, encode: str) -> None:
    chain = [steps.Bin(columns=("b", "constant"), bins=4, method=strategy, encode=encode)]
    ours = features_of(chain, ["b", "constant"], cuts=[100, 101, 340]).to_sklearn()
    frame = to_frame(table(), ["b", "constant"])
    theirs = KBinsDiscretizer(
        n_bins=4, encode=encode, strategy=strategy, subsample=None, quantile_method="averaged_inverted_cdf"
    )
    with pytest.warns(UserWarning, match="constant"):
        expected = dense(theirs.fit_transform(frame.to_numpy()))
    np.testing.assert_array_equal(dense(ours.transform(frame)), expected)


def test_strings_encode_as_scikit_learn_does_with_missing_as_a_category() -> None:
    columns = ["color", "town"]
    frame = to_frame(table(), columns)
    assert (frame["color"] == "").sum() == 30
    for method, theirs in (("onehot", OneHotEncoder()), ("ordinal", OrdinalEncoder())):
        ours = features_of([steps.Encode(method=method)], columns, cuts=[3, 77]).to_sklearn()
        np.testing.assert_array_equal(dense(ours.transform(frame)), dense(theirs.fit_transform(frame.to_numpy())))


def test_a_plain_pandas_frame_gives_the_same() -> None:
    data = table().select(["a", "color", "flag", "at"])
    chain = [steps.Impute(columns=("color",), strategy="mode"), steps.Encode(), steps.DateParts(columns=("at",))]
    made = fit(chain, data, data.column_names).to_sklearn(dense=True)
    np.testing.assert_array_equal(made.transform(to_frame(data)), made.transform(data.to_pandas()))


def test_max_categories_keeps_the_frequent_and_unseen_is_nothing() -> None:
    made = features_of([steps.Encode(columns=("town",), max_categories=4)], ["town"], cuts=[250]).to_sklearn()
    frame = to_frame(table(), ["town"])
    theirs = OneHotEncoder(max_categories=4).fit(frame.to_numpy())
    assert made.transform(frame).shape[1] == 4
    ours_sums = sorted(dense(made.transform(frame)).sum(axis=0))
    assert ours_sums == sorted(dense(theirs.transform(frame.to_numpy())).sum(axis=0))
    assert dense(made.transform(pd.DataFrame({"town": ["never seen"]}))).sum() == 0


def test_unseen_categories_follow_the_rule() -> None:
    new = pd.DataFrame({"color": ["violet"]})
    lenient = features_of([steps.Encode(columns=("color",), method="ordinal")], ["color"]).to_sklearn()
    assert lenient.transform(new)[0, 0] == -1
    strict = features_of(
        [steps.Encode(columns=("color",), method="ordinal", unseen="error")], ["color"]
    ).to_sklearn()
    with pytest.raises(ValueError, match="violet"):
        strict.transform(new)


@pytest.mark.parametrize("limit", [None, 5])
@pytest.mark.parametrize("cuts", [[], [1, 200, 300]])
def test_tfidf_equals_scikit_learn(limit: int | None, cuts: list[int]) -> None:
    step = steps.Tfidf(columns=("text",), max_features=limit, min_df=2, ngrams=(1, 2))
    ours = features_of([step], ["text"], cuts=cuts).to_sklearn()
    frame = to_frame(table(), ["text"])
    theirs = TfidfVectorizer(max_features=limit, min_df=2, ngram_range=(1, 2)).fit(frame["text"])
    assert ours.get_feature_names_out().tolist() == theirs.get_feature_names_out().tolist()
    np.testing.assert_allclose(dense(ours.transform(frame)), dense(theirs.transform(frame["text"])), rtol=1e-12)


def test_chains_pass_through_and_group() -> None:
    chain = [
        steps.Impute(columns="numeric"),
        steps.Scale(columns=("a", "b")),
        steps.Encode(columns="categorical"),
        steps.DateParts(columns=("at",), parts=DATE_PARTS),
        steps.Impute(columns=("at",), strategy="mean"),
    ]
    columns = ["a", "b", "constant", "color", "town", "at", "flag"]
    fitted = features_of(chain, columns, cuts=[250])
    assert [branch.columns for branch in fitted.branches] == [
        ("a", "b"),
        ("constant",),
        ("color", "town"),
        ("at",),
        ("flag",),
    ]
    made = fitted.to_sklearn()
    frame = to_frame(table(), columns)
    x = dense(made.transform(frame))
    names = made.get_feature_names_out().tolist()
    assert abs(x[:, names.index("a")].mean()) < 1e-9
    assert names[-1] == "flag"
    assert np.isnan(x[:, -1]).sum() == 10
    at = frame["at"].dt
    assert (x[:, names.index("at_dayofyear")] == at.day_of_year).all()
    assert (x[:, names.index("at_weekday")] == at.day_of_week).all()
    again = clone(made).fit(frame)
    np.testing.assert_allclose(dense(again.transform(frame)), x, rtol=1e-9)
    assert fitted.to_builtins()["branches"][0]["steps"][0]["statistics_"] == pytest.approx(
        [np.nanmedian(frame["a"]), np.median(frame["b"])]
    )


def test_it_survives_pickle_and_skops() -> None:
    from skops import io as skops_io

    chain = [
        steps.Hash(columns=("town",), buckets=8),
        steps.DateParts(columns=("at",)),
        steps.Encode(columns=("color",)),
    ]
    columns = ["town", "at", "color"]
    made = features_of(chain, columns).to_sklearn()
    frame = to_frame(table(), columns)
    kept = skops_io.dumps(made)
    trusted = skops_io.get_untrusted_types(data=kept)
    assert all(name.startswith("modelkeep.formats.steps.") for name in trusted)
    for again in (pickle.load(io.BytesIO(pickle.dumps(made))), skops_io.loads(kept, trusted=trusted)):
        np.testing.assert_array_equal(dense(again.transform(frame)), dense(made.transform(frame)))


@given(
    st.lists(st.datetimes(datetime.datetime(1, 1, 1), datetime.datetime(9999, 12, 31)), min_size=1, max_size=50)
)
def test_date_parts_agree_with_the_calendar(when: list[datetime.datetime]) -> None:
    seconds = np.array([(w - datetime.datetime(1970, 1, 1)).total_seconds() // 1 for w in when])
    parts = DateParts(parts=list(DATE_PARTS)).fit(seconds.reshape(-1, 1)).transform(seconds.reshape(-1, 1))
    expected = [[w.year, w.month, w.day, w.weekday(), w.hour, w.minute, w.timetuple().tm_yday] for w in when]
    assert parts.tolist() == expected


def test_hash_buckets_are_murmurhash3() -> None:
    made = HashBuckets(buckets=2**20).fit(np.array([["hello"]], dtype=object))
    # MurmurHash3_x86_32("hello", 0) = 0x248bfa47, from the reference implementation
    assert made.transform(np.array([["hello"]], dtype=object)).indices[0] == 0x248BFA47 % 2**20


def test_a_users_function_sees_its_columns_together(tmp_path: Path) -> None:
    (tmp_path / "own_features.py").write_text(
        "def ratio(table, by=1.0):\n    return table['b'] / (table['constant'] * by)\n"
        "def broken(table):\n    return 1 / 0\n"
    )
    step = steps.Function(function="own_features:ratio", columns=("b", "constant"), params={"by": 2.0})
    made = fit([step], table(), ["b", "constant"], base=tmp_path).to_sklearn()
    frame = to_frame(table(), ["b", "constant"])
    assert made.transform(frame)[:, 0] == pytest.approx(frame["b"] / 6.5)
    with pytest.raises(UserCodeFailed, match="return 1 / 0") as caught:
        fit([steps.Function(function="own_features:broken", columns=("b",))], table(), ["b"], base=tmp_path)
    assert "site-packages" not in str(caught.value)


@pytest.mark.parametrize(
    ("chain", "columns", "said"),
    [
        ([], ["color"], "add '- encode: {columns: [color]"),
        ([], ["text"], "tfidf"),
        ([], ["at"], "date_parts"),
        ([steps.Scale(columns=("color",))], ["color"], "encode it first"),
        ([steps.Impute(columns=("colour",))], ["color"], "did you mean 'color'"),
        ([steps.Impute(columns=("color",), strategy="mean")], ["color"], "encode"),
        ([steps.Encode(columns=("color",)), steps.Scale(columns=("color",))], ["color"], "no step can follow"),
        ([steps.DateParts(columns=("at",), parts=("century",))], ["at"], "century"),
    ],
)
def test_what_does_not_fit_is_named(chain: list, columns: list[str], said: str) -> None:
    with pytest.raises(Invalid) as caught:
        features_of(chain, columns)
    assert said in str(caught.value)


def test_a_column_without_any_value_is_named() -> None:
    data = pa.table({"x": pa.array([None, None], pa.float64()), "y": [1.0, 2.0]})
    for strategy in ("mean", "median", "mode"):
        with pytest.raises(Invalid, match="'x' has no value"):
            fit([steps.Impute(columns="numeric", strategy=strategy)], data, ["x", "y"])


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300), st.integers(0, 300))
@settings(max_examples=40)
def test_many_distinct_values_are_rounded_the_same_way_however_cut(values: list[float], cut: int) -> None:
    whole, limit = np.array(values), statistics.MAX_DISTINCT
    try:
        statistics.MAX_DISTINCT = 16
        once = Values.of(whole)
        merged = Values.of(whole[:cut]).merge(Values.of(whole[cut:]))
    finally:
        statistics.MAX_DISTINCT = limit
    assert len(once.values) <= 16
    np.testing.assert_array_equal(once.values, merged.values)
    np.testing.assert_array_equal(once.counts, merged.counts)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=60), st.data())
@settings(max_examples=40)
def test_moments_merge(values: list[float], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(values)))
    whole = np.array(values).reshape(-1, 1)
    merged = Moments.of(whole[:cut]).merge(Moments.of(whole[cut:]))
    assert merged.mean[0] == pytest.approx(whole.mean(), abs=1e-6)
    assert merged.variance[0] == pytest.approx(whole.var(), rel=1e-6, abs=1e-6)
    assert (merged.low[0], merged.high[0]) == (whole.min(), whole.max())
