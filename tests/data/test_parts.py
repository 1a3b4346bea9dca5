"""Large partitions make several parts, functions give parts on demand, uneven buckets are told and cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modelkeep.core.here import Here
from modelkeep.data import parts, pieces
from modelkeep.data.buckets import skewed
from modelkeep.data.changes import changed
from modelkeep.data.snapshots import Snapshots
from modelkeep.spec.declaration import Data, Origin, Partition
from modelkeep.store.blobs import Blobs
from modelkeep.store.database import Database

CODE = """
import pyarrow as pa

def rows(part, size):
    yield pa.table({"id": range(part * size, (part + 1) * size), "x": [part / 2] * size})
"""


def file(folder: Path, rows: int, groups: int, **more) -> Path:
    path = folder / "d" / "one.parquet"
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"id": range(rows), "x": np.arange(rows) / 2, **more}), path, row_group_size=groups)
    return path


def test_a_large_partition_is_several_parts(
    snapshots: Snapshots, db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", 10_000)
    monkeypatch.setattr("modelkeep.data.readers.PIECE_ROWS", 1000)
    path, data = file(tmp_path, 5000, 500), Data(source="d")
    first = snapshots.take(data, "m", tmp_path, 1.0)
    assert [part.name for part in first.parts] == ["d/one.parquet", *(f"d/one.parquet::{n}" for n in (2, 3, 4, 5))]
    assert snapshots.scan(first).column("id").to_pylist() == list(range(5000))
    assert changed(db, data, "m", tmp_path) == []
    assert snapshots.take(data, "m", tmp_path, 2.0).digest == first.digest
    pq.write_table(pa.table({"id": range(5000, 5100), "x": [0.5] * 100}), tmp_path / "d" / "two.parquet")
    second = snapshots.take(data, "m", tmp_path, 3.0)
    assert second.parts[:5] == first.parts
    assert second.rows == 5100
    file(tmp_path, 1000, 500)  # smaller now: its later parts are gone
    assert changed(db, data, "m", tmp_path) == ["d/one.parquet"]
    assert [part.rows for part in snapshots.take(data, "m", tmp_path, 4.0).parts] == [1000, 100]
    path.unlink()
    assert changed(db, data, "m", tmp_path) == ["d/one.parquet"]


def test_a_function_gives_its_parts_on_demand(snapshots: Snapshots, tmp_path: Path) -> None:
    (tmp_path / "makes_parts.py").write_text(CODE)
    origin = Origin(function="makes_parts:rows", params={"size": 100}, parts=4)
    opened: list[Here] = []

    class Counting(Here):
        def map(self, fn, parts, **more):
            given = list(parts)
            opened.append(self)
            assert [task.partition for task in given] == [f"makes_parts:rows/{part}" for part in range(4)]
            return super().map(fn, given, **more)

    here = snapshots.take(Data(source=origin), "m", tmp_path, 1.0)
    there = snapshots.take(Data(source=origin), "n", tmp_path, 1.0, engine=Counting)
    assert len(opened) == 1
    assert there.digest == here.digest
    assert snapshots.scan(there).column("x").to_pylist()[::100] == [0.0, 0.5, 1.0, 1.5]


@pytest.mark.parametrize("by", ["hash", "range"])
def test_buckets_are_even(snapshots: Snapshots, tmp_path: Path, by: str) -> None:
    for number in range(3):  # each file holds another range: the first alone would not tell where to cut
        path = tmp_path / "d" / f"{number}.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"id": range(number * 8000, (number + 1) * 8000)}), path)
    made = snapshots.take(
        Data(source="d", partition=Partition(by=by, columns=("id",), parts=8)), "m", tmp_path, 1.0
    )
    assert sum(made.bucket_rows.values()) == 24_000
    assert skewed(made.bucket_rows) == []
    assert max(made.bucket_rows.values()) < 1.2 * 3000


@pytest.mark.parametrize("by", ["hash", "range"])
def test_a_key_with_half_of_the_rows_is_told_and_cut(
    snapshots: Snapshots, blobs: Blobs, tmp_path: Path, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "GROUP_ROWS", 1000)
    monkeypatch.setattr(pieces, "LEAST", 2000 * 16)
    monkeypatch.setenv("MODELKEEP_MEMORY", "1MB")
    key = np.where(np.arange(20_000) % 2, 7, np.arange(20_000))
    file(tmp_path, 20_000, 20_000, key=key)
    made = snapshots.take(
        Data(source="d", partition=Partition(by=by, columns=("key",), parts=8)), "m", tmp_path, 1.0
    )
    (one,) = skewed(made.bucket_rows)
    assert 0.5 <= one.share < 0.65  # its neighbours of one even range may be with it
    assert one.times == pytest.approx(one.share * 8)
    each = pieces.row_bytes(blobs, made)
    cut = pieces.cut(blobs, made, each, 4, bucket=one.bucket)
    assert len(cut) >= 5
    tables = [piece(["key", "id"]) for piece in cut]
    assert max(table.num_rows for table in tables) <= 3000
    assert sum(table.num_rows for table in tables) == one.rows
    assert pa.concat_tables(tables).equals(snapshots.bucket(made, one.bucket, ["key", "id"]))
