"""What serving last knew to serve, kept in the home so that it can start without the database."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec
from msgspec import Struct

from modelkeep.registry.endpoints import Wanted

log = logging.getLogger(__name__)


class State(Struct, frozen=True):
    """The wanted state as it was read.

    Attributes:
        generation: Of the registry at that time.
        wanted: Every endpoint.
    """

    generation: int
    wanted: tuple[Wanted, ...]


def save(path: Path, state: State) -> None:
    """Replace the kept state; readers see the old or the new one. A full disk is logged, serving goes on."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".next")
        fresh.write_bytes(msgspec.json.format(msgspec.json.encode(state)))
        fresh.replace(path)
    except OSError as error:
        log.warning("the served state could not be kept in %s: %s", path, error)


def load(path: Path) -> State | None:
    """The kept state, or None when there is none that can be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=State)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        log.warning("the served state in %s cannot be read: %s", path, error)
        return None
