"""Rows are checked, set aside with reasons, divided, and made fit to train on."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from modelkeep.core.errors import Invalid, Refused
from modelkeep.data.checks import infer
from modelkeep.data.prepare import prepare
from modelkeep.spec import steps
from modelkeep.spec.declaration import Checks, ColumnCheck, Data, Declaration, Split
from modelkeep.stats import profile

ROWS = 1000


def table(rows: int = ROWS, **changed) -> pa.Table:
    rng = np.random.default_rng(0)
    made = {
        "id": list(range(rows)),
        "at": pa.array([1_700_000_000 + i for i in range(rows)], pa.timestamp("s")),
        "x": rng.normal(size=rows).tolist(),
        "color": [["red", "green", "blue"][i % 3] for i in range(rows)],
        "noise": ["n"] * rows,
        "y": [i % 2 for i in range(rows)],
    }
    for name, change in changed.items():
        made[name] = change(list(made[name])) if callable(change) else change
    return pa.table(made)


def declaration(**data) -> Declaration:
    fields = {"source": "x", "target": "y", "key": "id", "time": "at", "exclude": ("noise",), **data}
    features = (steps.Impute(columns="numeric"), steps.Encode(columns="categorical"))
    return Declaration(model="m", data=Data(**fields), features=features)


def put(index: int, value):
    def change(values: list) -> list:
        return [*values[:index], value, *values[index + 1 :]]

    return change


def test_rows_are_divided_and_features_fitted() -> None:
    made = prepare(declaration(), table())
    assert made.inputs == ["x", "color"]
    assert made.train.num_rows + made.test.num_rows == ROWS
    assert made.train.column_names == ["id", "at", "x", "color", "y"]
    assert not set(made.train.column("id").to_pylist()) & set(made.test.column("id").to_pylist())
    assert made.quarantine.num_rows == 0
    assert made.features.inputs == ("x", "color")
    assert made.reports[-1].step == "checks"


def test_growth_moves_no_row() -> None:
    small = prepare(declaration(), table(500))
    large = prepare(declaration(), table(1000))
    assert set(small.test.column("id").to_pylist()) <= set(large.test.column("id").to_pylist())
    assert set(small.train.column("id").to_pylist()) <= set(large.train.column("id").to_pylist())


@pytest.mark.parametrize(
    ("changed", "data", "reason"),
    [
        ({"x": put(5, float("inf"))}, {}, "x is infinite"),
        ({"y": put(5, None)}, {}, "y (the target) is missing"),
        ({"id": put(5, 4)}, {}, "id (the key) occurs before"),
        ({"id": put(5, None)}, {}, "id (the key) is missing"),
        ({"x": put(5, -99.0)}, {"checks": Checks(columns={"x": ColumnCheck(min=-50)})}, "x is below -50"),
        (
            {"color": put(5, "pink")},
            {"checks": Checks(columns={"color": ColumnCheck(categories=("red", "green", "blue"))})},
            "color is none of red, green, blue",
        ),
        (
            {"noise": [f"{i // 2 * 2 if i < 2 else i}" for i in range(ROWS)]},
            {
                "checks": Checks(columns={"noise": ColumnCheck(unique=True)}),
                "exclude": ("color",),
            },
            "noise occurs before",
        ),
        ({"x": put(5, 1e6)}, {}, "x is above"),
    ],
)
def test_failing_rows_are_kept_aside_with_the_reason(changed: dict, data: dict, reason: str) -> None:
    made = declaration(**data)
    expected = infer(profile.partial(table()), made.data)
    if "noise" in changed:
        expected = infer(profile.partial(table(**changed)), made.data)
        made = Declaration(
            model="m", data=made.data, features=(steps.Impute(columns="numeric"), steps.Hash(columns=("noise",)))
        )
    found = prepare(made, table(**changed), expected)
    assert found.quarantine.num_rows == 1
    assert found.quarantine.column("reason")[0].as_py().startswith(reason)
    assert found.train.num_rows + found.test.num_rows == ROWS - 1
    assert found.reports[-1].touched == 1


def test_too_many_failing_rows_stop_the_work() -> None:
    with pytest.raises(Refused) as caught:
        prepare(declaration(), table(id=[i // 2 for i in range(ROWS)]))
    assert "500 of 1000 rows" in str(caught.value)
    assert "id (the key) occurs before" in str(caught.value)
    assert "for example {" in str(caught.value)


def test_a_new_season_passes_and_a_broken_source_does_not() -> None:
    made = declaration()
    expected = infer(profile.partial(table()), made.data)
    season = table(x=lambda values: [value + 6 for value in values], color=lambda values: ["white", *values[1:]])
    found = prepare(made, season, expected)
    assert found.quarantine.num_rows == 0
    assert found.reports[-1].said["unseen"] == {"color": {"white": 1}}
    broken = {
        "mostly new": table(color=["other"] * 900 + ["red"] * 100),
        "no value": table(x=lambda values: [None] * 600 + values[600:]),
        "no column": table().drop_columns(["x"]),
        "another type": table(x=[str(i) for i in range(ROWS)]),
        "few rows": table(50),
        "older": table(at=pa.array([1_600_000_000 + i for i in range(ROWS)], pa.timestamp("s"))),
    }
    said = {
        "mostly new": "900 of 1000 rows hold values never seen",
        "no value": "60.0% of the rows have no value",
        "no column": "column 'x' is expected",
        "another type": "column 'x' is of type string, expected numeric",
        "few rows": "the source holds 50 rows",
        "older": "the newest row is of 2020-09-13",
    }
    for name, rows in broken.items():
        with pytest.raises((Refused, Invalid)) as caught:
            prepare(made, rows, expected)
        assert said[name] in str(caught.value), name


def test_freshness_is_what_is_declared() -> None:
    made = declaration(checks=Checks(max_age="1d"))
    prepare(made, table(), now=1_700_000_000 + 80_000)
    with pytest.raises(Refused, match="older than 1d"):
        prepare(made, table(), now=1_700_000_000 + 90_000)


def test_checks_follow_renames_and_casts_go_aside() -> None:
    made = Declaration(
        model="m",
        data=Data(
            source="x",
            target="y",
            key="id",
            exclude=("noise", "at", "color"),
            clean=(steps.Cast(columns={"x": "float"}), steps.Rename(columns={"x": "value"})),
        ),
    )
    text = table(x=lambda values: ["what", *map(str, values[1:])])
    expected = infer(profile.partial(text), made.data)
    found = prepare(made, text, expected)
    assert found.inputs == ["value"]
    assert found.quarantine.column("reason").to_pylist() == ["cast x: 'what' is no float"]


@pytest.mark.parametrize(
    ("rows", "data", "said"),
    [
        (table(y=[1] * ROWS), {}, "the target 'y' is 1 in all 1000 rows"),
        (table(), {"target": "yy"}, "did you mean 'y'"),
        (table(), {"time": "ate"}, "did you mean 'at'"),
        (table(), {"target": "id"}, "the target and the key"),
        (table(), {"exclude": ("noise", "x", "color")}, "no column is left"),
        (table(x=pa.nulls(ROWS, pa.float64())), {}, "column 'x' has no value"),
        (table(5), {}, "5 rows, expected at least 10"),
        (table(), {"exclude": ()}, "column 'noise'"),
    ],
)
def test_what_cannot_be_learnt_from_is_named(rows: pa.Table, data: dict, said: str) -> None:
    made = declaration(**data)
    if said == "column 'noise'":
        made = Declaration(model="m", data=made.data, features=(steps.Encode(columns=("color",)),))
    with pytest.raises((Invalid, Refused)) as caught:
        prepare(made, rows)
    assert said in str(caught.value)


def test_time_split_keeps_the_latest() -> None:
    made = prepare(declaration(split=Split(by="time", test=0.25)), table())
    assert made.test.column("id").to_pylist() == list(range(750, 1000))


def test_a_category_never_seen_at_serving_is_nothing() -> None:
    import pandas as pd

    made = prepare(declaration(), table()).features.to_sklearn(dense=True)
    row = made.transform(pd.DataFrame({"x": [0.0], "color": ["never seen"]}))
    assert row.tolist() == [[0.0, 0.0, 0.0, 0.0]]


def test_ten_thousand_columns_are_prepared() -> None:
    rng = np.random.default_rng(0)
    columns = {f"c{i}": rng.normal(size=100) for i in range(10_000)}
    wide = pa.table({**columns, "y": [i % 2 for i in range(100)], "id": list(range(100))})
    made = Declaration(
        model="m",
        data=Data(source="x", target="y", key="id"),
        features=(steps.Impute(columns="numeric"), steps.Scale(columns="numeric")),
    )
    found = prepare(made, wide)
    found.features.to_sklearn()
    assert len(found.inputs) == 10_000
