"""Collecting what nothing refers to: exactly that goes, whoever writes meanwhile, whenever it is killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select, update

from modelkeep.app.settings import Settings
from modelkeep.app.wiring import connect
from modelkeep.core.clock import FileClock
from modelkeep.core.errors import Damaged
from modelkeep.core.ports import Silent
from modelkeep.lifecycle.gc import Collected, collect
from modelkeep.lifecycle.keep import Keep
from modelkeep.registry import artifacts, events, experiments, gc_references, runs, tracking
from modelkeep.registry.artifacts import Owner
from modelkeep.registry.verify import verify
from modelkeep.store import tables
from modelkeep.store.blobs import Blobs
from modelkeep.store.studies import Study
from modelkeep.store.sweeping import Marks
from small import Project

DAY = 24 * 3600.0


@pytest.fixture
def keep(tmp_path: Path, url: str) -> Iterator[Keep]:
    home = tmp_path / "home"
    opened = connect(Settings(home, url, str(home / "blobs")), tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def home(tmp_path: Path, sqlite_url: str) -> Iterator[Keep]:
    """A home on SQLite, for what is the same on every database."""
    folder = tmp_path / "home"
    opened = connect(Settings(folder, sqlite_url, str(folder / "blobs")), tmp_path)
    yield opened
    opened.close()


def blobs(keep: Keep) -> Blobs:
    assert isinstance(keep.blobs, Blobs)
    return keep.blobs


def run_with(keep: Keep, files: dict[str, bytes], name: str = "work") -> str:
    """A run with files."""
    number = keep.db.write(lambda conn: runs.experiment(conn, name, 1.0))
    run_id = keep.db.write(lambda conn: runs.create(conn, number, "r", time.time()))
    kept = blobs(keep).put_many(files)
    keep.db.write(lambda conn: runs.set_artifacts(conn, run_id, kept))
    return run_id


def deleted(keep: Keep, run_id: str, days: float) -> None:
    ms = round((time.time() - days * DAY) * 1000)
    keep.db.write(lambda conn: tracking.set_stage(conn, run_id, "deleted", ms))


def swept(keep: Keep, *, dry_run: bool = False, older_than: float = 30 * DAY, grace: float = -1.0) -> Collected:
    """Collected with no grace: nothing else writes."""
    return collect(keep, Silent(), dry_run=dry_run, older_than=older_than, grace=grace)


def line(found: Collected, kind: str) -> tuple[int, int]:
    each = next(each for each in found.lines if each.kind == kind)
    return each.count, each.bytes


def sizes(keep: Keep) -> int:
    return sum(
        path.stat().st_size
        for folder in ("blobs", "chunks")
        for path in (keep.home / "blobs" / folder).rglob("*")
        if path.is_file()
    )


def sound(keep: Keep) -> bool:
    return verify(keep.db, blobs(keep), Silent()) == []


def test_a_search_that_nobody_went_on_with_goes(keep: Keep, tmp_path: Path) -> None:
    clock = FileClock(tmp_path / "clock")
    clock.set(time.time() - 31 * DAY)
    left, gone_on_with = (Study(keep.db, name, clock) for name in ("left", "gone on with"))
    for study in (left, gone_on_with):
        study.append(0, ["one", "two"])
    clock.set(time.time() - 29 * DAY)
    gone_on_with.append(2, ["three"])
    assert line(swept(keep, dry_run=True), "searches") == (1, 6)
    assert left.lines() == ["one", "two"]
    assert line(swept(keep), "searches") == (1, 6)
    assert left.lines() == []
    assert gone_on_with.lines() == ["one", "two", "three"]


def test_exactly_what_nothing_needs_goes_and_its_bytes_were_foretold(home: Keep) -> None:
    noise = random.Random(1)
    large, shared = noise.randbytes(3_000_000), noise.randbytes(2_000_000)
    run_id = run_with(home, {"a": b"small", "b/large": large})
    orphan = blobs(home).put(large[:1_500_000] + shared)  # some of its chunks are needed by the run's file
    little = blobs(home).put(b"nobody knows me")
    before = sizes(home)
    told = swept(home, dry_run=True)
    assert sizes(home) == before
    assert line(told, "blobs")[0] == 2
    done = swept(home)
    assert [(each.count, each.bytes) for each in done.lines] == [(each.count, each.bytes) for each in told.lines]
    assert before - sizes(home) == told.freed == done.freed
    assert told.freed > 1_900_000
    assert not blobs(home).exists(orphan)
    assert not blobs(home).exists(little)
    with home.db.read() as conn:
        assert blobs(home).read(runs.get(conn, run_id).artifacts["b/large"][0]) == large
    assert sound(home)
    assert swept(home).freed == 0


def test_what_was_deleted_long_ago_goes_with_its_files(keep: Keep) -> None:
    old, fresh, live = (
        run_with(keep, {"f": name.encode(), "same": b"x" * 100}) for name in ("old", "fresh", "live")
    )
    deleted(keep, old, 40)
    deleted(keep, fresh, 20)
    keep.db.write(lambda conn: runs.log(conn, live, [("m", 1.0, 1, 1)]))
    told = swept(keep, dry_run=True)
    assert line(told, "runs") == (1, 103)
    assert line(told, "blobs")[0] == 1
    done = swept(keep)
    assert line(done, "runs") == (1, 103)
    with keep.db.read() as conn:
        assert set(conn.execute(select(tables.runs.c.run_id)).scalars()) == {fresh, live}
        said = [event for event in events.history(conn) if event.kind.startswith("gc.")]
    assert said[0].data == {"kind": "run", "names": [old]}
    assert said[1].data["blobs"] == 1
    assert sound(keep)


def test_deleted_experiments_go_when_nothing_in_them_stays(keep: Keep) -> None:
    old = run_with(keep, {"f": b"1"}, "left")
    with keep.db.read() as conn:
        number = runs.get(conn, old).experiment_id
    ms = round((time.time() - 40 * DAY) * 1000)
    keep.db.write(lambda conn: experiments.delete_one(conn, number, ms))
    late = run_with(keep, {"g": b"2"}, "other")
    change = update(tables.runs).where(tables.runs.c.run_id == late)
    keep.db.write(lambda conn: conn.execute(change.values(experiment=number)))
    assert line(swept(keep), "experiments")[0] == 0
    deleted(keep, late, 35)
    assert line(swept(keep), "experiments")[0] == 1
    assert sound(keep)


def test_a_run_that_a_version_came_from_stays(keep: Keep) -> None:
    from modelkeep.registry import catalog

    old = run_with(keep, {"model/weights": b"w"})
    number = keep.db.write(lambda conn: catalog.create_model(conn, "m", 1)).id
    origin = catalog.Origin(source=f"mlflow-artifacts:/1/{old}/artifacts/model", run_id=old)
    new = catalog.NewVersion(number, origin, {}, 1)
    keep.db.write(lambda conn: catalog.create_versions(conn, [new]))
    deleted(keep, old, 400)
    assert line(swept(keep), "runs")[0] == 0
    keep.db.write(lambda conn: catalog.delete_version(conn, "m", 1, 2))
    assert line(swept(keep), "runs")[0] == 1


def test_the_young_stay(home: Keep) -> None:
    digest = blobs(home).put(b"on its way to a row")
    found = collect(home, Silent())
    assert line(found, "blobs") == (0, 0)
    assert next(each for each in found.lines if each.kind == "blobs").young == 1
    path = home.home / "blobs" / "blobs" / digest[:2] / digest[2:]
    os.utime(path, (1, 1))
    blobs(home).put(b"on its way to a row")  # put again: it counts as new
    assert line(collect(home, Silent()), "blobs") == (0, 0)
    os.utime(path, (1, 1))
    assert line(collect(home, Silent()), "blobs")[0] == 1


def test_what_apply_made_stays_whole(project: Project) -> None:
    """Packages, snapshots, stages, environments: all that is named by something that is named."""
    applied = project.apply()
    assert applied.version is not None
    with project.opened() as keep:
        before = set(blobs(keep).digests())
        orphan = blobs(keep).put(b"an orphan")
        assert line(swept(keep, older_than=0), "blobs")[0] == 1
        assert set(blobs(keep).digests()) == before - {orphan}
        assert sound(keep)
    again = project.apply()
    assert {stage.action for stage in again.stages} == {"reuse"}


def test_digests_in_tables_nobody_told_of_are_kept(home: Keep) -> None:
    """A table of a later release, or of a plugin."""
    digest = blobs(home).put(b"kept by a stranger")
    lost = blobs(home).put(b"kept by nobody")
    home.db.write(lambda conn: conn.exec_driver_sql("CREATE TABLE strange (words TEXT)"))
    home.db.write(lambda conn: conn.exec_driver_sql(f"INSERT INTO strange VALUES ('see blob:{digest}, please')"))
    swept(home)
    assert set(blobs(home).digests()) == {digest}
    assert not blobs(home).exists(lost)


def test_every_column_of_a_digest_is_read(keep: Keep) -> None:
    """No table that names blobs is taken for one of clients' text."""
    named = {
        (table.name, column.name)
        for table in tables.metadata.sorted_tables
        for column in table.columns
        if column.name in {"digest", "package", "manifest", "profile", "result", "lineage", "routes"}
    }
    skipped = {(table, column) for table, columns in gc_references._OF_CLIENTS.items() for column in columns}
    assert len(named) >= 10
    assert not named & skipped


