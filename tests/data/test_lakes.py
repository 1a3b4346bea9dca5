"""Delta and Iceberg tables are pinned by version, read where they lie, and written."""

from __future__ import annotations

import datetime
from pathlib import Path

import pyarrow as pa
import pytest

from modelkeep.core.errors import Conflict, Damaged, Invalid, NotFound
from modelkeep.data import pieces, taking
from modelkeep.data.changes import changed
from modelkeep.data.snapshots import Snapshots
from modelkeep.data.writers import write_delta
from modelkeep.engines.local import LocalEngine
from modelkeep.spec.declaration import Data, Partition
from modelkeep.store.blobs import Blobs
from modelkeep.store.database import Database

deltalake = pytest.importorskip("deltalake")


def rows(first: int, count: int = 100) -> pa.Table:
    ids = range(first, first + count)
    days = [datetime.date(2024, 1, 1 + i % 2) for i in ids]
    return pa.table({"id": list(ids), "x": pa.array([i / 2 for i in ids], pa.float32()), "day": pa.array(days)})


def delta(folder: Path) -> Path:
    """Three versions: written, appended, deleted from."""
    place = folder / "flights"
    deltalake.write_deltalake(place, rows(0), partition_by=["day"])
    deltalake.write_deltalake(place, rows(100), mode="append")
    deltalake.DeltaTable(place).delete("id < 50")
    return place


def ids(snapshots: Snapshots, taken) -> list[int]:
    return sorted(snapshots.scan(taken, ["id"]).column("id").to_pylist())


def test_a_version_is_pinned_without_copying(
    snapshots: Snapshots, blobs: Blobs, db: Database, tmp_path: Path
) -> None:
    place = delta(tmp_path)
    first = snapshots.take(Data(source="delta://flights@0"), "m", tmp_path, 1.0)
    assert ids(snapshots, first) == list(range(100))
    assert first.schema.field("day").type == pa.date32()
    assert first.schema.field("x").type == pa.float64()
    assert all(part.external and part.external.table == f"delta://{place}@0" for part in first.parts)
    kept = sum(blobs.size(digest) for digest in blobs.digests())
    assert kept < 60_000  # profiles and what names the files, no rows
    table = snapshots.scan(first)
    assert {day.isoformat() for day in table.column("day").to_pylist()} == {"2024-01-01", "2024-01-02"}
    each = pieces.row_bytes(blobs, first)
    read = [piece(["day", "id"]) for piece in pieces.cut(blobs, first, each, 1)]
    assert pa.concat_tables(read).select(["id", "day"]).equals(table.select(["id", "day"]))
    second = snapshots.take(Data(source="delta://flights@1"), "m", tmp_path, 2.0)
    assert {part.digest for part in first.parts} < {part.digest for part in second.parts} or second.rows == 200
    newest = snapshots.take(Data(source="delta://flights"), "m", tmp_path, 3.0)
    assert ids(snapshots, newest) == list(range(50, 200))
    assert changed(db, Data(source="delta://flights"), "m", tmp_path) == []
    diff = snapshots.diff(first, newest, ["id"])
    assert (diff.rows_added, diff.rows_removed) == (100, 50)


def test_names_that_are_written_otherwise_in_urls(snapshots: Snapshots, tmp_path: Path) -> None:
    values = ["a b", "c/d", "e%20f", "ü", "g=h"]
    deltalake.write_deltalake(tmp_path / "t", pa.table({"at": values, "x": [1, 2, 3, 4, 5]}), partition_by=["at"])
    taken = snapshots.take(Data(source="delta://t"), "m", tmp_path, 1.0)
    assert sorted(snapshots.scan(taken, ["at"]).column("at").to_pylist()) == sorted(values)


