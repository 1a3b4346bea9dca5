"""A home to take snapshots in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from modelkeep.data.snapshots import Snapshots
from modelkeep.store.blobs import Blobs, open_blobs
from modelkeep.store.database import Database


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    home = tmp_path / "home"
    home.mkdir()
    opened = Database.open(f"sqlite:///{home}/modelkeep.db")
    yield opened
    opened.close()


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return open_blobs(str(tmp_path / "home" / "blobs"))


@pytest.fixture
def snapshots(db: Database, blobs: Blobs) -> Snapshots:
    return Snapshots(db, blobs)
