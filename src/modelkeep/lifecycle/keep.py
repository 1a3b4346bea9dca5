"""What every verb works with: one home, opened."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from modelkeep.core.clock import Clock
from modelkeep.core.here import Here
from modelkeep.core.ports import BlobStore, Engine
from modelkeep.lifecycle import stages
from modelkeep.spec.declaration import Declaration, Resources
from modelkeep.store.blobs import Blobs
from modelkeep.store.database import Database

OpenEngine = Callable[[str, Path | None, Resources], Engine]
"""Opens the engine at an address: takes along the Python modules of a folder, gives each part its resources."""


class Engines:
    """Engines that are opened when first asked for, and kept until the home is closed.

    Args:
        opens: How; without it everything is done in this process.
    """

    def __init__(self, opens: OpenEngine | None = None) -> None:
        self._opens = opens
        self._lock = threading.Lock()
        self._opened: dict[tuple[str, Path | None, Resources], Engine] = {}
        self._asked: set[tuple[str, Path | None, Resources]] = set()

    def get(
        self,
        address: str,
        code: Path | None = None,
        resources: Resources | None = None,
        *,
        blobs: BlobStore | None = None,
    ) -> Engine:
        """The engine at an address, the same one every time.

        Args:
            blobs: Those that its workers are to see, which is asked once.

        Raises:
            Refused: They do not.
        """
        key = (address, code, resources or Resources())
        with self._lock:
            if key not in self._opened:
                self._opened[key] = Here() if self._opens is None else self._opens(*key)
            engine = self._opened[key]
            if blobs is not None and key not in self._asked and engine.address != "local":
                from modelkeep.data import sharing  # brings Arrow

                sharing.blobs_seen(engine, blobs)
                self._asked.add(key)
            return engine

    def anew(self) -> Engines:
        """As many of one's own, none of them opened yet."""
        return Engines(self._opens)

    def close(self) -> None:
        """Close all of them."""
        with self._lock:
            opened, self._opened = list(self._opened.values()), {}
            self._asked.clear()
        for engine in opened:
            engine.close()


@dataclass(frozen=True, slots=True)
class Keep:
    """An opened home.

    Attributes:
        home: The ``.modelkeep`` folder.
        base: The declaration's folder: relative paths and user functions are found from here.
        db: The database.
        blobs: Where bytes are kept.
        clock: What time it is.
        engines: Where work in parts is done.
    """

    home: Path
    base: Path
    db: Database
    blobs: BlobStore
    clock: Clock
    engines: Engines = field(default_factory=Engines)

    def engine(self, declaration: Declaration) -> Engine:
        """The engine that a declaration names, opened when first asked for. Closed with this home, not before.

        Raises:
            MissingExtra: Its library is not installed.
            Unavailable: It does not answer.
            Refused: Its workers have other versions, lack the declaration's resources, or do not see the blobs.
        """
        code = self.base if any(stages.user_code(declaration)) else None
        return self.engines.get(declaration.engine, code, declaration.resources, blobs=self.blobs)

    def close(self) -> None:
        """Let go of the engines and the database, and leave the blobs in order."""
        self.engines.close()
        self.db.close()
        if isinstance(self.blobs, Blobs):
            self.blobs.close()
