"""Delta and Iceberg tables on a real S3 server: pinned by version, read where they lie, and written."""

from __future__ import annotations

import time
from pathlib import Path

import obstore
import pyarrow as pa
import pytest
from obstore.store import from_url

from modelkeep.core.errors import Conflict, NotFound
from modelkeep.data import lakes
from modelkeep.data.snapshots import Snapshots
from modelkeep.data.writers import write_delta
from modelkeep.spec.declaration import Data
from modelkeep.store import objects
from modelkeep.store.blobs import Blobs
from objectstore import KEY, SECRET, ObjectStore


def rows(first: int, count: int = 100) -> pa.Table:
    """Of partitions whose names are written otherwise in URLs."""
    ids = range(first, first + count)
    return pa.table({"id": list(ids), "at": [("a b", "c/d")[i % 2] for i in ids], "x": [i * 0.37 for i in ids]})


@pytest.fixture(autouse=True)
def bucket(s3: str) -> None:
    """What lists a bucket before it writes wants it to be there."""
    root, _, prefix = s3.rpartition("/")
    obstore.put(from_url(root, client_options={"allow_http": True}), f"{prefix}/there", b"")


def ids(snapshots: Snapshots, taken) -> list[int]:
    return sorted(snapshots.scan(taken, ["id"]).column("id").to_pylist())


def kept(blobs: Blobs) -> int:
    return sum(blobs.size(digest) for digest in blobs.digests())


def test_delta_versions_are_pinned_without_copying(
    snapshots: Snapshots, blobs: Blobs, s3: str, tmp_path: Path
) -> None:
    deltalake = pytest.importorskip("deltalake")
    place, options = f"{s3}/flights", objects.settings(s3)
    source = f"delta+{place}"
    deltalake.write_deltalake(place, rows(0, 50_000), partition_by=["at"], storage_options=options)
    deltalake.write_deltalake(place, rows(50_000), mode="append", storage_options=options)
    first = snapshots.take(Data(source=f"{source}@0"), "m", tmp_path, 1.0)
    assert ids(snapshots, first) == list(range(50_000))
    assert {part.external.table for part in first.parts} == {f"{source}@0"}
    assert all(part.external.location.startswith(f"{place}/") for part in first.parts)
    assert set(snapshots.scan(first, ["at"]).column("at").to_pylist()) == {"a b", "c/d"}
    assert kept(blobs) < sum(part.external.bytes for part in first.parts) / 4
    newest = snapshots.take(Data(source=source), "m", tmp_path, 2.0)
    assert ids(snapshots, newest) == list(range(50_100))
    with pytest.raises(NotFound, match="has no version 9"):
        snapshots.take(Data(source=f"{source}@9"), "m", tmp_path, 3.0)
    with pytest.raises(NotFound, match="no Delta table at"):
        snapshots.take(Data(source=f"{source}-elsewhere"), "m", tmp_path, 3.0)


def test_a_delta_table_is_written_there(snapshots: Snapshots, s3: str, tmp_path: Path) -> None:
    pytest.importorskip("deltalake")
    table = rows(0)
    assert write_delta([table.slice(0, 40), table.slice(40)], table.schema, f"{s3}/out") == 100
    with pytest.raises(Conflict, match=f"{s3}/out is a Delta table"):
        write_delta([table], table.schema, f"{s3}/out")
    taken = snapshots.take(Data(source=f"delta+{s3}/out@0"), "m", tmp_path, 1.0)
    assert ids(snapshots, taken) == list(range(100))


def test_iceberg_tables_are_found_by_their_folder(
    snapshots: Snapshots, blobs: Blobs, s3: str, object_store: ObjectStore, tmp_path: Path
) -> None:
    catalogs = pytest.importorskip("pyiceberg.catalog.sql")
    told = {"s3.endpoint": object_store.endpoint, "s3.access-key-id": KEY, "s3.secret-access-key": SECRET}
    catalog = catalogs.SqlCatalog(
        "c", uri=f"sqlite:///{tmp_path}/c.db", warehouse=f"{s3}/lake", **told, **{"s3.region": "us-east-1"}
    )
    catalog.create_namespace("n")
    table = catalog.create_table("n.flights", rows(0).schema)
    table.append(rows(0, 400_000))
    pinned = table.current_snapshot().snapshot_id
    for first in range(400_000, 401_100, 100):  # more than ten, so that names do not sort by number unless padded
        table.append(rows(first))
    source = f"iceberg+{table.location()}"
    newest = snapshots.take(Data(source=source), "m", tmp_path, 1.0)
    assert ids(snapshots, newest) == list(range(401_100))
    older = snapshots.take(Data(source=f"{source}@{pinned}"), "older", tmp_path, 2.0)
    assert ids(snapshots, older) == list(range(400_000))
    assert {part.external.table for part in older.parts} == {f"{source}@{pinned}"}
    assert kept(blobs) < sum(part.external.bytes for part in older.parts) / 4
    with pytest.raises(NotFound, match="no Iceberg table at"):
        snapshots.take(Data(source=f"{source}-elsewhere"), "m", tmp_path, 3.0)
    named = snapshots.take(Data(source=f"iceberg+{table.metadata_location}"), "m", tmp_path, 3.0)
    assert named.digest == newest.digest


@pytest.mark.parametrize("names", [("v2", "v9", "v10"), ("00002-f", "00009-e", "00010-a", "00010-b")])
def test_the_newest_metadata_is_of_the_highest_number(names: tuple[str, ...], s3: str, tmp_path: Path) -> None:
    """Whenever it was written: stores tell times of whole seconds, and copies have other ones."""
    root, _, prefix = s3.rpartition("/")
    store = from_url(root, client_options={"allow_http": True})
    (tmp_path / "t" / "metadata").mkdir(parents=True)
    for name in [*names[-2:], *names[:-2]]:
        if name == "00010-b":
            time.sleep(1.1)  # of two the later
        file = f"metadata/{name}.metadata.json"
        obstore.put(store, f"{prefix}/t/{file}", b"{}")
        (tmp_path / "t" / file).write_bytes(b"{}")
    obstore.put(store, f"{prefix}/t/metadata/version-hint.text", b"2")
    for address, place in ((f"iceberg+{s3}/t", f"{s3}/t"), ("iceberg://t", str(tmp_path / "t"))):
        found = lakes._newest_metadata(lakes.LakeAddress.of(address, tmp_path))
        assert found == f"{place}/metadata/{names[-1]}.metadata.json"
