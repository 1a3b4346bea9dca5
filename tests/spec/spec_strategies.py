"""Hypothesis strategies that make valid declarations."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from modelkeep.spec import declaration as d
from modelkeep.spec import names, steps

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
COLUMN = st.one_of(
    st.sampled_from(["distance", "no", "1e-3", "10:30", "null", "a b", "ünï", "<<", "columns"]), TEXT
).filter(lambda name: name != "target")
SCALAR = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    TEXT,
    st.sampled_from(["yes", "0x1f", "~", ""]),
)
VALUE: st.SearchStrategy[Any] = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=5
)
PARAMS = st.dictionaries(TEXT, VALUE, max_size=3)
NAMES = st.lists(COLUMN, min_size=1, max_size=3, unique=True).map(tuple)
COLUMNS = st.sampled_from(names.COLUMN_GROUPS) | NAMES

CLEAN = st.one_of(
    st.builds(steps.DropDuplicates, columns=st.just(()) | NAMES),
    st.builds(steps.DropMissing, columns=st.just(()) | NAMES),
    st.builds(steps.FillMissing, columns=COLUMNS, strategy=st.sampled_from(["mean", "median", "mode"])),
    st.builds(steps.FillMissing, columns=COLUMNS, value=SCALAR.filter(lambda value: value is not None)),
    st.builds(
        steps.ClipOutliers,
        columns=COLUMNS,
        method=st.sampled_from(["zscore", "iqr", "quantile"]),
        limit=st.none() | st.floats(0.01, 0.49),
    ),
    st.builds(steps.DropOutliers, columns=COLUMNS, method=st.just("isolation_forest")),
    st.builds(
        steps.Cast, columns=st.dictionaries(COLUMN, st.sampled_from(names.CAST_TYPES), min_size=1, max_size=3)
    ),
    st.builds(steps.Rename, columns=st.dictionaries(COLUMN, TEXT, min_size=1, max_size=1)),
    st.builds(steps.Filter, where=st.sampled_from(["distance > 0", "a in ('x', \"y\") and not `b c` is null"])),
)
FEATURE = st.one_of(
    st.builds(steps.Impute, columns=COLUMNS, strategy=st.sampled_from(["mean", "median", "mode"])),
    st.builds(steps.Scale, columns=COLUMNS, method=st.sampled_from(["standard", "minmax", "robust"])),
    st.builds(
        steps.Encode,
        columns=COLUMNS,
        method=st.sampled_from(["onehot", "ordinal", "label"]),
        unseen=st.sampled_from(["ignore", "error"]),
        max_categories=st.none() | st.integers(2, 99),
    ),
    st.builds(steps.Bin, columns=COLUMNS, bins=st.integers(2, 50)),
    st.builds(steps.DateParts, columns=COLUMNS, parts=st.sampled_from([("year",), ("hour", "minute")])),
    st.builds(steps.Tfidf, columns=COLUMNS, max_features=st.none() | st.integers(1, 99), ngrams=st.just((1, 2))),
    st.builds(steps.Hash, columns=COLUMNS, buckets=st.integers(1, 2**20)),
    st.builds(steps.Function, function=st.just("mine.steps:make"), columns=COLUMNS, params=PARAMS),
)
SOURCE = TEXT.filter(str.strip) | st.one_of(
    st.builds(d.Origin, url=TEXT, query=TEXT), st.builds(d.Origin, function=st.just("mine:rows"), params=PARAMS)
)
SPACE = st.one_of(
    st.lists(TEXT, min_size=1, max_size=3, unique=True).map(tuple),
    st.builds(d.Range, low=st.floats(0.001, 1), high=st.floats(2, 9), log=st.booleans()),
)
TRAIN = st.builds(
    d.Train,
    algorithm=st.sampled_from(["random_forest", "auto", "sklearn.svm.SVC", "mine:fit"]),
    params=PARAMS,
    tune=st.none() | st.builds(d.Tune, trials=st.integers(1, 99), space=st.dictionaries(st.just("other"), SPACE)),
    metric=st.sampled_from(["", "roc_auc", "rmse"]),
    seed=st.integers(0, 2**32 - 1),
    time_budget=st.sampled_from(["60s", "1h30m"]),
).filter(lambda train: "other" not in train.params)
DATA = st.builds(
    d.Data,
    source=SOURCE,
    target=st.just("target"),
    key=st.just(()) | st.sampled_from(["id", ("id", "day")]),
    exclude=st.sampled_from([(), ("excluded!",)]),
    clean=st.lists(CLEAN, max_size=4).map(tuple),
    split=st.builds(d.Split, test=st.floats(0.01, 0.99), by=st.sampled_from(["key", "random"])),
    checks=st.builds(
        d.Checks,
        columns=st.dictionaries(
            TEXT, st.builds(d.ColumnCheck, max_missing=st.none() | st.floats(0, 1), off=st.booleans())
        ),
        min_rows=st.integers(1, 1000),
    ),
).filter(lambda data: True)
DECLARATIONS = st.builds(
    d.Declaration,
    model=st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,20}\Z"),
    data=DATA,
    description=st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    features=st.lists(FEATURE, max_size=4).map(tuple),
    train=TRAIN,
    gates=st.sampled_from([(), ("slice(carrier).log_loss <= champion.log_loss + 0.01", "latency_ms.p99 <= 5")]),
    deploy=st.builds(d.Deploy, rollout=st.sampled_from([(), ("shadow 1m", "canary 5% 10m")])),
    monitor=st.builds(d.Monitor, log=st.builds(d.Log, sample=st.floats(0, 1))),
    update=st.builds(d.Update, when=st.sampled_from([(), ("drift", "cron 0 3 * * mon-fri")])),
)
