"""What a running ``modelkeep up`` or ``serve`` says of itself in its home, for other commands here."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from modelkeep.store.scheduling import Room

_UP, _SERVE = "up.json", "serve.json"


def tell(home: Path, room: Room | None, **addresses: str) -> None:
    """Write down where an ``up`` answers, and on how much jobs are run; None when they are not."""
    _write(home / _UP, {**addresses, "room": None if room is None else asdict(room)})


def tell_serving(home: Path, serving: str, grpc: str) -> None:
    """Write down where a ``serve`` answers."""
    _write(home / _SERVE, {"serving": serving, "grpc": grpc})


def room(home: Path) -> Room | None:
    """On how much the ``up`` of this home runs jobs; None when there is none, or it runs elsewhere."""
    try:
        said = _read(home / _UP)["room"]
        return None if said is None else Room(**{**said, "gpus": tuple(said["gpus"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def serving(home: Path) -> str:
    """Where the ``serve`` of this home answers; empty when there is none, or it runs elsewhere."""
    try:
        return str(_read(home / _SERVE)["serving"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _write(path: Path, told: dict[str, Any]) -> None:
    fresh = path.with_suffix(".next")
    fresh.write_text(json.dumps({"pid": os.getpid(), **told}))
    fresh.replace(path)


def _read(path: Path) -> dict[str, Any]:
    """What a process that still runs told. Raises ``OSError``, ``ValueError``, ``KeyError``, ``TypeError``."""
    told: dict[str, Any] = json.loads(path.read_text())
    with contextlib.suppress(PermissionError):  # another user's, but there
        os.kill(int(told["pid"]), 0)
    return told
