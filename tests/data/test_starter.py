"""The first declaration guesses well and runs as written."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from modelkeep.core.errors import Invalid, NotFound
from modelkeep.data.prepare import prepare
from modelkeep.data.sources import open_source
from modelkeep.data.starter import declare
from modelkeep.spec.loading import load_text


def frame(rows: int = 400) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    start = datetime.datetime(2024, 1, 1)
    return pd.DataFrame(
        {
            "order_id": [f"o{i}" for i in range(rows)],
            "created_at": [start + datetime.timedelta(hours=i) for i in range(rows)],
            "price": rng.normal(size=rows),
            "city": rng.choice(["Rome", "Oslo", "yes", 'No: "x"'], rows),
            "zip code": rng.choice([f"z{i}" for i in range(60)], rows),
            "member": rng.random(rows) < 0.5,
            "review": [" ".join(rng.choice(["good", "bad", "slow", "quick", "never"], 12)) for _ in range(rows)],
            "nothing": [None] * rows,
            "token": [f"{i:x}-{i * 7:x}" for i in range(rows)],
            "churn": rng.integers(0, 2, rows),
        }
    )


def test_it_runs_as_written(tmp_path: Path) -> None:
    frame().to_csv(tmp_path / "Shop Orders.csv", index=False)
    text = declare(tmp_path / "Shop Orders.csv")
    made = load_text(text)
    assert (made.model, made.data.target, made.data.key, made.data.time) == (
        "shop-orders",
        "churn",
        "order_id",
        "created_at",
    )
    assert set(made.data.exclude) == {"nothing", "token"}
    assert (made.train.task, made.train.metric) == ("classification", "roc_auc")
    source = open_source(made.data, tmp_path)
    table = pa.concat_tables(source.pieces(next(iter(source.fingerprint()))))
    prepared = prepare(made, table)
    assert prepared.inputs == ["price", "city", "zip code", "member", "review"]
    assert prepared.features.to_sklearn().get_feature_names_out().size > 40


@pytest.mark.parametrize(
    ("columns", "target", "task"),
    [
        ({"a": [1.5, 2.5, 3.5], "b": [0.1, 0.2, 0.7]}, "b", "regression"),
        ({"Label": ["x", "y", "x"], "b": [0.1, 0.2, 0.7]}, "Label", "classification"),
        ({"b": [0.1, 0.2, 0.7], "flag": [True, False, True], "row_id": [1, 2, 3]}, "flag", "classification"),
    ],
)
def test_targets_are_guessed(tmp_path: Path, columns: dict, target: str, task: str) -> None:
    pd.DataFrame(columns).to_csv(tmp_path / "t.csv", index=False)
    made = load_text(declare(tmp_path / "t.csv"))
    assert (made.data.target, made.train.task) == (target, task)


def test_nothing_to_predict(tmp_path: Path) -> None:
    pd.DataFrame({"a": [1, 1], "b": [2, 2]}).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(Invalid, match="no column can be predicted"):
        declare(tmp_path / "t.csv")
    with pytest.raises(NotFound):
        declare(tmp_path / "gone.csv")
