"""Files of runs, put and found many at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modelkeep.core.errors import Invalid, NotFound, Refused
from modelkeep.registry import artifacts, holds, runs
from modelkeep.registry.artifacts import Owner, Put
from modelkeep.store.blobs import Blobs, open_blobs, put_tree
from modelkeep.store.database import Database


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return open_blobs(str(tmp_path / "blobs"))


@pytest.fixture
def owners(db: Database) -> list[Owner]:
    """Two runs, of which the second is held."""

    def made(conn: Any) -> list[Owner]:
        within = runs.experiment(conn, "e", 1.0)
        named = [runs.create(conn, within, "r", 1.0) for _ in range(2)]
        holds.add(conn, "run", named[1], "asked for", now=1.0)
        return [Owner("run", runs.find(conn, run_id).id) for run_id in named]

    return db.write(made)


def put(db: Database, *files: tuple[Owner, str, str]) -> list[type[Exception] | None]:
    """Put files together; what was wrong with each."""
    works = [Put(owner, path, digest * 64, 7) for owner, path, digest in files]
    return [type(result) if result else None for result in db.write(lambda conn: Put.merge(conn, works))]


def test_files_that_come_together_are_as_if_they_came_one_by_one(
    db: Database, blobs: Blobs, owners: list[Owner]
) -> None:
    first, second = owners
    assert put(
        db,
        (first, "a", "1"),
        (first, "a/b", "2"),  # below a file
        (first, "c/d/e", "3"),
        (first, "c/d", "4"),  # a folder
        (first, "c", "4"),
        (second, "c/d", "5"),
        (first, "c/d/e", "6"),  # again, with other bytes
        (first, "", "7"),
        (Owner("package", digest="8" * 64), "x", "8"),
        (first, "c.d", "9"),  # beside, wherever it sorts
        (first, "c0", "9"),
    ) == [None, Invalid, None, Invalid, Invalid, None, None, Invalid, Refused, None, None]
    names = ["a", "a/b", "c", "c/d", "c/d/e", "c.d", "c0"]
    with db.read() as conn:
        found = artifacts.find_all(conn, blobs, [(owner, name) for owner in owners for name in names])
    kept = [None if file is None else file[0][0] for file in found]
    assert kept == ["1", None, None, None, "6", "9", "9", None, None, None, "5", None, None, None]
    assert put(
        db, (first, "a/b", "2"), (first, "c/d", "4"), (first, "c", "4"), (first, "c/d/f", "7"), (first, "c0", "1")
    ) == [
        *(Invalid, Invalid, Invalid),
        *(None, None),
    ]


def test_of_a_held_run_no_file_is_replaced(db: Database, blobs: Blobs, owners: list[Owner]) -> None:
    first, held = owners
    assert put(db, (held, "a", "1"), (held, "a", "1"), (first, "a", "1"), (held, "a", "2")) == [
        None,
        None,
        None,
        Refused,
    ]
    assert put(db, (held, "a", "2"), (first, "a", "2"), (held, "b", "2")) == [Refused, None, None]
    with db.read() as conn:
        assert [artifacts.find(conn, blobs, owner, "a")[0][0] for owner in owners] == ["2", "1"]
        with pytest.raises(NotFound, match="'c'"):
            artifacts.find(conn, blobs, first, "c")


def test_files_of_packages_are_found_beside_those_of_runs(db: Database, blobs: Blobs, owners: list[Owner]) -> None:
    package = Owner("package", digest=put_tree(blobs, {"model.onnx": b"graph"}))
    put(db, (owners[0], "f", "1"))
    with db.read() as conn:
        wanted = [(package, "model.onnx"), (owners[0], "f"), (package, "other")]
        graph, file, missing = artifacts.find_all(conn, blobs, wanted)
    assert graph is not None and graph[1] == 5
    assert file == ("1" * 64, 7)
    assert missing is None
