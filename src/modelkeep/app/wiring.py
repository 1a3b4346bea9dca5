"""The composition root: choose the implementations and connect them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from modelkeep.app.settings import Settings, settings
from modelkeep.core import clock
from modelkeep.core.errors import Unavailable
from modelkeep.core.ports import Engine
from modelkeep.lifecycle.keep import Engines, Keep
from modelkeep.spec.declaration import Resources
from modelkeep.store.blobs import open_blobs
from modelkeep.store.database import Database


def open_keep(path: Path, *, blobs: str = "") -> Keep:
    """Open the home that belongs to a declaration, making it when there is none yet.

    Args:
        path: The declaration's file, or a folder.
        blobs: The declaration's ``blobs`` setting.

    Raises:
        Unavailable: The home cannot be written, or the database cannot be reached.
    """
    base = path.resolve() if path.is_dir() else path.resolve().parent
    return connect(settings(base, blobs=blobs), base)


def connect(where: Settings, base: Path) -> Keep:
    """Open what ``where`` says."""
    try:
        where.home.mkdir(parents=True, exist_ok=True)
        ignore = where.home / ".gitignore"
        if not ignore.exists():
            ignore.write_text("*\n")
    except OSError as error:
        raise Unavailable(
            f"the home {where.home} cannot be made: {error.strerror}",
            hint="set MODELKEEP_HOME to a folder you may write to",
        ) from error
    return Keep(
        home=where.home,
        base=base,
        db=Database.open(where.database),
        blobs=open_blobs(where.blobs),
        clock=clock.from_environment(),
        engines=engines(),
    )


def engines(workers: int | None = None) -> Engines:
    """Those that a home opens when they are asked for.

    Args:
        workers: At most so many processes of the local engine.
    """
    return Engines(partial(_engine, workers))


def _engine(workers: int | None, address: str, code: Path | None, resources: Resources) -> Engine:
    from modelkeep.engines.opening import open_engine  # most commands need none

    return open_engine(address, code=code, resources=resources, workers=workers)
