"""What a running ``modelkeep up`` says of itself in its home, for other commands on the same machine."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from modelkeep.store.scheduling import Room

_FILE = "up.json"


def tell(home: Path, room: Room | None, **addresses: str) -> None:
    """Write down where things answer, and on how much jobs are run; None when they are not."""
    told = {"pid": os.getpid(), **addresses, "room": None if room is None else asdict(room)}
    path = home / _FILE
    fresh = path.with_suffix(".next")
    fresh.write_text(json.dumps(told))
    fresh.replace(path)


def room(home: Path) -> Room | None:
    """On how much the ``up`` of this home runs jobs; None when there is none, or it runs elsewhere."""
    try:
        told: dict[str, Any] = json.loads((home / _FILE).read_text())
        with contextlib.suppress(PermissionError):  # another user's, but there
            os.kill(int(told["pid"]), 0)
        said = told["room"]
        return None if said is None else Room(**{**said, "gpus": tuple(said["gpus"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None