def test_blobs_put_during_a_collection_survive(home: Keep) -> None:
    """Writers put new bytes and old orphans alike while collections follow each other; nothing is lost."""
    noise = random.Random(3)
    orphans = [noise.randbytes(150_000) for _ in range(12)]
    over = threading.Event()
    kept: list[str] = []
    number = home.db.write(lambda conn: runs.experiment(conn, "w", 1.0))
    run_id = home.db.write(lambda conn: runs.create(conn, number, "r", 1.0))
    row = home.db.write(lambda conn: runs.find(conn, run_id)).id

    def put(path: str, data: bytes) -> None:
        digest = blobs(home).put(data)
        home.db.write(artifacts.Put(Owner("run", row), path, digest, len(data)))
        kept.append(digest)

    def remove(path: str) -> None:
        home.db.write(lambda conn: artifacts.remove(conn, Owner("run", row), path))

    def writer(seed: int) -> None:
        mine = random.Random(seed)
        for turn in range(40):
            put(f"{seed}-{turn}", orphans[mine.randrange(12)] if turn % 2 else mine.randbytes(80_000))
            if turn % 3 == 2:
                remove(f"{seed}-{turn}")
        over.set()

    threads = [threading.Thread(target=writer, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    while not over.is_set():
        swept(home, grace=0.5)  # longer than a put takes to be referred to here
    for thread in threads:
        thread.join()
    assert len(kept) == 80
    assert sound(home)


def test_an_object_touched_between_the_look_and_the_removal_survives(tmp_path: Path) -> None:
    from modelkeep.store.blobs import open_blobs

    store = open_blobs(str(tmp_path / "b"))
    digest = store.put(b"wanted again")
    entry = next(iter(store.below.entries("blobs")))
    cut = time.time() + 0.01
    time.sleep(0.02)
    assert store.put(b"wanted again") == digest
    assert store.below.discard(entry.name, cut) is False
    assert store.read(digest) == b"wanted again"
    assert store.below.discard(entry.name, time.time() + 1) is True
    assert not store.exists(digest)


def test_a_removal_that_was_cut_short_is_taken_back(tmp_path: Path) -> None:
    from modelkeep.store.blobs import open_blobs

    store = open_blobs(str(tmp_path / "b"))
    digest = store.put(b"almost gone")
    (tmp_path / "b" / "condemned").mkdir()
    (tmp_path / "b" / "blobs" / digest[:2] / digest[2:]).rename(
        tmp_path / "b" / "condemned" / f"blobs-{digest[:2]}-{digest[2:]}"
    )
    assert open_blobs(str(tmp_path / "b")).read(digest) == b"almost gone"


def test_a_damaged_listing_stops_it_before_anything_goes(home: Keep) -> None:
    noise = random.Random(5).randbytes(1_000_000)
    run_with(home, {"f": noise})
    orphan = blobs(home).put(b"orphan")
    digest = next(each for each in blobs(home).digests() if each != orphan)
    path = home.home / "blobs" / "blobs" / digest[:2] / digest[2:]
    broken = bytearray(path.read_bytes())
    broken[80] ^= 1
    path.write_bytes(broken)
    chunks = sorted((home.home / "blobs" / "chunks").rglob("*"))
    with pytest.raises(Damaged, match="cannot be known which chunks"):
        swept(home)
    assert sorted((home.home / "blobs" / "chunks").rglob("*")) == chunks


def test_copies_of_packages_that_are_not_served_go(home: Keep) -> None:
    copy = home.home / "packages" / ("ab" * 32)
    copy.mkdir(parents=True)
    (copy / "model.onnx").write_bytes(b"x" * 500)
    assert line(swept(home, dry_run=True), "package copies") == (1, 500)
    assert copy.exists()
    swept(home)
    assert not copy.exists()


def test_marks_take_little_memory() -> None:
    """A quarter of a million digests: the process grows by less than what they would take in a set."""
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Marks() as marks:
        for start in range(0, 250_000, 5000):
            marks.add("blobs", (f"{number * 2654435761 % 2**256:064x}" for number in range(start, start + 5000)))
        assert marks.known("blobs", [f"{2654435761:064x}", "0" * 63 + "1"]) == {f"{2654435761:064x}"}
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 80_000, f"{grown} KB"


_KILLED = """
import sys
from pathlib import Path
from modelkeep.app.settings import Settings
from modelkeep.app.wiring import connect
from modelkeep.core.ports import Silent
from modelkeep.lifecycle.gc import collect
home = Path(sys.argv[1])
keep = connect(Settings(home, f"sqlite:///{home}/modelkeep.db", str(home / "blobs")), home)
print("ready", flush=True)
collect(keep, Silent(), older_than=0, grace=-1)
"""


def test_killed_at_any_moment_nothing_needed_is_gone(tmp_path: Path) -> None:
    home = tmp_path / "home"
    noise = random.Random(7)
    keep = connect(Settings(home, f"sqlite:///{home}/modelkeep.db", str(home / "blobs")), tmp_path)
    for each in range(12):
        run_id = run_with(keep, {"f": noise.randbytes(400_000), "g": noise.randbytes(100)})
        if each % 2:
            deleted(keep, run_id, 1)
    for _ in range(60):
        blobs(keep).put(noise.randbytes(300))
    for wait in (0.0, 0.02, 0.05):
        child = subprocess.Popen([sys.executable, "-c", _KILLED, str(home)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(wait)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        assert sound(keep)
    swept(keep, older_than=0)
    keep.close()
    keep = connect(Settings(home, f"sqlite:///{home}/modelkeep.db", str(home / "blobs")), tmp_path)
    assert swept(keep, older_than=0).freed == 0
    assert sound(keep)
    with keep.db.read() as conn:
        assert len(conn.execute(select(tables.runs.c.id)).all()) == 6
    keep.close()


def test_objects_in_a_bucket_go_too(tmp_path: Path, s3: str) -> None:
    home = tmp_path / "home"
    keep = connect(Settings(home, f"sqlite:///{home}/modelkeep.db", s3), tmp_path)
    data = random.Random(11).randbytes(700_000)
    run_with(keep, {"f": data})
    orphan = blobs(keep).put(data[:300_000] + bytes(200_000))
    told = swept(keep, dry_run=True)
    assert line(told, "blobs")[0] == 1
    assert line(collect(keep, Silent()), "blobs") == (0, 0)  # it is young
    assert swept(keep).freed == told.freed > 0
    assert not blobs(keep).exists(orphan)
    assert sound(keep)
    keep.close()
