"""What a command prints: one JSON document, or text and tables for people."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from rich.console import Console


def console() -> Console:
    """Where people read. Without a terminal lines are not cut to eighty characters."""
    from rich.console import Console

    return Console(highlight=False, file=sys.stdout, width=None if sys.stdout.isatty() else 160)


def print_json(value: Any, *, one_line: bool = False) -> None:
    """One JSON document on standard output; structs and dataclasses as objects, NaN as null.

    Args:
        one_line: For a command that keeps running, whose reader must know where the document ends.
    """
    document = msgspec.json.encode(value, enc_hook=_plain)
    sys.stdout.write((document if one_line else msgspec.json.format(document, indent=2)).decode() + "\n")
    sys.stdout.flush()


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # NumPy arrays and scalars
        return value.tolist()
    if hasattr(value, "__fspath__"):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} has no JSON form")


def table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str = "", right: Iterable[str] = ()
) -> None:
    """A table for people; the columns in ``right`` are numbers."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    numbers = set(right)
    shown = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in columns:
        shown.add_column(escape(name), justify="right" if name in numbers else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(text(item) for item in row))
    console().print(shown)


def text(value: Any) -> str:
    """A value as people read it, safe from Rich's markup."""
    from rich.markup import escape

    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e6 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    return escape(str(value))


def say(line: str = "") -> None:
    """A line for people, with Rich's markup."""
    console().print(line, soft_wrap=True)


def moment(seconds: float | None) -> str:
    """A time as people read it, in UTC."""
    if seconds is None:
        return ""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def short(digest: str) -> str:
    """Enough of a digest to recognise it."""
    return digest[:12]


def size(count: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def show_gate(gate: str, passed: bool, evidence: str) -> None:
    """One line about a gate: whether it holds, and on what evidence."""
    sign = "[green]✓[/]" if passed else "[red]✗[/]"
    say(f"  {sign} {text(gate)}  [dim]{text(evidence)}[/]")
