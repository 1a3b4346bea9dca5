"""Spool files are taken in exactly once, whatever is interrupted."""

import shutil

import pytest
from spooling import spool

from modelkeep.core.errors import Unavailable
from modelkeep.monitor import ingest
from modelkeep.registry import captures


def recorded(db):
    with db.read() as conn:
        return captures.between(conn, "flights", 0, 1e12)


def test_rows_come_back_as_they_were_served(tmp_path, db, blobs):
    ids = spool(
        tmp_path / "capture",
        "a",
        times=[10.0, 11.5],
        inputs={"x": [1.0, 2.0]},
        score=[0.2, 0.9],
        errors=3,
        dropped=1,
    )
    (taken,) = ingest.take_in(tmp_path / "capture", db, blobs)
    assert (taken.rows, taken.errors, taken.dropped, taken.start, taken.end) == (2, 3, 1, 10.0, 11.5)
    assert recorded(db) == [taken]
    rows = ingest.rows_of(blobs, taken)
    assert rows["prediction_id"].to_pylist() == ids
    assert rows["in.x"].to_pylist() == [1.0, 2.0]
    assert ingest.rows_of(blobs, taken, ["out.label", "nothing"]).column_names == ["out.label"]
    assert list((tmp_path / "capture").iterdir()) == []


class Failing:
    def __init__(self, blobs):
        self.blobs = blobs

    def put(self, data):
        self.blobs.put(data)
        raise Unavailable("the disk is full")


def test_a_failure_before_recording_loses_nothing(tmp_path, db, blobs):
    folder = tmp_path / "capture"
    spool(folder, "a", times=[1.0], inputs={"x": [1.0]})
    with pytest.raises(Unavailable):
        ingest.take_in(folder, db, Failing(blobs))
    assert recorded(db) == []
    assert len(ingest.take_in(folder, db, blobs)) == 1


def test_a_kill_after_recording_counts_nothing_twice(tmp_path, db, blobs):
    folder = tmp_path / "capture"
    spool(folder, "a", times=[1.0], inputs={"x": [1.0]})
    shutil.copy(folder / "a.arrow", tmp_path / "kept")
    ingest.take_in(folder, db, blobs)
    shutil.copy(tmp_path / "kept", folder / "a.arrow")  # as if it had been killed before deleting the file
    assert ingest.take_in(folder, db, blobs) == []
    assert len(recorded(db)) == 1
    assert not (folder / "a.arrow").exists()


def test_failures_without_rows_are_recorded(tmp_path, db, blobs):
    spool(tmp_path / "capture", "a", times=[], inputs={}, errors=7)
    (taken,) = ingest.take_in(tmp_path / "capture", db, blobs)
    assert (taken.rows, taken.errors, taken.digest) == (0, 7, "")


def test_what_is_no_capture_file_is_set_aside_and_unfinished_ones_wait(tmp_path, db, blobs):
    folder = tmp_path / "capture"
    spool(folder, "good", times=[1.0], inputs={"x": [1.0]})
    (folder / "bad.arrow").write_bytes(b"not arrow")
    (folder / "fresh.tmp").write_bytes(b"half")
    assert [one.part for one in ingest.take_in(folder, db, blobs)] == ["good.arrow"]
    assert sorted(path.name for path in folder.iterdir()) == ["bad.damaged", "fresh.tmp"]
    assert ingest.take_in(tmp_path / "nowhere", db, blobs) == []
