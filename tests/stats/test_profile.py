"""Profiles of random partitionings merge to the profile of the whole."""

from datetime import UTC, datetime
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuts import cuts
from modelkeep.core.errors import Damaged, Invalid
from modelkeep.stats.profile import QUANTILES, Profile, merge, merge_all, partial


def make(rows, seed=0):
    generator = np.random.default_rng(seed)
    x = generator.normal(1e6, 3, rows)
    y = x * 2 + generator.normal(0, 3, rows)
    gone = generator.random(rows) < 0.1
    return pa.table(
        {
            "x": pa.array(x),
            "y": pa.array(y, mask=gone),
            "whole": pa.array(generator.integers(0, 50, rows)),
            "wild": pa.array(generator.choice([np.inf, -np.inf, 0.5, 1.5, 2.5], rows), mask=gone),
            "city": pa.array(
                generator.choice(["Rom", "Oslo", "", "Łódź"], rows), mask=generator.random(rows) < 0.2
            ),
            "yes": pa.array(generator.random(rows) < 0.3),
            "at": pa.array((generator.integers(0, 10**6, rows) * 10**6).astype("datetime64[us]")),
            "id": pa.array([f"row-{seed}-{i}" for i in range(rows)]),
            "none": pa.nulls(rows),
            "list": pa.array([[1.0]] * rows),
        }
    )


def exact(profile):
    """What is equal however the rows are cut, by column."""
    return {
        name: (
            column.stored,
            column.kind,
            column.type,
            column.rows,
            column.missing,
            column.infinite,
            column.distinct.hashes.tolist(),
            (column.moments.count, column.moments.low, column.moments.high),
            column.quantiles.n,
        )
        for name, column in profile.columns.items()
    }


def merged_in_any_order(parts, order):
    parts = list(parts)
    order.shuffle(parts)
    while len(parts) > 1:
        one = parts.pop(order.randrange(len(parts)))
        two = parts.pop(order.randrange(len(parts)))
        parts.append(merge(one, two))
    return parts[0]


@settings(max_examples=25, deadline=None)
@given(parts=cuts(3000), order=st.randoms(use_true_random=False))
def test_any_partitioning_merges_to_the_whole(parts, order):
    """Counts, extremes and distinct values are equal; means to 1e-12, spreads to 1e-9, correlations to 1e-8;
    quantiles within the sketch's error of rank, frequent values within their slack."""
    table = make(3000)
    merged = merged_in_any_order((partial(table.slice(p.start, p.stop - p.start)) for p in parts), order)
    whole = partial(table)
    assert merged.rows == 3000
    assert exact(merged) == exact(whole)
    frame = table.to_pandas()
    seconds = frame["at"].astype("int64") / 1e6
    for name, values in {**frame[["x", "y", "whole", "wild"]], "at": seconds}.items():
        values, column = values[np.isfinite(values)], merged.columns[name]
        assert column.moments.mean == pytest.approx(values.mean(), rel=1e-12)
        assert column.moments.std == pytest.approx(values.std(), rel=1e-9)
        for share in QUANTILES:
            at = column.quantile(share)
            below, upto = (values < at).mean(), (values <= at).mean()
            assert below - 0.014 <= share <= upto + 0.014, (name, share)
    for name in ("city", "id", "yes"):
        ours, theirs = merged.columns[name].moments, whole.columns[name].moments
        assert (ours.mean, ours.std) == (
            pytest.approx(theirs.mean, rel=1e-12),
            pytest.approx(theirs.std, rel=1e-9),
        )
    for name, column in merged.columns.items():
        if name not in ("list", "none"):
            true = (seconds if name == "at" else frame[name]).replace([np.inf, -np.inf], np.nan).value_counts()
            for value, count in column.frequent.counts.items():
                assert count <= true[value] <= count + column.frequent.slack, (name, value)
            lost = true.drop(list(column.frequent.counts), errors="ignore").max()
            assert not lost > column.frequent.slack, name
    assert merged.columns["city"].frequent.slack == merged.columns["yes"].frequent.slack == 0
    names = list(merged.joint.names)
    assert sorted(names) == ["whole", "wild", "x", "y"]
    expected = frame[names].replace([np.inf, -np.inf], np.nan).corr().to_numpy()
    assert merged.joint.correlations() == pytest.approx(expected, abs=1e-8)


def test_an_empty_table_changes_nothing():
    table = make(500)
    whole = partial(table)
    for empty in (Profile(), partial(table.slice(0, 0)), partial(pa.table({}))):
        for merged in (merge(whole, empty), merge(empty, whole)):
            assert merged.summary() == whole.summary()
    assert merge_all([]).summary() == {"rows": 0, "columns": {}}


