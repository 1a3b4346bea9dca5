"""What the watcher sees: the year as a table, and the history as it is written."""

from __future__ import annotations

from collections import deque
from datetime import UTC, datetime
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from modelkeep.app.demo.score import Month, year

_TOLD = {
    "version.promoted": ("green", "promoted"),
    "version.registered": ("cyan", "registered"),
    "version.refused": ("red", "refused by its gates"),
    "rollout.started": ("cyan", "rollout"),
    "rollout.advanced": ("cyan", "rollout"),
    "rollout.aborted": ("red", "rollout aborted"),
    "finding.drift": ("yellow", "drift"),
    "finding.performance_drop": ("yellow", "performance drop"),
    "renewal.started": ("magenta", "renewal"),
    "renewal.ended": ("magenta", "renewal"),
    "data.snapshot": ("blue", "snapshot"),
}


class View:
    """A live view on a terminal; plain lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._history: deque[Text] = deque(maxlen=14)
        self._months: list[Month] = []
        self._now = ""
        self._findings: set[tuple[str, str]] = set()
        self._live = Live(console=console, refresh_per_second=8, transient=True) if console.is_terminal else None

    def __enter__(self) -> View:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def say(self, text: str) -> None:
        """One line about what is being done."""
        self._add(Text(text, style="dim"))

    def event(self, event: dict[str, Any]) -> None:
        """One line of the history, if a watcher would care."""
        if event["kind"] not in _TOLD or self._again(event):
            return
        style, word = _TOLD[event["kind"]]
        at = datetime.fromtimestamp(event["at"], UTC)
        data = event["data"]
        detail = " ".join(str(data[name]) for name in ("step", "because", "text", "note") if data.get(name))
        self._add(Text.assemble((f"{at:%d %b} ", "dim"), (f"{word} ", style), f"{event['subject']} {detail}"))

    def _again(self, event: dict[str, Any]) -> bool:
        """Whether this finding about this version was told before: one is news, thirty are noise."""
        if not event["kind"].startswith("finding."):
            return False
        known = (event["kind"], event["subject"]) in self._findings
        self._findings.add((event["kind"], event["subject"]))
        return known

    def day(self, now: float) -> None:
        """The played time moved on."""
        self._now = f"{datetime.fromtimestamp(now, UTC):%A %d %B %Y}"
        self._draw()

    def month(self, month: Month) -> None:
        """A month is over and scored."""
        self._months.append(month)
        if self._live is None:
            gain = month.kept[0] - month.alone[0]
            self.console.print(
                f"{month.month}: kept AUC {month.kept[0]:.3f}, left alone {month.alone[0]:.3f} ({gain:+.3f})"
            )
        self._draw()

    def table(self) -> Table:
        """The year so far."""
        table = Table(title="The model that was kept, and the January model left alone", title_justify="left")
        for name in ("month", "flights", "late", "champion", "kept AUC", "alone AUC", "kept acc.", "alone acc."):
            table.add_column(name, justify="left" if name in ("month", "champion") else "right")
        for month in self._months:
            better = "green" if month.kept[0] > month.alone[0] else ""
            table.add_row(
                month.month,
                f"{month.flights:,}",
                f"{month.late:.1%}",
                ", ".join(f"v{number}" for number in month.versions),
                Text(f"{month.kept[0]:.3f}", style=better),
                f"{month.alone[0]:.3f}",
                f"{month.kept[1]:.3f}",
                f"{month.alone[1]:.3f}",
            )
        if self._months:
            total = year(self._months)
            table.add_section()
            table.add_row(
                "the year",
                f"{sum(month.flights for month in self._months):,}",
                "",
                "",
                Text(f"{total['kept_roc_auc']:.3f}", style="bold"),
                f"{total['alone_roc_auc']:.3f}",
                f"{total['kept_accuracy']:.3f}",
                f"{total['alone_accuracy']:.3f}",
            )
        return table

    def _add(self, line: Text) -> None:
        if self._live is None:
            self.console.print(line)
        self._history.append(line)
        self._draw()

    def _draw(self) -> None:
        if self._live:
            history = Panel(Group(*self._history), title=self._now or "What happens, and why", title_align="left")
            self._live.update(Group(self.table(), history))
