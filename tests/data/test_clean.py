"""Cleaning steps do what they say, in order, and tell what they touched."""

from __future__ import annotations

import datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep.core.errors import Invalid
from modelkeep.data.clean import clean
from modelkeep.data.cleaning import duplicates
from modelkeep.spec import steps

NAN = float("nan")


def table() -> pa.Table:
    return pa.table(
        {
            "id": [3, 1, 3, 2, 1],
            "x": pa.array([1.0, None, 1.0, NAN, 100.0]),
            "n": pa.array([1, 2, 1, None, 4]),
            "s": pa.array(["a", None, "a", "b", "a"]),
            "t": pa.array([datetime.datetime(2024, 1, day) for day in (3, 1, 5, 2, 4)]),
        }
    )


def run(*made, time: str = ""):
    return clean(made, table(), time)


def test_drop_duplicates_keeps_the_first() -> None:
    assert run(steps.DropDuplicates(columns=("id",))).table.column("id").to_pylist() == [3, 1, 2]
    whole = clean([steps.DropDuplicates()], pa.concat_tables([table(), table()]))
    assert whole.table.drop_columns("x").equals(table().drop_columns("x"))
    assert (whole.reports[0].rows, whole.reports[0].touched, whole.reports[0].left) == (10, 5, 5)


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["a", "b", None])), max_size=40))
@settings(max_examples=30, deadline=None)
def test_duplicates_equal_a_plain_loop(rows: list[tuple[int, str | None]]) -> None:
    data = pa.table(
        {"a": pa.array([a for a, _ in rows], pa.int64()), "b": pa.array([b for _, b in rows], pa.string())}
    )
    assert duplicates(data, ["a", "b"]).tolist() == [row in rows[:index] for index, row in enumerate(rows)]


def test_drop_missing_counts_nan() -> None:
    assert run(steps.DropMissing(columns=("x",))).table.column("id").to_pylist() == [3, 3, 1]
    found = run(steps.DropMissing())
    assert found.table.column("id").to_pylist() == [3, 3, 1]
    assert [row["id"] for row in found.reports[0].before] == [1, 2]
    assert found.reports[0].after == []


@pytest.mark.parametrize(
    ("step", "column", "expected"),
    [
        (steps.FillMissing(columns=("x",), value=7), "x", [1.0, 7.0, 1.0, 7.0, 100.0]),
        (steps.FillMissing(columns=("x",), strategy="mean"), "x", [1.0, 34.0, 1.0, 34.0, 100.0]),
        (steps.FillMissing(columns="numeric", strategy="median"), "n", [1.0, 2.0, 1.0, 1.5, 4.0]),
        (steps.FillMissing(columns=("s",), strategy="mode"), "s", ["a", "a", "a", "b", "a"]),
        (steps.FillMissing(columns=("x",), strategy="forward"), "x", [1.0, None, 1.0, None, 100.0]),
    ],
)
def test_fills(step: steps.FillMissing, column: str, expected: list) -> None:
    found = run(step, time="t")
    assert found.table.column(column).to_pylist() == expected
    assert found.table.column("id").to_pylist() == table().column("id").to_pylist()


def test_forward_follows_time_not_position() -> None:
    data = pa.table({"t": pa.array([3, 1, 2], pa.timestamp("s")), "x": pa.array([None, 5.0, None])})
    found = clean([steps.FillMissing(columns=("x",), strategy="forward")], data, "t")
    assert found.table.column("x").to_pylist() == [5.0, 5.0, 5.0]
    assert found.reports[0].touched == 2
    assert found.reports[0].before[0]["x"] is None
    assert found.reports[0].after[0]["x"] == 5.0


@pytest.mark.parametrize("method", ["zscore", "iqr", "quantile", "isolation_forest"])
def test_outliers(method: str) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=1000)
    values[7], values[8] = 50.0, NAN
    data = pa.table({"x": pa.array(values, from_pandas=True), "i": range(1000)})
    dropped = clean([steps.DropOutliers(columns=("x",), method=method)], data)
    assert 7 not in dropped.table.column("i").to_pylist()
    assert 8 in dropped.table.column("i").to_pylist()
    assert 900 < dropped.table.num_rows < 1000
    if method != "isolation_forest":
        clipped = clean([steps.ClipOutliers(columns=("x",), method=method)], data).table.column("x")
        assert clipped[7].as_py() < 10
        assert clipped[8].as_py() is None
        assert clipped[9].as_py() == values[9]


def test_whole_numbers_stay_whole_when_clipped() -> None:
    data = pa.table({"n": [1, 2, 3, 4, None, 1000]})
    made = clean([steps.ClipOutliers(columns=("n",), limit=1.4)], data).table.column("n")
    assert made.type == pa.int64()
    assert made.to_pylist() == [1, 2, 3, 4, None, 6]


def test_casts_that_fail_go_aside_with_the_reason() -> None:
    data = pa.table({"a": ["1", "2.5", "x", None], "when": ["2024-01-02", "2024-01-03", "2024-01-04", None]})
    found = clean([steps.Cast(columns={"a": "float", "when": "timestamp"})], data)
    assert found.table.to_pydict() == {
        "a": [1.0, 2.5, None],
        "when": [datetime.datetime(2024, 1, 2), datetime.datetime(2024, 1, 3), None],
    }
    assert found.aside[0].to_pylist() == [{"a": "x", "when": "2024-01-04", "reason": "cast a: 'x' is no float"}]


def test_rename_and_filter_in_order() -> None:
    found = run(
        steps.Rename(columns={"x": "value"}),
        steps.Filter(where="value > 0 and s in ('a') and `id` != 1"),
        steps.Rename(columns={"value": "v"}),
    )
    assert found.table.column("v").to_pylist() == [1.0, 1.0]
    assert found.renamed == {"x": "v"}
    assert [report.touched for report in found.reports] == [0, 3, 0]


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (steps.DropMissing(columns=("xx",)), "did you mean 'x'"),
        (steps.FillMissing(columns=("s",), strategy="mean"), "holds no numbers"),
        (steps.FillMissing(columns=("n",), value="many"), "cannot fill 'n'"),
        (steps.FillMissing(columns=("x",), strategy="forward"), "order of time"),
        (steps.ClipOutliers(columns=("x",), method="isolation_forest"), "drop_outliers"),
        (steps.DropOutliers(columns=("s",)), "holds no numbers"),
        (steps.Cast(columns={"x": "complex"}), "unknown type 'complex'"),
        (steps.Rename(columns={"x": "n"}), "two columns would be called 'n'"),
        (steps.Filter(where="s > 3"), "does not fit"),
        (steps.Filter(where="y > 3"), "no column 'y'"),
    ],
)
def test_what_does_not_fit_is_named(step, said: str) -> None:
    with pytest.raises(Invalid) as caught:
        run(step)
    assert said in str(caught.value)
    assert "data.clean[0]" in str(caught.value) or "data.time" in str(caught.value)


class Steps:
    def __init__(self):
        self.told = []

    def step(self, name, done, total=None, note=""):
        self.told.append((name, done, total))


def test_progress_comes_to_its_end():
    seen = Steps()
    clean((steps.DropDuplicates(), steps.DropMissing()), pa.table({"a": [1, 1, None]}), "", seen)
    assert seen.told == [("clean", 0, 2), ("clean", 1, 2), ("clean", 2, 2)]
