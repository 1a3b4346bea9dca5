"""Whether an engine's workers see files of this machine: asked before they work, and of each file again there.

A worker on another machine may have nothing at a path of this one, or a folder of its own, into which answers
would go unseen. Whether machines share a disk cannot be told from its path, so it is tried.
"""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from msgspec import Struct

from modelkeep.core.errors import Refused, Unavailable
from modelkeep.core.ports import BlobStore, Engine
from modelkeep.data.parts import Part
from modelkeep.store.blobs import Blobs

SPREAD = 0.1
"""Seconds that a look takes at least: so tasks do not queue behind each other on the machine that is quickest."""

HINT = (
    "use an object store (s3://, gs://, az://) or a folder that all the engine's machines share, or work on this "
    "machine alone (engine local)"
)


class Known(Struct, frozen=True):
    """A file as the machine that asks sees it.

    Attributes:
        field: What names it, for errors: ``--out``.
        said: The file or folder there.
        path: Absolute.
        bytes: Its size.
        host: Name of the machine that asks.
    """

    field: str
    said: str
    path: str
    bytes: int
    host: str

    @staticmethod
    def of(field: str, path: Path, said: Path | None = None) -> Known:
        """What this machine sees. Raises ``Unavailable``."""
        try:
            size = path.stat().st_size
        except OSError as error:
            raise Unavailable(f"{field}: {path} cannot be read: {error.strerror or error}") from error
        return Known(field, str(said or path), str(path), size, socket.gethostname())

    def must_be_seen(self) -> None:
        """Raises ``Refused`` unless the machine this runs on sees the same."""
        here = socket.gethostname()
        try:
            found = Path(self.path).stat().st_size
        except OSError as error:
            why = error.strerror or str(error)
        else:
            if found == self.bytes:
                return
            why = f"{found:,} bytes there, {self.bytes:,} here"
        raise Refused(
            f"{self.field}: {self.said} on this machine ({self.host}) is not what the worker on {here} has "
            f"at that path: {why}",
            hint=HINT,
        )


def elsewhere(engine: Engine) -> bool:
    """Whether an engine's workers may be on other machines."""
    return engine.address != "local"


def ask(engine: Engine, known: Known) -> None:
    """Have as many tasks look as run at once, so that all machines are asked. Raises ``Refused``."""
    if elsewhere(engine):
        for _ in engine.map(partial(_look, known), range(engine.slots())):
            pass


@contextmanager
def marked(engine: Engine, field: str, folder: Path, said: Path | None = None) -> Iterator[Known | None]:
    """A file that lies in a folder meanwhile, by which each worker can tell that it sees the folder.

    Nothing is written for an engine of this machine.

    Args:
        said: What to call the folder in errors, when it lies in what was named.

    Raises:
        Refused: A worker does not see it.
        Unavailable: The folder cannot be written.
    """
    if not elsewhere(engine):
        yield None
        return
    # never the same name: network file systems remember for a while what was not there, and what a file held
    mark = folder / f".modelkeep-{secrets.token_hex(8)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch(exist_ok=False)
    except OSError as error:
        raise Unavailable(f"{field}: cannot write {folder}: {error.strerror or error}") from error
    try:
        known = Known.of(field, mark, said or folder)
        ask(engine, known)
        yield known
    finally:
        mark.unlink(missing_ok=True)


def blobs_seen(engine: Engine, blobs: BlobStore) -> None:
    """Raises ``Refused`` when blobs are kept in a folder that the engine's workers do not see."""
    if isinstance(blobs, Blobs) and "://" not in blobs.below.url:
        root = Path(blobs.below.url)
        with marked(engine, "blobs", root / "drafts", root):  # where what a kill leaves is swept
            pass


def pinned_seen(engine: Engine, parts: Iterable[Part]) -> None:
    """Raises ``Refused`` when rows lie in files of this machine that the engine's workers do not see."""
    files = (part.external for part in parts if part.external is not None)
    for file in files:
        if "://" not in file.location:
            ask(engine, Known("data.source", file.location, file.location, file.bytes, socket.gethostname()))
            return


def _look(known: Known, _: int) -> None:
    time.sleep(SPREAD)
    known.must_be_seen()
