"""Where a fit stands, in one file that is whole at every moment, so that a killed fit goes on from there."""

from __future__ import annotations

import contextlib
import json
import os
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from modelkeep.core.errors import Unavailable
from modelkeep.train.linear.losses import Array

EVERY = 30.0
"""Seconds between checkpoints within a pass; at the end of a pass there is always one."""


class Checkpoint:
    """The checkpoint of one fit.

    Args:
        folder: Where; None keeps none.
        about: What the fit is made of (settings, sizes); a file about anything else is not gone on from.
    """

    def __init__(self, folder: Path | None, about: dict[str, Any]) -> None:
        self._path = None if folder is None else folder / "linear.npz"
        self._about = json.loads(json.dumps(about))
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether it is time for one within a pass."""
        return self._path is not None and time.monotonic() - self._last > EVERY

    def save(self, stands: dict[str, Any], arrays: dict[str, Array]) -> None:
        """Replace the file by a newer one, or leave it as it was.

        Args:
            stands: JSON types; floats come back exactly.

        Raises:
            Unavailable: The disk is full or away.
        """
        if self._path is None:
            return
        text = json.dumps({"about": self._about, "stands": stands})
        new = self._path.with_suffix(".new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with new.open("wb") as file:
                np.savez(file, stands=np.frombuffer(text.encode(), np.uint8), **arrays)  # type: ignore[arg-type]
                file.flush()
                os.fsync(file.fileno())
            new.replace(self._path)
        except OSError as error:
            raise Unavailable(f"the checkpoint {self._path} cannot be written: {error}") from error
        self._last = time.monotonic()

    def load(self) -> tuple[dict[str, Any], dict[str, Array]] | None:
        """What was saved last; None when there is nothing, or nothing of this fit."""
        if self._path is None or not self._path.exists():
            return None
        try:
            with np.load(self._path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            known = json.loads(arrays.pop("stands").tobytes())
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return None  # not ours, or of a damaged disk: begin anew
        return (known["stands"], arrays) if known["about"] == self._about else None

    def clear(self) -> None:
        """Forget it: the fit has ended."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # others keep something there too, or it never was
                self._path.parent.rmdir()
