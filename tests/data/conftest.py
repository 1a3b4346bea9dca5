"""A home to take snapshots in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from modelkeep.data.snapshots import Snapshots
from modelkeep.store.blobs import open_blobs
from modelkeep.store.database import Database


@pytest.fixture
def snapshots(tmp_path: Path) -> Iterator[Snapshots]:
    home = tmp_path / "home"
    home.mkdir()
    db = Database.open(f"sqlite:///{home}/modelkeep.db")
    yield Snapshots(db, open_blobs(str(home / "blobs")))
    db.close()