def test_an_engine_reads_the_version_that_was_found(
    snapshots: Snapshots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the newest, when there is a commit meanwhile."""
    monkeypatch.setattr(taking, "MUCH", 0)
    place = delta(tmp_path)

    class Meanwhile(LocalEngine):
        def map(self, *given, **more):
            deltalake.write_deltalake(place, rows(1000), mode="overwrite")
            return super().map(*given, **more)

    with Meanwhile(2) as engine:
        taken = snapshots.take(Data(source="delta://flights"), "m", tmp_path, 1.0, engine=lambda: engine)
    assert deltalake.DeltaTable(place).version() == 3
    assert ids(snapshots, taken) == list(range(50, 200))
    assert {part.external.table for part in taken.parts} == {f"delta://{place}@2"}


def test_a_version_that_was_vacuumed_is_named(snapshots: Snapshots, tmp_path: Path) -> None:
    place = delta(tmp_path)
    taken = snapshots.take(Data(source="delta://flights@1"), "m", tmp_path, 1.0)
    table = deltalake.DeltaTable(place)
    table.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    with pytest.raises(NotFound, match=rf"the files of delta://{place}@1 were vacuumed"):
        snapshots.scan(taken)
    newest = snapshots.take(Data(source="delta://flights"), "m", tmp_path, 2.0)
    assert newest.rows == 150
    file = Path(newest.parts[0].external.location)
    file.write_bytes(file.read_bytes() + b"more")
    with pytest.raises(Damaged, match="when it was pinned"):
        snapshots.scan(newest)


@pytest.mark.parametrize(
    ("source", "kind", "said"),
    [
        ("delta://nowhere", NotFound, "no Delta table at"),
        ("delta://flights@9", NotFound, "has no version 9"),
        ("iceberg://nowhere", NotFound, "no Iceberg table at"),
    ],
)
def test_what_is_not_there(source: str, kind: type[Exception], said: str, snapshots, tmp_path: Path) -> None:
    delta(tmp_path)
    with pytest.raises(kind, match=said):
        snapshots.take(Data(source=source), "m", tmp_path, 1.0)


def test_a_pinned_table_keeps_its_parts(snapshots: Snapshots, tmp_path: Path) -> None:
    delta(tmp_path)
    with pytest.raises(Invalid, match="cannot be partitioned anew"):
        snapshots.take(Data(source="delta://flights", partition=Partition(columns=("id",))), "m", tmp_path, 1.0)


def test_a_snapshot_is_exported_as_a_delta_table(snapshots: Snapshots, tmp_path: Path) -> None:
    delta(tmp_path)
    taken = snapshots.take(Data(source="delta://flights@1"), "m", tmp_path, 1.0)
    out = str(tmp_path / "out")
    assert write_delta(snapshots.tables(taken), taken.schema, out) == 200
    with pytest.raises(Conflict, match="is a Delta table"):
        write_delta(snapshots.tables(taken), taken.schema, out)
    again = snapshots.take(Data(source="delta://out@0"), "n", tmp_path, 1.0)
    assert ids(snapshots, again) == list(range(200))


def test_iceberg_snapshots_are_pinned(snapshots: Snapshots, tmp_path: Path) -> None:
    catalogs = pytest.importorskip("pyiceberg.catalog.sql")
    catalog = catalogs.SqlCatalog("c", uri=f"sqlite:///{tmp_path}/c.db", warehouse=f"file://{tmp_path}/lake")
    catalog.create_namespace("n")
    table = catalog.create_table("n.flights", rows(0).schema)
    table.append(rows(0))
    pinned = table.current_snapshot().snapshot_id
    table.append(rows(100))
    folder = table.location().removeprefix("file://")
    newest = snapshots.take(Data(source=f"iceberg://{folder}"), "m", tmp_path, 1.0)
    assert ids(snapshots, newest) == list(range(200))
    older = snapshots.take(Data(source=f"iceberg://{folder}@{pinned}"), "m", tmp_path, 2.0)
    assert ids(snapshots, older) == list(range(100))
    assert {part.digest for part in older.parts} != {part.digest for part in newest.parts}
    with pytest.raises(NotFound, match="has no snapshot 7"):
        snapshots.take(Data(source=f"iceberg://{folder}@7"), "m", tmp_path, 3.0)
