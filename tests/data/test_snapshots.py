"""Snapshots: by content, only what is new is read, nothing half-done stays."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelkeep.core.errors import Conflict, Invalid, NotFound
from modelkeep.data import readers, sources
from modelkeep.data.changes import changed
from modelkeep.data.snapshots import Snapshots
from modelkeep.spec.declaration import Data, Partition
from modelkeep.store.database import Database

DATA = Data(source="d")


def day(folder: Path, number: int, rows: int = 50, **more) -> Path:
    path = folder / "d" / f"{number}.parquet"
    path.parent.mkdir(exist_ok=True)
    ids = range(number * 1000, number * 1000 + rows)
    table = {"id": list(ids), "x": [i % 7 / 2 for i in ids], "s": [f"s{i % 3}" for i in ids], **more}
    pq.write_table(pa.table(table), path)
    return path


def test_unchanged_content_is_the_same_snapshot(snapshots: Snapshots, db: Database, tmp_path: Path) -> None:
    path = day(tmp_path, 1)
    first = snapshots.take(DATA, "m", tmp_path, 1.0)
    assert (first.rows, first.parent, first.name) == (50, None, "m")
    os.utime(path, ns=(7, 7))
    assert changed(db, DATA, "m", tmp_path) == ["d/1.parquet"]
    again = snapshots.take(DATA, "m", tmp_path, 2.0)
    assert again.digest == first.digest
    assert changed(db, DATA, "m", tmp_path) == []
    assert len(snapshots.named("m")) == 1
    elsewhere = snapshots.take(DATA, "other", tmp_path, 3.0)
    assert elsewhere.digest == first.digest


def test_equal_rows_from_csv_and_parquet_make_equal_bytes(snapshots: Snapshots, tmp_path: Path) -> None:
    table = pq.read_table(day(tmp_path, 1, rows=3000))
    table.to_pandas().to_csv(tmp_path / "t.csv", index=False)
    one = snapshots.take(DATA, "m", tmp_path, 1.0)
    assert snapshots.take(Data(source="t.csv"), "n", tmp_path, 1.0).digest == one.digest


def test_appending_a_day_reads_a_day(
    snapshots: Snapshots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2, 3):
        day(tmp_path, number)
    first = snapshots.take(DATA, "m", tmp_path, 1.0)
    day(tmp_path, 4, y=[1.0] * 50)
    read = []
    pieces = readers.pieces
    monkeypatch.setattr(sources, "pieces", lambda file, text: (read.append(file.name), pieces(file, text))[1])
    second = snapshots.take(DATA, "m", tmp_path, 2.0)
    assert read == ["d/4.parquet"]
    assert second.parent == first.digest
    assert [part.digest for part in second.parts[:3]] == [part.digest for part in first.parts]
    rows = snapshots.scan(second)
    assert rows.num_rows == 200
    assert rows.column("y").null_count == 150
    assert rows.column("id").to_pylist() == sorted(rows.column("id").to_pylist())
    summary = snapshots.profile(second).summary()
    assert summary["rows"] == 200
    assert summary["columns"]["id"]["max"] == 4049
    assert summary["columns"]["y"]["missing"] == 150


def test_types_widen_across_parts_and_conflicts_name_both(snapshots: Snapshots, tmp_path: Path) -> None:
    day(tmp_path, 1, v=list(range(50)), n=pa.nulls(50))
    day(tmp_path, 2, v=[0.5] * 50, n=["text"] * 50)
    taken = snapshots.take(DATA, "m", tmp_path, 1.0)
    assert {name: str(taken.schema.field(name).type) for name in ("v", "n")} == {"v": "double", "n": "string"}
    assert snapshots.scan(taken, ["v"]).column("v").to_pylist()[49:51] == [49.0, 0.5]
    day(tmp_path, 3, v=["words"] * 50)
    with pytest.raises(Invalid) as caught:
        snapshots.take(DATA, "m", tmp_path, 2.0)
    for word in ("'v'", "double", "string", "d/2.parquet", "d/3.parquet"):
        assert word in str(caught.value)


def test_a_failure_leaves_no_trace(snapshots: Snapshots, tmp_path: Path) -> None:
    day(tmp_path, 1)
    (tmp_path / "d" / "2.csv").write_text("id,x,s\n1,2\n")
    with pytest.raises(Invalid, match=r"2\.csv:2:1"):
        snapshots.take(DATA, "m", tmp_path, 1.0)
    assert snapshots.latest("m") is None
    blobs = tmp_path / "home" / "blobs"
    assert not [path for path in blobs.rglob("*") if path.is_file()]


def test_pieces_of_one_file_widen(snapshots: Snapshots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "PIECE_BYTES", 1000)
    (tmp_path / "t.csv").write_text("a,b\n" + "".join(f"{i},{i}{'.5' if i > 400 else ''}\n" for i in range(500)))
    taken = snapshots.take(Data(source="t.csv"), "m", tmp_path, 1.0)
    assert [str(field.type) for field in taken.schema] == ["int64", "double"]
    assert snapshots.scan(taken).column("a").to_pylist() == list(range(500))
    assert len(taken.parts) == 1


def test_append_adds_rows_that_stay(snapshots: Snapshots, db: Database, tmp_path: Path) -> None:
    day(tmp_path, 1)
    snapshots.take(DATA, "m", tmp_path, 1.0)
    extra = day(tmp_path, 9).rename(tmp_path / "late.parquet")
    appended = snapshots.append("m", extra, 2.0)
    assert appended.rows == 100
    day(tmp_path, 2)
    assert changed(db, DATA, "m", tmp_path) == ["d/2.parquet"]
    assert snapshots.take(DATA, "m", tmp_path, 3.0).rows == 150
    with pytest.raises(Conflict):
        snapshots.append("m", extra, 4.0)
    with pytest.raises(NotFound):
        snapshots.append("nobody", extra, 4.0)
    pq.write_table(pa.table({"id": [1], "x": [1.0], "z": ["a"]}), tmp_path / "odd.parquet")
    with pytest.raises(Invalid, match="no column 'z'"):
        snapshots.append("m", tmp_path / "odd.parquet", 5.0)


def test_diff_by_key_and_by_row(snapshots: Snapshots, tmp_path: Path) -> None:
    day(tmp_path, 1)
    day(tmp_path, 2)
    before = snapshots.take(DATA, "m", tmp_path, 1.0)
    changed = pq.read_table(tmp_path / "d" / "2.parquet").slice(5).to_pandas()
    changed.loc[0, "x"] = 99.0
    changed["new"] = 1
    changed.to_parquet(tmp_path / "d" / "2.parquet")
    day(tmp_path, 3, rows=10)
    after = snapshots.take(DATA, "m", tmp_path, 2.0)
    diff = snapshots.diff(before, after, ["id"])
    assert (diff.rows_added, diff.rows_removed, diff.rows) == (10, 5, (100, 105))
    assert diff.rows_changed == 45  # the new column made all differ
    assert diff.columns_added == {"new": "int64"}
    assert (
        diff.examples["removed"] == [{"id": i} for i in (2000, 2001, 2002, 2003, 2004)] or diff.rows_removed == 5
    )
    whole = snapshots.diff(before, after)
    assert (whole.rows_added, whole.rows_removed, whole.rows_changed) == (55, 50, None)
    assert snapshots.diff(after, after).rows_added == 0


def test_drift_is_named(snapshots: Snapshots, tmp_path: Path) -> None:
    day(tmp_path, 1, rows=2000, moved=[i % 100 for i in range(2000)])
    before = snapshots.take(DATA, "m", tmp_path, 1.0)
    day(tmp_path, 2, rows=2000, moved=[50 + i % 100 for i in range(2000)])
    after = snapshots.take(DATA, "m", tmp_path, 2.0)
    drift = {found.column: found for found in snapshots.diff(before, after).drift}
    assert drift["moved"].changed
    assert drift["moved"].distance == pytest.approx(0.5, abs=0.06)
    assert not drift["x"].changed
    assert not drift["s"].changed


@pytest.mark.parametrize("by", ["hash", "range"])
def test_partitioning_by_columns(snapshots: Snapshots, tmp_path: Path, by: str) -> None:
    column = "x" if by == "hash" else "id"
    day(tmp_path, 1, rows=400)
    data = Data(source="d", partition=Partition(by=by, columns=(column,), parts=4))  # type: ignore[arg-type]
    first = snapshots.take(data, "m", tmp_path, 1.0)
    day(tmp_path, 2, rows=100)
    second = snapshots.take(data, "m", tmp_path, 2.0)
    assert second.parts[0].digest == first.parts[0].digest
    found = [set(snapshots.bucket(second, number, [column]).column(column).to_pylist()) for number in range(4)]
    assert sum(snapshots.bucket(second, number).num_rows for number in range(4)) == 500
    assert all(not (a & b) for i, a in enumerate(found) for b in found[:i])
    if by == "range":
        assert all(max(a) < min(b) for a, b in itertools.pairwise(found) if a and b)
    whole = snapshots.take(DATA, "m", tmp_path, 3.0)
    assert whole.buckets is None
    with pytest.raises(Invalid):
        snapshots.bucket(whole, 0)


@given(st.lists(st.integers(0, 300), max_size=3).map(sorted))
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_goes_in_comes_out(snapshots: Snapshots, tmp_path: Path, cuts: list[int]) -> None:
    table = pa.table({"a": list(range(300)), "b": [None if i % 5 else f"v{i}" for i in range(300)]})
    for old in (tmp_path / "d").glob("*") if (tmp_path / "d").exists() else ():
        old.unlink()
    (tmp_path / "d").mkdir(exist_ok=True)
    edges = sorted({0, *cuts, 300})
    for number, (start, stop) in enumerate(itertools.pairwise(edges)):
        pq.write_table(table.slice(start, stop - start), tmp_path / "d" / f"{number}.parquet")
    taken = snapshots.take(DATA, "m", tmp_path, 1.0)
    assert snapshots.scan(taken).equals(table)
    assert snapshots.get(taken.digest) == taken


def test_inferred_checks_come_from_the_first(snapshots: Snapshots, tmp_path: Path) -> None:
    day(tmp_path, 1)
    snapshots.take(DATA, "m", tmp_path, 1.0)
    day(tmp_path, 2, x=[1000.0] * 50)
    second = snapshots.take(DATA, "m", tmp_path, 2.0)
    assert snapshots.checks(second, DATA).checks.columns["x"].max == pytest.approx(3 + 3 * 3)
