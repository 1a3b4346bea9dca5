"""The split is stable under growth and the same everywhere."""

from __future__ import annotations

import datetime
import hashlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep.core.compiled import Pays
from modelkeep.core.errors import Invalid
from modelkeep.data import hashing
from modelkeep.data.hashing import row_hashes
from modelkeep.data.split import SALT, test_rows
from modelkeep.spec.declaration import Split

test_rows.__test__ = False  # type: ignore[attr-defined]

KEYS = st.lists(st.one_of(st.integers(-(2**50), 2**50), st.text(max_size=8)), min_size=1, max_size=60, unique=True)


@pytest.mark.parametrize("compiled", [True, False])
def test_the_hash_is_md5_as_defined_elsewhere(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "_pays", Pays(1 if compiled else 1_000_000))
    # Up to the most that fits in one block of MD5, and in more rows than are worked on at once.
    texts = [text[:size] for size in range(48) for text in ("x" * 99, "é" * 99, "0123456789" * 9)]
    numbers = [None if row % 7 == 0 else (-3) ** (row % 30) for row in range(len(texts))]
    rows = pa.table({"k": pa.chunked_array([texts[:50], [], texts[50:]]), "n": pa.array(numbers, pa.int64())})
    for table, names in ((rows.slice(3), ["k"]), (rows.slice(3), ["k", "n"]), (rows.slice(3), ["n"])):
        joined = [
            "\x1f".join("\0" if v is None else str(v) for v in row.values())
            for row in table.select(names).to_pylist()
        ]
        expected = [hashlib.md5(f"salt:{text}".encode()).digest()[8:] for text in joined]
        found = row_hashes(table, names, "salt:")
        assert found.tolist() == [int.from_bytes(digest, "big") for digest in expected]


@given(KEYS, KEYS)
@settings(max_examples=30, deadline=None)
def test_no_row_changes_sides_as_the_table_grows(old: list, new: list) -> None:
    texts = [str(key) for key in dict.fromkeys([*old, *new])]
    now = row_hashes(pa.table({"k": texts, "other": range(len(texts))}), ["k"], SALT)
    before = row_hashes(pa.table({"k": texts[: len(old)], "other": ["x"] * len(old)}), ["k"], SALT)
    assert now[: len(old)].tolist() == before.tolist()


@given(st.lists(st.integers(-(2**52), 2**52), min_size=1, max_size=30))
@settings(max_examples=20, deadline=None)
def test_a_missing_value_elsewhere_does_not_move_rows(keys: list[int]) -> None:
    whole = row_hashes(pa.table({"k": pa.array(keys, pa.int64())}), ["k"], SALT)
    floats = row_hashes(pa.table({"k": pa.array([*map(float, keys), None], pa.float64())}), ["k"], SALT)
    assert floats[:-1].tolist() == whole.tolist()


def test_times_hash_alike_in_any_unit_and_zone() -> None:
    when = [datetime.datetime(2024, 5, 6, 7, 8, 9)]
    kinds = (pa.timestamp("s"), pa.timestamp("us"), pa.timestamp("us", "UTC"))
    found = {int(row_hashes(pa.table({"t": pa.array(when, kind)}), ["t"], "")[0]) for kind in kinds}
    assert len(found) == 1


def test_shares_are_met() -> None:
    table = pa.table({"k": range(20_000), "t": pa.array(range(20_000), pa.timestamp("s"))})
    assert test_rows(table, Split(test=0.3), ["k"], "").mean() == pytest.approx(0.3, abs=0.01)
    chosen = test_rows(table, Split(test=0.3, by="random"), [], "", seed=1)
    assert chosen.sum() == 6000
    assert (chosen == test_rows(table, Split(test=0.3, by="random"), [], "", seed=1)).all()
    assert (chosen != test_rows(table, Split(test=0.3, by="random"), [], "", seed=2)).any()
    late = test_rows(table, Split(test=0.3, by="time"), [], "t")
    assert np.flatnonzero(late)[0] == 14_000
    assert late.sum() == 6000


def test_one_moment_is_never_divided() -> None:
    table = pa.table({"t": pa.array([1, 1, 2, 2, 2, 3, 3, 3, 3, 3], pa.timestamp("s"))})
    assert test_rows(table, Split(test=0.2, by="time"), [], "t").tolist() == [False] * 5 + [True] * 5


@pytest.mark.parametrize(
    ("split", "keys", "time", "said"),
    [
        (Split(test=1.5), ["k"], "", "data.split.test"),
        (Split(), ["kk"], "", "did you mean 'k'"),
        (Split(by="time"), [], "", "needs the time column"),
        (Split(by="time"), [], "t", "have no 't'"),
        (Split(test=0.0001), ["k"], "", "side of training"),
    ],
)
def test_impossible_splits(split: Split, keys: list[str], time: str, said: str) -> None:
    table = pa.table({"k": [1, 2], "t": pa.array([1, None], pa.timestamp("s"))})
    with pytest.raises(Invalid, match=said):
        test_rows(table, split, keys, time)
