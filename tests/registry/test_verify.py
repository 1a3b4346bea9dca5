from __future__ import annotations

import os
from pathlib import Path

import pytest
from sqlalchemy import text

from modelkeep.registry import captures, events, models, runs, snapshots
from modelkeep.registry.captures import Capture
from modelkeep.registry.lineage import Code, Lineage
from modelkeep.registry.snapshots import Part, Record
from modelkeep.registry.verify import verify
from modelkeep.store.blobs import Blobs, open_blobs, put_tree
from modelkeep.store.bulk import fetch
from modelkeep.store.database import Database


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return open_blobs(str(tmp_path / "blobs"))


@pytest.fixture
def digests(db: Database, blobs: Blobs) -> dict[str, str]:
    """One reference of each kind; returns the digest behind each."""
    names = ("weights", "environment", "diff", "manifest", "part", "capture", "artifact")
    kept = {name: blobs.put(name.encode() + os.urandom(100_000)) for name in names}
    found = {**kept, "package": put_tree(blobs, {"m.onnx": blobs.read(kept["weights"])})}
    lineage = Lineage(
        snapshot="s", declaration="d", environment=found["environment"], code=Code(dirty_diff=found["diff"])
    )
    parts = {"p": Part(fingerprint="f", digest=found["part"], rows=1)}

    def fill(conn: object) -> None:
        package = found["package"]
        models.register(
            conn, "m", run_id="", package=package, lineage=lineage, evaluation={}, runtime="", note="", now=1.0
        )  # type: ignore[arg-type]
        snapshots.record(  # type: ignore[arg-type]
            conn,
            Record(name="n", digest="s", manifest=found["manifest"], created=1, rows=1, fingerprints=parts),
        )
        part = Capture(
            endpoint="e", version=1, mode="stable", start=0, end=1, rows=1, digest=found["capture"], part="x"
        )
        captures.add(conn, part)  # type: ignore[arg-type]
        captures.add(conn, Capture(endpoint="e", version=1, mode="stable", start=0, end=1, rows=0, errors=3))  # type: ignore[arg-type]
        run = runs.create(conn, runs.experiment(conn, "e", 1.0), "r", 1.0)  # type: ignore[arg-type]
        runs.set_artifacts(conn, run, {"a.txt": (found["artifact"], 1)})  # type: ignore[arg-type]
        events.append(conn, "k", "s", {}, now=1.0)  # type: ignore[arg-type]

    db.write(fill)
    return found


def test_a_whole_home_has_no_faults(db: Database, blobs: Blobs, digests: dict[str, str]) -> None:
    assert verify(db, blobs) == []


def test_every_missing_blob_is_named_with_who_needs_it(
    db: Database, blobs: Blobs, digests: dict[str, str]
) -> None:
    needed_by = {
        "weights": "m.onnx in package of version m@1",
        "environment": "environment of version m@1",
        "diff": "uncommitted changes of version m@1",
        "manifest": "manifest of snapshot s of n",
        "part": "part 'p' of snapshot s of n",
        "capture": "capture 1 of endpoint e",
        "artifact": "artifact a.txt of run",
    }
    for name, who in needed_by.items():
        content = blobs.read(digests[name])
        blobs.delete(digests[name])
        faults = verify(db, blobs)
        assert len(faults) == 1
        assert faults[0].startswith(who)
        assert faults[0].endswith(f"{digests[name]} is missing")
        blobs.put(content)
    blobs.delete(digests["package"])
    assert verify(db, blobs) == [f"package of version m@1: blob {digests['package']} is missing"]


def test_damage_and_tampering_are_named(
    db: Database, blobs: Blobs, digests: dict[str, str], tmp_path: Path
) -> None:
    chunk = next((tmp_path / "blobs" / "chunks").rglob("*/*"))
    *kept, last = chunk.read_bytes()
    chunk.write_bytes(bytes([*kept, last ^ 1]))  # whatever random bytes end with
    db.write(lambda conn: conn.execute(text("UPDATE events SET data = '{\"a\"\\:1}'")) and None)
    faults = verify(db, blobs)
    assert any(fault.startswith("event 1: was changed") for fault in faults)
    assert any("do not match their digest" in fault for fault in faults)


def pages_of(db: Database) -> int:
    with db.read() as conn:
        return int(fetch(conn, "PRAGMA page_count")[0][0])


def test_a_torn_database_file_is_named(sqlite_url: str, blobs: Blobs) -> None:
    db = Database.open(sqlite_url)
    empty = pages_of(db)
    for number in range(200):
        db.write(lambda conn, n=number: events.append(conn, "kind", "subject", {"text": "x" * 500}, now=n))
    db.close()
    file = Path(sqlite_url.removeprefix("sqlite:///"))
    torn = bytearray(file.read_bytes())
    for page in range(empty + 5, len(torn) // 4096 - 3, 3):  # pages of events, not of the schema
        torn[page * 4096 : page * 4096 + 2000] = os.urandom(2000)
    file.write_bytes(torn)
    again = Database.open(sqlite_url)
    try:
        faults = verify(again, blobs)
    finally:
        again.close()
    assert any("malformed" in fault or fault.startswith("database:") for fault in faults)
