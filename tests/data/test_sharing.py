"""Whether workers see this machine's files, where there is but this machine; ``engines/test_apart.py`` has two."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import pytest
from msgspec import structs

from modelkeep.core.errors import NotFound, Refused, Unavailable
from modelkeep.core.here import Here
from modelkeep.data import readers, sharing
from modelkeep.data.external import External
from modelkeep.data.parts import Part
from modelkeep.store import blobs as blobs_of
from modelkeep.store.blobs import Blobs, open_blobs


class Away(Here):
    """An engine that could be on other machines, and is not."""

    address = "away://"


def test_a_shared_folder_is_marked_while_there_is_work(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "out"
    with sharing.marked(Away(), "--out", folder) as mark:
        assert mark is not None and Path(mark.path).parent == folder
        assert pickle.loads(pickle.dumps(mark)) == mark
        mark.must_be_seen()
        with sharing.marked(Away(), "--out", folder) as other:
            assert other is not None and other.path != mark.path
    assert list(folder.iterdir()) == []
    with pytest.raises(Refused, match=rf"--out: {folder} on this machine .* No such file"):
        mark.must_be_seen()


def test_an_engine_of_this_machine_writes_no_mark(tmp_path: Path) -> None:
    with sharing.marked(Here(), "--out", tmp_path / "out") as mark:
        assert mark is None
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(Unavailable, match=r"--out: cannot write .*/file"),
        sharing.marked(Away(), "--out", tmp_path / "file"),
    ):
        pass


def test_a_file_of_another_size_is_another(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"a\n1\n")
    known = sharing.Known.of("--in", path)
    sharing.ask(Away(), known)
    path.write_bytes(b"a\n1\n2\n")
    with pytest.raises(Refused, match=r"--in: .*rows\.csv .*6 bytes there, 4 here") as told:
        sharing.ask(Away(), known)
    assert "object store" in told.value.hint
    sharing.ask(Here(), known)
    path.unlink()
    with pytest.raises(Unavailable, match="cannot be read"):
        sharing.Known.of("--in", path)


def test_blobs_that_are_sent_make_no_folder(tmp_path: Path) -> None:
    sent = pickle.dumps(open_blobs(str(tmp_path / "blobs")))
    blobs_of._opened.cache_clear()
    assert isinstance(pickle.loads(sent), Blobs)
    shutil.rmtree(tmp_path / "blobs")
    blobs_of._opened.cache_clear()
    with pytest.raises(Refused, match=rf"blobs: there is no folder {tmp_path}/blobs on "):
        pickle.loads(sent)
    assert not (tmp_path / "blobs").exists()


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    file = readers.File("rows.csv", ".csv", path=tmp_path / "rows.csv")
    with pytest.raises(NotFound, match=r"data\.source: rows\.csv is gone"):
        next(readers.pieces(file))


def test_pinned_files_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"123")
    whole = Part(name="p", digest="d", rows=1, bytes=3, profile="", schema="")
    file = External(table="delta:///t@0", location=str(path), bytes=3, rows=1)
    parts = [
        whole,
        structs.replace(whole, external=structs.replace(file, location="s3://bucket/rows.parquet")),
        structs.replace(whole, external=file),
    ]
    sharing.pinned_seen(Away(), parts)
    path.unlink()
    sharing.pinned_seen(Away(), parts[:2])
    with pytest.raises(Refused, match=rf"data\.source: {path} on this machine"):
        sharing.pinned_seen(Away(), parts)
