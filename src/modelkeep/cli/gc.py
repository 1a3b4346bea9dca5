"""``gc`` and ``hold``: remove what nothing refers to, and keep what must not be removed."""

from __future__ import annotations

import getpass
from pathlib import Path

import click
import msgspec

from modelkeep.cli.common import example, file_option, json_option, opened
from modelkeep.cli.output import moment, print_json, say, size, table, text
from modelkeep.cli.progress import watching

_KINDS = click.Choice(["run", "experiment", "model", "version", "snapshot", "trace"])


@click.command(
    epilog=example(
        "modelkeep gc --dry-run                # what would go, why, and how many bytes",
        "modelkeep gc --older-than 90d         # keep what was deleted in the last 90 days",
    )
)
@click.option("--dry-run", is_flag=True, help="Change nothing; say what would go.")
@click.option(
    "--older-than", default="30d", show_default=True, help="Age of the deletion of runs and experiments that go."
)
@click.option(
    "--grace",
    default="1d",
    show_default=True,
    help="Age of blobs that go; less only while nothing is uploading.",
)
@file_option
@json_option
def gc(dry_run: bool, older_than: str, grace: str, file: Path, as_json: bool) -> None:
    """Remove deleted runs, and all bytes that nothing refers to.

    Runs, logged models and experiments that were deleted long enough ago; searches that nobody went on with; blobs
    and chunks that nothing needs; local copies of packages that are not served. What is under legal hold stays,
    with all it reaches.
    """
    from modelkeep.lifecycle.gc import collect
    from modelkeep.spec.units import seconds

    with opened(file) as keep, watching(quiet=as_json) as progress:
        found = collect(keep, progress, dry_run=dry_run, older_than=seconds(older_than), grace=seconds(grace))
    if as_json:
        print_json(found)
        return
    rows = [
        (line.kind, line.count, size(line.bytes), "" if line.kept is None else line.kept, line.young, line.why)
        for line in found.lines
    ]
    columns = ("", "would go" if dry_run else "gone", "size", "kept", "too new", "why")
    table(columns, rows, right=columns[1:5])
    say(f"{'would free' if dry_run else 'freed'} [bold]{size(found.freed)}[/]")


@click.group(
    epilog=example(
        "modelkeep hold add version flights@7 --reason 'case 4711'",
        "modelkeep hold list",
        "modelkeep hold remove version flights@7 --reason 'case closed'",
    )
)
def hold() -> None:
    """Legal hold: what is held is never deleted, with all it reaches."""


def _actor() -> str:
    try:
        return f"{getpass.getuser()} at the command line"
    except (KeyError, OSError):  # a user without a name, as in some containers
        return "the command line"


@hold.command("add", epilog=example("modelkeep hold add version flights@7 --reason 'case 4711'"))
@click.argument("kind", type=_KINDS)
@click.argument("name")
@click.option("--reason", required=True, help="Why; it stands in the history.")
@file_option
@json_option
def hold_add(kind: str, name: str, reason: str, file: Path, as_json: bool) -> None:
    """Hold a run (id), experiment (number), model, version (MODEL@NUMBER), snapshot (digest) or trace (id)."""
    from modelkeep.registry import holds

    with opened(file) as keep:
        now, actor = keep.clock.now(), _actor()
        made = keep.db.write(lambda conn: holds.add(conn, kind, name, reason, now=now, actor=actor))
    if as_json:
        print_json(made)
    else:
        say(f"{kind} [bold]{text(name)}[/] is held")


@hold.command("remove", epilog=example("modelkeep hold remove version flights@7 --reason 'case closed'"))
@click.argument("kind", type=_KINDS)
@click.argument("name")
@click.option("--reason", required=True, help="Why; it stands in the history.")
@file_option
@json_option
def hold_remove(kind: str, name: str, reason: str, file: Path, as_json: bool) -> None:
    """End a hold."""
    from modelkeep.registry import holds

    with opened(file) as keep:
        now, actor = keep.clock.now(), _actor()
        keep.db.write(lambda conn: holds.release(conn, kind, name, reason, now=now, actor=actor))
    if as_json:
        print_json({"kind": kind, "name": name, "held": False})
    else:
        say(f"{kind} [bold]{text(name)}[/] is no longer held")


@hold.command("list", epilog=example("modelkeep hold list --json"))
@file_option
@json_option
def hold_list(file: Path, as_json: bool) -> None:
    """All holds: on what, since when, by whom, why."""
    from modelkeep.registry import holds

    with opened(file) as keep, keep.db.read() as conn:
        found = holds.listing(conn)
    if as_json:
        print_json({"holds": [msgspec.to_builtins(each) for each in found]})
        return
    rows = [(each.kind, each.name, moment(each.since), each.actor, each.reason) for each in found]
    table(("kind", "name", "since", "by", "why"), rows)
