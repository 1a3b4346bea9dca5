"""Progress as a caller sees it: stage by stage."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Literal

from msgspec import Struct

from modelkeep.core.ports import Progress

Action = Literal["run", "reuse"]


class Stage(Struct, frozen=True):
    """What a plan says of one stage, or what an apply did.

    Attributes:
        name: One of ``stages.NAMES``.
        action: ``run`` or ``reuse``.
        because: Why, as a sentence.
        seconds: How long it took; None in a plan.
    """

    name: str
    action: Action
    because: str
    seconds: float | None = None


class Teller:
    """Collects what was done and tells the watcher."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.stages: list[Stage] = []

    @contextlib.contextmanager
    def stage(self, name: str, because: str) -> Iterator[None]:
        """Time a stage that runs."""
        began = time.perf_counter()
        self.progress.step(name, 0, None, because)
        yield
        seconds = time.perf_counter() - began
        self.stages.append(Stage(name, "run", because, seconds))
        self.progress.step(name, 1, 1, f"{seconds:.1f} s")

    def reuse(self, name: str, because: str) -> None:
        """Tell of a stage that did not need to run."""
        self.stages.append(Stage(name, "reuse", because, 0.0))
        self.progress.step(name, 1, 1, because)
