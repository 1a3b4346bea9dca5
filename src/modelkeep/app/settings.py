"""Where things are: the home folder, the database, the blobs. Read from the environment once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

HOME = ".modelkeep"


@dataclass(frozen=True, slots=True)
class Settings:
    """Where one home keeps its things.

    Attributes:
        home: The home folder.
        database: SQLAlchemy URL; ``MODELKEEP_DATABASE`` overrides the SQLite file in the home.
        blobs: Folder or object-store URL; ``MODELKEEP_BLOBS`` overrides the folder in the home.
    """

    home: Path
    database: str
    blobs: str


def find_home(start: Path) -> Path:
    """The home folder for work in ``start``: ``MODELKEEP_HOME``, else the nearest ``.modelkeep`` upward.

    When there is none yet, the one that will be made beside the declaration.
    """
    named = os.environ.get("MODELKEEP_HOME")
    if named:
        return Path(named).expanduser().resolve()
    start = start.resolve()
    for folder in (start, *start.parents):
        if (folder / HOME).is_dir():
            return folder / HOME
    return start / HOME


def settings(start: Path, *, blobs: str = "") -> Settings:
    """The settings for work in ``start``.

    Args:
        start: The declaration's folder.
        blobs: What the declaration says about blobs, if anything.
    """
    home = find_home(start)
    return Settings(
        home=home,
        database=os.environ.get("MODELKEEP_DATABASE") or f"sqlite:///{home / 'modelkeep.db'}",
        blobs=os.environ.get("MODELKEEP_BLOBS") or blobs or str(home / "blobs"),
    )
