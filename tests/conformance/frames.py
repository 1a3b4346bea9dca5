"""What relational work promises, wherever it is done: every place gives what a plain loop or NumPy gives."""

from __future__ import annotations

import functools

import narwhals as nw
import numpy as np
import pyarrow as pa
import pytest

from modelkeep.core.here import Here
from modelkeep.data.learning import occurs_before
from modelkeep.data.prepare import InMemory, prepare, prepare_parts
from modelkeep.data.relations import Frames, counted, filled_forward, quantiles, repeated
from modelkeep.data.streams import Lazy
from modelkeep.spec import steps
from modelkeep.spec.declaration import Data, Declaration

ROWS = 300


@functools.cache
def rows() -> pa.Table:
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 60, ROWS).astype(float)
    return pa.table(
        {
            "a": pa.array([None if i % 17 == 0 else int(v) for i, v in enumerate(numbers)], pa.int64()),
            "b": pa.array([None if i % 13 == 0 else "xyz"[i % 3] for i in range(ROWS)]),
            "v": pa.array(np.where(np.arange(ROWS) % 7, numbers / 3, np.nan), from_pandas=True),
            "place": pa.array(range(ROWS), pa.int64()),
        }
    )


def pieces() -> list[pa.Table]:
    return [rows().slice(0, 90), rows().slice(90, 110), rows().slice(200)]


class _Part:
    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self, columns=None) -> pa.Table:
        table = pieces()[self.number]
        return table if columns is None else table.select(columns)


class FramesSuite:
    """Subclasses give ``frames``, a place that is open, and ``relational``, an engine that brings such."""

    @pytest.fixture
    def frames(self) -> Frames:
        raise NotImplementedError

    @pytest.fixture
    def relational(self, frames: Frames):
        class Relational(Here):
            def frames(self) -> Frames:
                return frames

        frames.close = lambda: None  # it is the fixture's
        return Relational()

    def test_filter_cast_and_aggregate(self, frames: Frames) -> None:
        table = frames.table(pieces())
        made = (
            table.filter(nw.col("a") > 30)
            .with_columns(nw.col("a").cast(nw.Float64))
            .group_by("b")
            .agg(nw.len().alias("n"), nw.col("a").sum().alias("sum"), nw.col("v").mean().alias("mean"))
        )
        found = {row["b"]: row for row in frames.collect(made).to_pylist()}
        wanted = rows().to_pandas()
        wanted = wanted[wanted.a > 30].groupby("b", dropna=False)
        assert {key: row["n"] for key, row in found.items()} == {
            None if key != key else key: len(part) for key, part in wanted
        }
        for key, part in wanted:
            row = found[None if key != key else key]
            assert row["sum"] == part.a.sum()
            assert row["mean"] == pytest.approx(part.v.mean())

    def test_joins(self, frames: Frames) -> None:
        left = frames.table(pieces())
        right = frames.table([pa.table({"b": ["x", "y"], "factor": [2, 3]})])
        for how in ("inner", "left", "semi", "anti"):
            made = left.join(right, on="b", how=how)
            found = frames.collect(made.select("place")).column("place").to_pylist()
            known = [b in ("x", "y") for b in rows().column("b").to_pylist()]
            kept = {"inner": known, "semi": known, "left": [True] * ROWS, "anti": [not k for k in known]}[how]
            assert sorted(found) == np.flatnonzero(kept).tolist(), how

    def test_equal_rows_over_partitions(self, frames: Frames) -> None:
        seen, again = set(), []
        for row in rows().to_pylist():
            key = (row["a"], row["b"])
            if key in seen:
                again.append(row["place"])
            seen.add(key)
        found = frames.collect(repeated(frames.table(pieces()), ["a", "b"], "place"))
        assert sorted(found.column("place").to_pylist()) == again

    def test_forward_fills(self, frames: Frames) -> None:
        found = frames.collect(filled_forward(frames.table(pieces()), "b", ["place"]).select("place", "b"))
        last, wanted = None, []
        for value in rows().column("b").to_pylist():
            last = value if value is not None else last
            wanted.append(last)
        assert found.sort_by("place").column("b").to_pylist() == wanted

    def test_quantiles(self, frames: Frames) -> None:
        shares = [0.0, 0.01, 0.25, 0.5, 0.9, 1.0]
        found = quantiles(frames, frames.table(pieces()), "v", shares)
        values = rows().column("v").drop_null().to_numpy()
        assert found == pytest.approx(np.quantile(values, shares).tolist(), rel=1e-12)
        none = frames.table([pa.table({"v": pa.array([None], pa.float64())})])
        assert quantiles(frames, none, "v", [0.5]) == [None]
        counts = frames.collect(counted(frames.table(pieces()), "a")).column("n").to_pylist()
        assert sum(counts) == rows().column("a").drop_null().length()

    def test_an_engine_that_brings_it_prepares_the_same(self, relational) -> None:
        stream = Lazy.of([_Part(number) for number in range(3)], relational)
        again = occurs_before(stream, ["a", "b"])
        assert {number: found.tolist() for number, found in again.items() if len(found)}
        made = Declaration(
            model="m",
            data=Data(
                source="x",
                target="b",
                time="place",
                clean=(
                    steps.DropDuplicates(columns=("a", "b")),
                    steps.FillMissing(columns=("a", "v"), strategy="forward"),
                    steps.DropMissing(),
                ),
            ),
            features=(steps.Impute(columns="numeric"),),
        )
        wanted = prepare(made, rows())
        found = prepare_parts(made, stream, ROWS, InMemory())
        assert pa.concat_tables(found.train).equals(wanted.train)
        assert pa.concat_tables(found.test).equals(wanted.test)
