"""What every verb works with: one home, opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from modelkeep.core.clock import Clock
from modelkeep.core.ports import BlobStore
from modelkeep.store.database import Database


@dataclass(frozen=True, slots=True)
class Keep:
    """An opened home.

    Attributes:
        home: The ``.modelkeep`` folder.
        base: The declaration's folder: relative paths and user functions are found from here.
        db: The database.
        blobs: Where bytes are kept.
        clock: What time it is.
    """

    home: Path
    base: Path
    db: Database
    blobs: BlobStore
    clock: Clock

    def close(self) -> None:
        """Let go of the database."""
        self.db.close()
