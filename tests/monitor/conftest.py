"""A home with a database and blobs."""

import pytest

from modelkeep.store.blobs import open_blobs
from modelkeep.store.database import Database


@pytest.fixture
def db(tmp_path):
    opened = Database.open(f"sqlite:///{tmp_path / 'modelkeep.db'}")
    yield opened
    opened.close()


@pytest.fixture
def blobs(tmp_path):
    return open_blobs(str(tmp_path / "blobs"))
