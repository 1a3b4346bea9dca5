"""What every verb works with: one home, opened."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from modelkeep.core.clock import Clock
from modelkeep.core.here import Here
from modelkeep.core.ports import BlobStore, Engine
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
        engines: Opens an engine by its address; None works in this process.
    """

    home: Path
    base: Path
    db: Database
    blobs: BlobStore
    clock: Clock
    engines: Callable[[str], AbstractContextManager[Engine]] | None = None

    def engine(self, address: str) -> AbstractContextManager[Engine]:
        """Open an engine. Raises ``Invalid``, ``MissingExtra``, ``Unavailable``."""
        return nullcontext(Here()) if self.engines is None else self.engines(address)

    def close(self) -> None:
        """Let go of the database."""
        self.db.close()
