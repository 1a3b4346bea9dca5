"""Every cleaning step leaves the same rows of a table in any parts as of the table whole, to the last bit: without
a key a row's own content says whether it is for training or evaluation."""

from __future__ import annotations

import math
import typing
from fractions import Fraction
from functools import reduce

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuts import cuts
from modelkeep.core.here import Here
from modelkeep.data.prepare import InMemory, prepare, prepare_parts
from modelkeep.data.statistics import Exact
from modelkeep.data.streams import Lazy
from modelkeep.spec import steps
from modelkeep.spec.declaration import Data, Declaration

ROWS = 80

CHAINS: dict[str, tuple[steps.CleanStep, ...]] = {
    "duplicates": (steps.DropDuplicates(columns=("a", "b")),),
    "forward": (steps.FillMissing(columns=("a", "b"), strategy="forward"), steps.DropMissing(columns=("a",))),
    "mean": (steps.FillMissing(columns=("a", "v"), strategy="mean"),),
    "median": (steps.FillMissing(columns=("a", "v"), strategy="median"),),
    "mode": (steps.FillMissing(columns=("a", "b"), strategy="mode"),),
    "constant": (steps.FillMissing(columns=("v",), value=-1),),
    "zscore": (steps.DropOutliers(columns=("v",), method="zscore", limit=1.5),),
    "clipped zscore": (steps.ClipOutliers(columns=("v",), method="zscore", limit=1),),
    "iqr": (steps.ClipOutliers(columns=("a", "v"), limit=0.2),),
    "quantile": (steps.DropOutliers(columns=("a", "v"), method="quantile", limit=0.1),),
    "isolation forest": (steps.DropOutliers(columns=("a", "v"), method="isolation_forest", limit=0.1),),
    "cast": (steps.Cast(columns={"a": "string"}), steps.Rename(columns={"a": "word"})),
    "filter": (steps.Filter(where="v > 3"), steps.DropDuplicates(columns=("a", "v"))),
}


def table() -> pa.Table:
    rng = np.random.default_rng(0)
    return pa.table(
        {
            "a": pa.array(rng.integers(0, 30, ROWS), mask=rng.random(ROWS) < 0.2),
            "b": pa.array(rng.choice(["x", "y", "z"], ROWS), mask=rng.random(ROWS) < 0.2),
            "v": pa.array(rng.normal(5, 3, ROWS), mask=rng.random(ROWS) < 0.1),
            "place": pa.array(range(ROWS), pa.int64()),
            "y": pa.array(rng.integers(0, 2, ROWS)),
        }
    )


def test_every_step_is_tried() -> None:
    tried = {type(step) for chain in CHAINS.values() for step in chain}
    assert tried == set(typing.get_args(steps.CleanStep))


@given(
    st.lists(st.floats(-1e300, 1e300, allow_subnormal=True) | st.sampled_from([0.1, 5e-324, 1e16, np.nan])),
    st.data(),
)
@settings(max_examples=60)
def test_sums_of_parts_are_exact(values: list[float], data: st.DataObject) -> None:
    column = np.array(values, dtype=np.float64)
    parts = data.draw(cuts(len(column)))
    found = reduce(Exact.merge, (Exact.of(column[part], squares=True) for part in parts))
    assert found == Exact.of(column, squares=True)
    real = [Fraction(value) for value in values if value == value]
    mean = sum(real, Fraction()) / max(len(real), 1)
    assert found.mean == float(mean)
    variance = sum(((value - mean) ** 2 for value in real), Fraction()) / max(len(real), 1)
    assert found.deviation**2 == pytest.approx(float(variance) if variance < 1e308 else math.inf, rel=1e-12)


@pytest.mark.parametrize("name", CHAINS)
@given(parts=cuts(ROWS))
@settings(max_examples=8, deadline=None)
def test_parts_are_cleaned_as_the_whole_is(name: str, parts: list[slice]) -> None:
    data = table()
    declared = Declaration(
        model="m",
        data=Data(source="x", target="y", time="place", exclude=("b", "word"), clean=CHAINS[name]),
        features=(steps.Impute(columns="numeric"),),
    )
    wanted = prepare(declared, data)
    pieces = [data.slice(part.start, part.stop - part.start) for part in parts]
    found = prepare_parts(declared, Lazy.of([_Read(piece) for piece in pieces], Here()), ROWS, InMemory())
    for ours, theirs in ((found.train, wanted.train), (found.test, wanted.test)):
        assert pa.concat_tables(ours).equals(theirs)
    assert found.features.to_builtins()["inputs"] == wanted.features.to_builtins()["inputs"]
    assert [(report.step, report.rows, report.touched, report.left) for report in found.reports] == [
        (report.step, report.rows, report.touched, report.left) for report in wanted.reports
    ]


class _Read:
    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __call__(self, columns=None) -> pa.Table:
        return self.table if columns is None else self.table.select(columns)
