"""Progress on the terminal, for work that takes more than a second."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from modelkeep.core.ports import Progress, Silent

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

_PATIENCE = 1.0
_PAUSE = 0.1


class Shown:
    """Progress as bars on standard error; nothing is drawn in the first second.

    Cheap: between two drawings a step costs two dictionary look-ups.
    """

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.bars: Bars | None = None
        self.tasks: dict[str, TaskID] = {}
        self.last: dict[str, float] = {}
        self.waiting: dict[str, tuple[float, float | None, str]] = {}

    def step(self, name: str, done: float, total: float | None = None, note: str = "") -> None:
        """Show how far ``name`` has come."""
        now = time.monotonic()
        finished = total is not None and done >= total
        if now - self.started < _PATIENCE:
            self.waiting[name] = (done, total, note)
            return
        if not finished and now - self.last.get(name, 0.0) < _PAUSE:
            return
        self.last[name] = now
        # Drawing must never end the work it tells of.
        with contextlib.suppress(Exception):
            for earlier, told in self.waiting.items():
                self._draw(earlier, *told)
            self.waiting.clear()
            self._draw(name, done, total, note)

    def _draw(self, name: str, done: float, total: float | None, note: str) -> None:
        if self.bars is None:
            self.bars = _bars()
            self.bars.start()
        if name not in self.tasks:
            self.tasks[name] = self.bars.add_task(name, total=total, note="")
        self.bars.update(self.tasks[name], completed=done, total=total, note=note)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self.bars is not None:
            self.bars.stop()


def _bars() -> Bars:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    return Progress(
        SpinnerColumn(finished_text="[green]✓[/]"),
        TextColumn("{task.description:<10}", markup=False),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=Console(stderr=True),
    )


@contextlib.contextmanager
def watching(*, quiet: bool = False) -> Iterator[Progress]:
    """Progress while the block runs; silent without a terminal or when told to be quiet."""
    if quiet or not sys.stderr.isatty():
        yield Silent()
        return
    shown = Shown()
    try:
        yield shown
    finally:
        shown.close()