def test_bytes_come_back_equal():
    whole = partial(make(5000))
    again = Profile.from_bytes(whole.to_bytes())
    assert again.summary() == whole.summary()
    assert merge(again, whole).rows == 10_000
    with pytest.raises(Damaged):
        Profile.from_bytes(b"nonsense")
    with pytest.raises(Damaged):
        Profile.from_bytes(whole.to_bytes()[:-20])


def test_summary_says_what_pandas_says():
    table = make(4000)
    found = partial(table).summary()["columns"]
    frame = table.to_pandas()
    assert {name: column["kind"] for name, column in found.items()} == {
        "x": "numeric", "y": "numeric", "whole": "numeric", "wild": "numeric", "city": "categorical",
        "yes": "boolean", "at": "time", "id": "categorical", "none": "unknown", "list": "other",
    }  # fmt: skip
    assert found["y"]["missing"] == frame["y"].isna().sum()
    assert found["city"]["distinct"] == 4
    assert found["yes"]["mean"] == pytest.approx(frame["yes"].mean())
    assert found["whole"]["top"][0][1] == frame["whole"].value_counts().iloc[0]
    assert sum(found["x"]["histogram"]["counts"]) == pytest.approx(4000, abs=1)
    counts, _ = np.histogram(frame["x"], bins=found["x"]["histogram"]["edges"])
    assert np.abs(counts - found["x"]["histogram"]["counts"]).max() < 0.015 * 4000
    assert found["at"]["min"] == frame["at"].min().tz_localize(UTC).isoformat()


def test_distinct_values_are_estimated_within_their_error():
    for rows in (100, 2000, 50_000):
        found = partial(make(rows)).columns
        assert found["id"].distinct.count == pytest.approx(rows, rel=0.07)
        assert found["x"].distinct.count == pytest.approx(rows, rel=0.07)


def test_strings_that_differ_little_are_told_apart():
    words = ["", "a", "b", "aa", "ab", "ba", "\0", "\0\0", "abc", "acb", "bac"]
    assert partial(pa.table({"w": words * 3})).columns["w"].distinct.count == len(words)
    assert partial(pa.table({"w": words}).slice(3, 4)).columns["w"].distinct.count == 4


def test_nan_is_missing_and_infinity_is_counted_apart():
    found = partial(pa.table({"v": [1.0, float("nan"), None, float("inf"), float("-inf"), 3.0]})).summary()
    column = found["columns"]["v"]
    assert (column["missing"], column["infinite"], column["mean"], column["max"]) == (2, 2, 2.0, 3.0)


def test_other_types_are_understood():
    table = pa.table(
        {
            "day": pa.array([datetime(2013, 1, 5).date(), None], pa.date32()),
            "kind": pa.array(["a", "b"]).dictionary_encode(),
            "price": pa.array([Decimal(1), Decimal(2)], pa.decimal128(9, 2)),
            "blank": pa.array([None, None], pa.string()),
        }
    )
    found = partial(table).summary()["columns"]
    assert [column["kind"] for column in found.values()] == ["time", "categorical", "numeric", "unknown"]
    assert found["day"]["max"] == "2013-01-05T00:00:00+00:00"
    assert found["price"]["mean"] == 1.5


def test_a_column_that_appears_later_was_missing_before():
    merged = merge(partial(pa.table({"a": [1, 2]})), partial(pa.table({"a": [3], "b": ["x"]})))
    assert merged.columns["b"].rows == 3
    assert merged.columns["b"].missing == 2


def test_a_column_that_changes_type_is_an_error():
    with pytest.raises(Invalid, match="'a' is int64 in one part and string in another"):
        merge(partial(pa.table({"a": [1]})), partial(pa.table({"a": ["1"]})))


def test_frequent_values_bound_their_error():
    generator = np.random.default_rng(5)
    values = generator.zipf(1.3, 60_000).clip(max=20_000).astype(str)
    parts = [partial(pa.table({"v": values[start : start + 10_000]})) for start in range(0, 60_000, 10_000)]
    frequent = merge_all(parts).columns["v"].frequent
    truth = pd.Series(values).value_counts()
    assert len(frequent.counts) == 1024
    for value, count in frequent.counts.items():
        assert count <= truth[value] <= count + frequent.slack
    assert truth[~truth.index.isin(list(frequent.counts))].max() <= frequent.slack
    assert [value for value, _ in frequent.top(5)] == truth.index[:5].tolist()
