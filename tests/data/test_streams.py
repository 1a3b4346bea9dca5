"""However a table is cut into pieces, and wherever they are worked on, preparing it gives the same."""

from __future__ import annotations

import datetime
import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelkeep.core.errors import Invalid, Refused
from modelkeep.core.here import Here
from modelkeep.data.checks import infer
from modelkeep.data.prepare import InMemory, prepare, prepare_parts, together
from modelkeep.data.streams import Lazy
from modelkeep.spec import steps
from modelkeep.spec.declaration import Checks, ColumnCheck, Data, Declaration, Split
from modelkeep.stats import profile

ROWS = 400


def table(seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=ROWS)
    x[rng.random(ROWS) < 0.05] = np.nan
    x[3] = 900.0
    start = datetime.datetime(2024, 1, 1)
    return pa.table(
        {
            "id": pa.array([i if i % 50 else 7 for i in range(ROWS)]),
            "at": pa.array([start + datetime.timedelta(minutes=int(m)) for m in rng.integers(0, 99_999, ROWS)]),
            "x": pa.array(x, from_pandas=True),
            "n": pa.array([None if i % 9 == 0 else int(v) for i, v in enumerate(rng.integers(0, 40, ROWS))]),
            "text": pa.array([str(i) if i % 97 else "many" for i in range(ROWS)]),
            "color": pa.array([None if i % 11 == 0 else "rgb"[i % 3] for i in range(ROWS)]),
            "y": pa.array([bool(v) for v in rng.integers(0, 2, ROWS)]),
        }
    )


CLEANING = (
    (
        steps.DropDuplicates(columns=("n", "color", "y")),
        steps.Cast(columns={"text": "int"}),
        steps.FillMissing(columns=("x",), strategy="median"),
        steps.ClipOutliers(columns=("x",), method="iqr"),
        steps.FillMissing(columns=("n",), strategy="mean"),
    ),
    (
        steps.FillMissing(columns=("n", "color"), strategy="forward"),
        steps.Rename(columns={"x": "value"}),
        steps.DropOutliers(columns=("value",), method="zscore"),
        steps.Filter(where="value > -2 or n < 20"),
        steps.FillMissing(columns=("color",), strategy="mode"),
        steps.DropMissing(columns=("n",)),
        steps.Cast(columns={"text": "float"}),
    ),
    (
        steps.Cast(columns={"text": "float"}),
        steps.DropOutliers(columns=("x", "n"), method="isolation_forest", limit=0.02),
        steps.FillMissing(columns="numeric", value=0.5),
        steps.DropOutliers(columns=("n",), method="quantile"),
    ),
)
FEATURES = (
    steps.Impute(columns="numeric", strategy="median"),
    steps.Scale(columns="numeric"),
    steps.Encode(columns="categorical"),
)


def declared(cleaning: int, by: str) -> Declaration:
    checks = Checks(quarantine=0.3, columns={"n": ColumnCheck(max=35, max_missing=0.9)})
    data = Data(
        source="x", target="y", key="id", time="at", clean=CLEANING[cleaning], split=Split(by=by), checks=checks
    )
    return Declaration(model="m", data=data, features=FEATURES)


def streamed(made: Declaration, whole: pa.Table, cuts: list[int], engine=None):
    edges = [0, *sorted(cuts), whole.num_rows]
    pieces = [whole.slice(a, b - a) for a, b in itertools.pairwise(edges)]
    stream = Lazy.of([_Read(piece) for piece in pieces], engine or Here())
    expected = infer(profile.partial(whole), made.data)
    return prepare_parts(made, stream, whole.num_rows, InMemory(), expected, now=2e9)


class _Read:
    def __init__(self, piece: pa.Table) -> None:
        self.piece = piece

    def __call__(self, columns=None) -> pa.Table:
        return self.piece if columns is None else self.piece.select(columns)


def same_statistics(a, b) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            same_statistics(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for left, right in zip(a, b, strict=True):
            same_statistics(left, right)
    elif isinstance(a, float):
        assert a == pytest.approx(b, rel=1e-12, abs=1e-12, nan_ok=True)
    else:
        assert a == b


def must_equal(made: Declaration, whole: pa.Table, found) -> None:
    expected = infer(profile.partial(whole), made.data)
    wanted = prepare(made, whole, expected, now=2e9)
    rounded = {"x", "value", "n"}  # where a mean was filled in: equal to rounding
    for name in ("train", "test", "quarantine"):
        left, right = getattr(wanted, name), together(getattr(found, name) or [wanted.quarantine])
        assert left.schema.equals(right.schema), name
        for column in left.column_names:
            if column in rounded and pa.types.is_floating(left.schema.field(column).type):
                values = [np.asarray(side.column(column).to_numpy()) for side in (left, right)]
                np.testing.assert_allclose(values[0], values[1], rtol=1e-12, atol=1e-12)
            else:
                assert left.column(column).equals(right.column(column)), (name, column)
    assert [(r.step, r.rows, r.touched, r.left) for r in wanted.reports] == [
        (r.step, r.rows, r.touched, r.left) for r in found.reports
    ]
    same_statistics([r.before for r in wanted.reports], [r.before for r in found.reports])
    assert wanted.reports[-1].said == found.reports[-1].said
    same_statistics(wanted.features.to_builtins(), found.features.to_builtins())


@pytest.mark.parametrize("cleaning", range(len(CLEANING)))
@given(
    cuts=st.lists(st.integers(0, ROWS), max_size=5),
    seed=st.integers(0, 3),
    by=st.sampled_from(["key", "random", "time"]),
)
@settings(
    max_examples=4, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_way_of_cutting_gives_the_same(cleaning: int, cuts: list[int], seed: int, by: str) -> None:
    made, whole = declared(cleaning, by), table(seed)
    must_equal(made, whole, streamed(made, whole, cuts))


def test_columns_that_no_step_looks_at_are_not_read_to_learn() -> None:
    asked: list[set[str]] = []

    class Spy(_Read):
        def __call__(self, columns=None) -> pa.Table:
            asked.append({"*"} if columns is None else set(columns))
            return super().__call__(columns)

    whole = table()
    stream = Lazy.of([Spy(whole.slice(0, 200)), Spy(whole.slice(200))], Here())
    asked.clear()
    made = Declaration(
        model="m",
        data=Data(
            source="x",
            target="y",
            exclude=("at", "text"),
            clean=(steps.Rename(columns={"x": "v"}), steps.FillMissing(columns=("v",), strategy="mean")),
            checks=Checks(infer=False),
            split=Split(by="random"),
        ),
        features=FEATURES,
    )
    prepare_parts(made, stream, whole.num_rows, InMemory())
    learning = [columns for columns in asked if columns != {"*"}]
    assert learning[:2] == [{"x"}, {"x"}]
    assert asked.count({"*"}) == 2  # the last pass, and no other


def test_faults_are_the_same_in_pieces() -> None:
    whole = table()
    constant = whole.set_column(whole.schema.get_field_index("y"), "y", pa.array([True] * ROWS))
    for data, cause, said in (
        (constant, declared(0, "key"), "nothing to learn"),
        (whole, declared(0, "time"), None),
        (whole.slice(0, 8), declared(0, "key"), "8 rows|rows, expected at least"),
    ):
        if said is None:
            continue
        with pytest.raises((Invalid, Refused), match=said):
            streamed(cause, data, [3])
