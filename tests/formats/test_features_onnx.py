"""Feature steps as ONNX, each against the transformer it came from."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.feature_selection import SelectKBest, f_regression
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    KBinsDiscretizer,
    MaxAbsScaler,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    RobustScaler,
    StandardScaler,
)

from modelkeep.formats.agreement import compare
from modelkeep.formats.frames import columns_of
from modelkeep.formats.inference import infer
from modelkeep.formats.onnx.export import export
from modelkeep.formats.onnx.graph import Unconvertible
from modelkeep.formats.onnx_runtime import OnnxModel
from modelkeep.formats.sklearn_runtime import SklearnModel
from modelkeep.formats.steps import DATE_PARTS, DateParts, HashBuckets, Strings


def frame(rows: int = 300) -> pd.DataFrame:
    rng = np.random.default_rng(3)
    made = pd.DataFrame({name: rng.normal(size=rows) * 5 + 2 for name in "abc"})
    made["n"] = rng.integers(0, 6, rows)
    made["s"] = rng.choice(["x", "y", "zé", "w"], rows, p=[0.5, 0.3, 0.15, 0.05])
    return made


def agree(pipeline: Pipeline, data: pd.DataFrame, y: Any, task: Any = "regression", classes: Any = ()) -> None:
    pipeline.fit(data, y)
    signature = infer(pa.Table.from_pandas(data), list(data.columns), task, classes)
    columns = columns_of(pa.Table.from_pandas(data), signature)
    found = compare(pipeline, export(pipeline, signature), signature, columns)
    assert found.disagree == 0, str(found)
    assert found.largest < 1e-6


NUMERIC = {
    "standard": StandardScaler(),
    "minmax": MinMaxScaler((-1, 1), clip=True),
    "robust": RobustScaler(),
    "maxabs": MaxAbsScaler(),
    "bins": KBinsDiscretizer(4, encode="ordinal", quantile_method="averaged_inverted_cdf"),
    "bins_onehot": KBinsDiscretizer(5, encode="onehot-dense", strategy="uniform"),
    "pca": PCA(2, whiten=True),
    "best": SelectKBest(f_regression, k=2),
    "log1p": Pipeline([("abs", FunctionTransformer(np.abs)), ("log", FunctionTransformer(np.log1p))]),
    "impute_zero": SimpleImputer(missing_values=0, strategy="mean"),
}


@pytest.mark.parametrize("name", NUMERIC)
def test_numeric_steps(name: str) -> None:
    data = frame()[["a", "b", "c", "n"]]
    y = data["a"] + data["n"]
    agree(Pipeline([("step", NUMERIC[name]), ("model", LinearRegression())]), data, y)


ENCODERS = {
    "onehot": OneHotEncoder(handle_unknown="ignore"),
    "onehot_rare": OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=40),
    "onehot_most": OneHotEncoder(handle_unknown="ignore", max_categories=3),
    "ordinal": OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-2),
    "ordinal_nan": OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-7, encoded_missing_value=-3),
}


@pytest.mark.parametrize("missing", [False, True], ids=["whole", "holes"])
@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_of_strings_and_of_numbers(name: str, missing: bool) -> None:
    data = frame()
    y = data["a"] + data["n"]
    if missing:
        data["n"] = data["n"].astype(float)
        data.loc[::7, ["n", "s"]] = [np.nan, None]
    split = ColumnTransformer(
        [("encode", ENCODERS[name], ["n", "s"]), ("rest", "passthrough", ["b"])], sparse_threshold=0
    )
    agree(Pipeline([("features", split), ("model", LinearRegression())]), data, y)


def test_strings_made_of_numbers_are_looked_up_as_numbers() -> None:
    data = frame()[["n", "s"]]
    chain = Pipeline([("strings", Strings()), ("encode", OneHotEncoder(handle_unknown="ignore"))])
    agree(Pipeline([("features", chain), ("model", LinearRegression())]), data, data["n"] * 2.0)


def test_missing_strings_become_what_the_imputer_says() -> None:
    data = frame()[["s", "a"]]
    data.loc[::5, "s"] = None
    chain = Pipeline(
        [
            ("strings", Strings()),
            ("impute", SimpleImputer(missing_values="", strategy="most_frequent")),
            ("encode", OneHotEncoder(handle_unknown="ignore")),
        ]
    )
    split = ColumnTransformer([("s", chain, ["s"]), ("a", "passthrough", ["a"])], sparse_threshold=0)
    agree(Pipeline([("features", split), ("model", LinearRegression())]), data, frame()["a"])


def test_hash_buckets_hash_alike() -> None:
    data = frame()[["s"]].assign(t=[f"名{i % 37}" for i in range(300)])
    agree(Pipeline([("features", HashBuckets(16)), ("model", LinearRegression())]), data, frame()["n"])


@given(st.lists(st.datetimes(min_value=pd.Timestamp("0005-01-01").to_pydatetime()), min_size=1, max_size=30))
@settings(max_examples=15, deadline=None)
def test_date_parts_agree_on_any_calendar_day(times: list[Any]) -> None:
    data = pd.DataFrame({"t": np.array(times, "datetime64[us]")})
    signature = infer(pa.Table.from_pandas(data), ["t"], "regression")
    for part in DATE_PARTS:
        model = LinearRegression(fit_intercept=False).fit(np.eye(1), [1.0])
        pipeline = Pipeline([("parts", DateParts([part]).fit(data)), ("model", model)])
        graph = export(pipeline, signature)
        found = OnnxModel(graph.data, graph.numbers, graph.strings, signature).predict({"t": data["t"].to_numpy()})
        expected = DateParts([part]).fit(data).transform(data)[:, 0]
        assert found["prediction"].tolist() == expected.tolist(), part


def test_a_missing_time_has_no_parts() -> None:
    data = pd.DataFrame({"t": pd.to_datetime(["2024-02-29", None, "1999-12-31"])})
    pipeline = Pipeline(
        [("parts", DateParts(["day"])), ("impute", SimpleImputer()), ("model", LinearRegression())]
    )
    agree(pipeline, data, [1.0, 2.0, 3.0])


TEXTS = [
    "The Straße is long, long and straight", "naïve café_1 costs 5 euros", "日本 語 の text", "", "x y z",
    "ALL CAPS and ÀÉÎ accents", "numbers 10 200 ½ ² x2", "don't e-mail me: a@b.com", "tab\tand\nline breaks",
]  # fmt: skip
VECTORIZERS = {
    "tfidf": TfidfVectorizer(),
    "bigrams": TfidfVectorizer(ngram_range=(1, 2)),
    "only_bigrams": TfidfVectorizer(ngram_range=(2, 2)),
    "sublinear": TfidfVectorizer(sublinear_tf=True, norm="l1"),
    "stop": TfidfVectorizer(stop_words="english", smooth_idf=False),
    "counts": CountVectorizer(binary=True, lowercase=False),
    "few": TfidfVectorizer(max_features=7),
}


@pytest.mark.parametrize("name", VECTORIZERS)
def test_text_of_every_script(name: str) -> None:
    texts = [f"{text} {extra}" for text in TEXTS for extra in ("Long straight", "euros 10", "日本 cat")] + [""]
    data = pd.DataFrame({"text": texts})
    split = ColumnTransformer([("text", VECTORIZERS[name], "text")])
    y = ["b" if "euros" in text else "a" for text in texts]
    agree(Pipeline([("features", split), ("model", MultinomialNB())]), data, y, "classification", ["a", "b"])


def test_missing_text_is_empty_text() -> None:
    data = pd.DataFrame({"text": [*TEXTS, None, None]})
    chain = ColumnTransformer([("text", Pipeline([("s", Strings()), ("t", TfidfVectorizer())]), "text")])
    pipeline = Pipeline([("features", chain), ("model", LinearRegression())])
    agree(pipeline, data, np.arange(len(data), dtype=float))


def test_rows_of_empty_text_alone() -> None:
    data = pd.DataFrame({"text": TEXTS})
    split = ColumnTransformer([("text", TfidfVectorizer(), "text")])
    pipeline = Pipeline([("features", split), ("model", LinearRegression())]).fit(data, range(len(TEXTS)))
    signature = infer(pa.Table.from_pandas(data), ["text"], "regression")
    graph = export(pipeline, signature)
    columns = {"text": np.array(["", ""], dtype=object)}
    found = OnnxModel(graph.data, graph.numbers, graph.strings, signature).predict(columns)
    expected = SklearnModel(pipeline, signature).predict(columns)
    np.testing.assert_allclose(found["prediction"], expected["prediction"])


def operators(steps: list[Any], names: str) -> list[str]:
    data = frame()[list(names)]
    named = [(f"step{place}", step) for place, step in enumerate(steps)]
    fitted = Pipeline([*named, ("model", LogisticRegression())]).fit(data, data["a"] > 2)
    signature = infer(pa.Table.from_pandas(data), list(data.columns), "classification", [False, True])
    found = compare(
        fitted, export(fitted, signature), signature, columns_of(pa.Table.from_pandas(data), signature)
    )
    assert found.disagree == 0, str(found)
    return [node.op_type for node in onnx.load_from_string(export(fitted, signature).data).graph.node]


def test_a_whole_input_is_not_copied_and_outputs_neither() -> None:
    told = "Sub Div Gemm Sigmoid Sub Concat ArgMax Gather"  # the last one for False and True
    assert operators([StandardScaler()], "abc") == told.split()


def test_neighbours_are_sliced_and_others_gathered() -> None:
    both = ColumnTransformer([("x", StandardScaler(), ["c", "a"]), ("y", MinMaxScaler(), ["n", "b"])])
    assert operators([both], "abcn")[:2] == ["Slice", "Sub"]
    apart = ColumnTransformer([("x", StandardScaler(), [0, 1, 2, 3]), ("y", MinMaxScaler(), [3, 1])])
    assert "Gather" in operators([apart], "abcn")[:-1]  # the last one gives the label
    assert "Gather" in operators([StandardScaler(), ColumnTransformer([("x", "passthrough", [2, 0])])], "abc")[:-1]


def test_what_cannot_be_said_is_named() -> None:
    data = frame()[["a", "b"]]
    pipeline = Pipeline([("f", FunctionTransformer(np.fft.fft)), ("model", LinearRegression())])
    signature = infer(pa.Table.from_pandas(data), ["a", "b"], "regression")
    pipeline[-1].fit(data, data["a"])
    with pytest.raises(Unconvertible, match="FunctionTransformer: 'fft' has no conversion"):
        export(pipeline, signature)
