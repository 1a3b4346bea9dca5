"""Requests against signatures: what fits becomes arrays, what does not is named with its row."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep.core.errors import Invalid
from modelkeep.formats.batch import Batch, Layout
from modelkeep.formats.signature import Field, Signature
from modelkeep.formats.validate import MOST_PROBLEMS, Checker

SIGNATURE = Signature(
    inputs=(
        Field(name="x", type="float64", min=0.0, max=1.0),
        Field(name="maybe", type="float64", required=False),
        Field(name="n", type="int64"),
        Field(name="opt_n", type="int64", required=False),
        Field(name="b", type="bool"),
        Field(name="s", type="string", categories=("a", "b"), strict=True),
        Field(name="free", type="string", required=False, categories=("a",)),
        Field(name="t", type="timestamp", required=False),
    ),
    outputs=(Field(name="prediction", type="float64"),),
    task="regression",
)
GOOD: dict[str, list[Any]] = {
    "x": [0.5, 7],
    "maybe": [None, 2.5],
    "n": [3, 4.0],
    "opt_n": [None, 9],
    "b": [True, 0],
    "s": ["a", "b"],
    "free": [None, "日本"],
    "t": ["1970-01-01T00:00:01Z", None],
}


def problems(columns: Any, rows: int = 2, **options: Any) -> dict[str, str]:
    with pytest.raises(Invalid) as failed:
        Checker(SIGNATURE, **options).check(columns, rows)
    return {problem.path: problem.message for problem in failed.value.problems}


def test_what_fits_becomes_typed_arrays() -> None:
    found = Checker(SIGNATURE).check(GOOD, 2)
    assert {name: column.dtype.str for name, column in found.items()} == {
        "x": "<f8", "maybe": "<f8", "n": "<i8", "opt_n": "<f8", "b": "|b1", "s": "|O", "free": "|O",
        "t": "<M8[us]",
    }  # fmt: skip
    assert found["x"].tolist() == [0.5, 7.0]  # 7 is out of the range seen in training: drift, not an error
    assert np.isnan(found["maybe"][0]) and np.isnan(found["opt_n"][0])
    assert found["n"].tolist() == [3, 4]
    assert found["b"].tolist() == [True, False]
    assert found["free"].tolist() == [None, "日本"]
    assert found["t"][0] == np.datetime64("1970-01-01T00:00:01") and np.isnat(found["t"][1])
    assert len(found) == 8


def test_optional_inputs_may_be_left_out() -> None:
    given = {name: GOOD[name] for name in ("x", "n", "b", "s")}
    found = Checker(SIGNATURE).check(given, 2)
    assert np.isnan(found["maybe"]).all() and np.isnat(found["t"]).all() and found["free"].tolist() == [None, None]


def test_arrays_are_taken_as_lists_are() -> None:
    arrays = {
        "x": np.array([0.5, 7.0], np.float32),
        "maybe": np.array([np.nan, 2.5]),
        "n": np.array([3, 4], np.int32),
        "opt_n": np.array([np.nan, 9.0]),
        "b": np.array([True, False]),
        "s": np.array(["a", "b"]),
        "free": np.array([None, "日本".encode()], dtype=object),
        "t": np.array(["1970-01-01T00:00:01", "NaT"], "datetime64[ns]"),
    }
    a, b = Checker(SIGNATURE).check(arrays, 2), Checker(SIGNATURE).check(GOOD, 2)
    for name in b:
        np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize(
    ("name", "values", "path", "message"),
    [
        ("x", [0.5, "7"], "inputs.x[1]", "found '7', expected a number"),
        ("x", ["a", 1.0], "inputs.x[0]", "found 'a', expected a number"),
        ("x", [None, 1.0], "inputs.x[0]", "is missing, expected a number"),
        ("x", [0.5, float("nan")], "inputs.x[1]", "is missing, expected a number"),
        ("x", [0.5, float("inf")], "inputs.x[1]", "found inf, expected a number"),
        ("x", [[1.0], 2.0], "inputs.x[0]", "found [1.0], expected a number"),
        ("x", [10**400, 1.0], "inputs.x[0]", "expected a number"),
        ("x", [10**5000, 1.0], "inputs.x[0]", "found an integer of 16610 bits, expected a number"),
        ("maybe", [1.0, {}], "inputs.maybe[1]", "found {}, expected a number"),
        ("maybe", [1.0, float("-inf")], "inputs.maybe[1]", "found -inf, expected a number"),
        ("n", [1, 2.5], "inputs.n[1]", "found 2.5, expected a whole number"),
        ("n", [1, None], "inputs.n[1]", "is missing, expected a whole number"),
        ("b", [True, 2], "inputs.b[1]", "found 2, expected true or false"),
        ("b", [True, "true"], "inputs.b[1]", "found 'true', expected true or false"),
        ("s", ["a", "z"], "inputs.s[1]", "'z' was never seen in training, expected one of a, b"),
        ("s", ["a", 5], "inputs.s[1]", "found 5, expected a string"),
        ("s", ["a", None], "inputs.s[1]", "is missing, expected a string"),
        ("free", ["a", b"\xff"], "inputs.free[1]", "found b'\\xff', expected a string"),
        ("t", ["yesterday", None], "inputs.t[0]", "found 'yesterday', expected an ISO 8601 time"),
        ("t", [True, None], "inputs.t[0]", "found True, expected an ISO 8601 time"),
        ("x", [1.0], "inputs.x", "has 1 values, expected 2"),
        ("y", [1.0, 2.0], "inputs.y", "the model has no such input; it takes x, maybe, n"),
    ],
)
def test_what_does_not_fit_is_named_with_its_row(name: str, values: Any, path: str, message: str) -> None:
    found = problems({**GOOD, name: values})
    assert list(found) == [path]
    assert message in found[path]


def test_all_problems_are_told_at_once_up_to_a_limit() -> None:
    found = problems({**GOOD, "x": ["a", 1.0], "n": [0.5, 1], "s": [1, "z"]})
    assert set(found) == {"inputs.x[0]", "inputs.n[0]", "inputs.s[0]", "inputs.s[1]"}
    many = {name: [None] * 500 for name in GOOD}
    assert len(problems(many, 500)) == MOST_PROBLEMS


def test_missing_inputs_are_named() -> None:
    found = problems({"n": [1, 2], "b": [True, True], "s": ["a", "a"]})
    assert found == {"inputs.x": "is missing, expected a number"}


def test_unknown_inputs_may_be_ignored() -> None:
    found = Checker(SIGNATURE, unknown="ignore").check({**GOOD, "y": ["?", "?"]}, 2)
    assert "y" not in found


STRICT = Signature(
    inputs=(
        Field(name="x", type="float64", min=0.1, max=99.9, strict=True),
        Field(name="gap", type="float64", required=False, max=1e300, strict=True),
        Field(name="n", type="int64", min=-3.0, max=9007199254740991.0, strict=True),
        Field(name="t", type="timestamp", required=False, min=0.0, max=1e12, strict=True),
        Field(name="free", type="float64", min=0.0, max=1.0),
    ),
    outputs=(),
    task="regression",
)
FITS: dict[str, list[Any]] = {
    "x": [0.1, 99.9],
    "gap": [None, -1.0],
    "n": [-3, 0],
    "t": [None, 0],
    "free": [5.0, 1.0],
}


@pytest.mark.parametrize("kind", [list, lambda values: np.array(values, np.float64)])
def test_what_lies_in_a_strict_range_or_is_missing_passes(kind: Any) -> None:
    found = Checker(STRICT).check({name: kind(values) for name, values in FITS.items()}, 2)
    assert found["x"].tolist() == [0.1, 99.9] and found["free"].tolist() == [5.0, 1.0]
    through = np.array([0.1, 99.9], np.float32)  # is above 0.1 and below 99.9, or the other way round
    assert Checker(STRICT).check({**FITS, "x": through}, 2)["x"].tolist() == through.astype(float).tolist()


@pytest.mark.parametrize(
    ("name", "values", "path", "message"),
    [
        ("x", [0.1, 100], "inputs.x[1]", "found 100, expected a number from 0.1 to 99.9"),
        ("x", [0.0999, 1], "inputs.x[0]", "found 0.0999, expected a number from 0.1 to 99.9"),
        ("x", ["a", 1], "inputs.x[0]", "found 'a', expected a number from 0.1 to 99.9"),
        ("x", [float("inf"), 1], "inputs.x[0]", "found inf, expected a number from 0.1 to 99.9"),
        ("gap", [None, 2e300], "inputs.gap[1]", "found 2e+300, expected a number of at most 1e+300"),
        ("n", [-4, 1], "inputs.n[0]", "found -4, expected a whole number from -3 to 9007199254740991"),
        ("n", [1, 2**60], "inputs.n[1]", "found 1152921504606846976, expected a whole number from"),
        ("t", [None, "1969-12-31"], "inputs.t[1]", "'1969-12-31', expected an ISO 8601 time"),
        (
            "t",
            [None, 1e12 + 1],
            "inputs.t[1]",
            "UTC from 1970-01-01T00:00:00.000000 to 1970-01-12T13:46:40.000000",
        ),
    ],
)
def test_what_lies_outside_of_a_strict_range_is_named_with_the_range(
    name: str, values: Any, path: str, message: str
) -> None:
    with pytest.raises(Invalid) as failed:
        Checker(STRICT).check({**FITS, name: values}, 2)
    assert [problem.path for problem in failed.value.problems] == [path]
    assert message in failed.value.problems[0].message


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2024-02-29T12:30:00+02:00", datetime(2024, 2, 29, 10, 30, tzinfo=UTC)),
        ("1965-07-01", datetime(1965, 7, 1, tzinfo=UTC)),
        ("2024-02-29 12:30:00.000001", datetime(2024, 2, 29, 12, 30, 0, 1, tzinfo=UTC)),
        (1_500_000, datetime(1970, 1, 1, 0, 0, 1, 500_000, tzinfo=UTC)),
    ],
)
def test_times_are_utc(value: Any, expected: datetime) -> None:
    found = Checker(SIGNATURE).check({**GOOD, "t": [value, None]}, 2)
    assert found["t"][0].item().replace(tzinfo=UTC) == expected


CELLS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.lists(st.integers(), max_size=2)
)


@given(st.dictionaries(st.sampled_from([*GOOD, "other"]), st.lists(CELLS, min_size=1, max_size=3)))
@settings(max_examples=150, deadline=None)
def test_anything_is_either_a_batch_or_invalid(columns: dict[str, list[Any]]) -> None:
    rows = len(next(iter(columns.values()), [1]))
    try:
        found = Checker(SIGNATURE).check(columns, rows)
    except Invalid as error:
        assert 1 <= len(error.problems) <= MOST_PROBLEMS
        assert all(problem.path.startswith("inputs.") for problem in error.problems)
        return
    assert found.rows == rows
    assert np.isfinite(found["x"]).all()
    assert set(found["s"]) <= {"a", "b"}
    assert all(text is None or isinstance(text, str) for text in found["free"])


@given(
    st.lists(st.tuples(st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**50), 2**50)), min_size=1)
)
@settings(max_examples=50, deadline=None)
def test_columns_come_out_as_they_went_in(rows: list[tuple[float, int]]) -> None:
    layout = Layout(Signature(inputs=(SIGNATURE.inputs[0], SIGNATURE.inputs[2]), outputs=(), task="regression"))
    x, n = [a for a, _ in rows], [b for _, b in rows]
    found = Checker(layout.signature).check({"x": x, "n": n}, len(rows))
    assert found["x"].tolist() == x and found["n"].tolist() == n
    again = layout.pack({name: found[name] for name in found})
    assert isinstance(again, Batch)
    np.testing.assert_array_equal(again.numbers, found.numbers)
    np.testing.assert_array_equal(again.matrix([1, 0]), found.numbers[[1, 0]].T)
    assert found.take([0]).rows == 1


def test_missing_strings_reach_a_graph_as_empty_ones() -> None:
    found = Checker(SIGNATURE).check(GOOD, 2)
    assert found.texts([0, 1]).tolist() == [["a", ""], ["b", "日本"]]
    assert found.texts([1]).tolist() == [[""], ["日本"]]
