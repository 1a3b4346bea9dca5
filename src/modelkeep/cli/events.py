"""``events``: the history of every change, and its proof."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from modelkeep.cli.common import example, file_option, json_option, opened
from modelkeep.cli.output import moment, print_json, say, table
from modelkeep.core.errors import Damaged


@click.group(epilog=example("modelkeep events list --kind version.", "modelkeep events verify"))
def events() -> None:
    """The history of every change of state, in a chain of hashes, and its proof."""


@events.command(
    "list",
    epilog=example(
        "modelkeep events list                        # the last 50",
        "modelkeep events list flights@7              # of one version",
        "modelkeep events list --kind rollout. --json # of every kind that begins so",
    ),
)
@click.argument("subject", required=False)
@click.option("--kind", help="Only this kind; ending with '.', every kind that begins so.")
@click.option("--after", type=int, default=0, help="Only events with a higher number.")
@click.option("--limit", type=int, default=50, show_default=True, help="At most so many: the newest.")
@file_option
@json_option
def list_events(
    *, subject: str | None, kind: str | None, after: int, limit: int, file: Path, as_json: bool
) -> None:
    """List events, oldest first; of a SUBJECT such as flights or flights@7."""
    from modelkeep.registry import events as registry

    with opened(file) as keep, keep.db.read() as conn:
        found = registry.history(conn, subject, kind=kind, after=after, limit=limit, newest_first=True)[::-1]
    if as_json:
        print_json({"events": found})
        return
    if not found:
        say("nothing has happened yet")
        return
    table(
        ("#", "when (UTC)", "what", "of", "by", "because"),
        ((item.seq, moment(item.at), item.kind, item.subject, item.actor, _because(item.data)) for item in found),
        right=("#",),
    )


def _because(data: dict[str, object]) -> str:
    if data.get("because"):
        return str(data["because"])
    text = msgspec.json.encode(data).decode() if data else ""
    return text if len(text) <= 100 else text[:97] + "..."


@events.command(epilog=example("modelkeep events verify", "modelkeep events verify --json"))
@file_option
@json_option
def verify(file: Path, as_json: bool) -> None:
    """Check that no event was changed, removed, inserted or moved. Exit code 5 if one was."""
    from modelkeep.registry import events as registry

    with opened(file) as keep, keep.db.read() as conn:
        faults = registry.verify(conn)
        count, head = registry.head(conn)
    if faults and not as_json:
        raise Damaged("the history is damaged:\n  " + "\n  ".join(faults))
    if as_json:
        print_json({"ok": not faults, "events": count, "head": head, "faults": faults})
        if faults:
            raise SystemExit(5)
        return
    say(f"[green]whole[/]: {count} events, each sealed by the one before; head {head[:16]}")
