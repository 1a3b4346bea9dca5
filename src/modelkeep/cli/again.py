"""``rollback``, ``reproduce`` and ``doctor``: undo, do again, and check that all is whole."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelkeep.cli import exits
from modelkeep.cli.common import declared, example, file_option, json_option, opened, split_ref
from modelkeep.cli.output import print_json, say, table, text
from modelkeep.cli.progress import watching

if TYPE_CHECKING:
    from modelkeep.lifecycle.reproduce import Reproduced


@click.command(
    epilog=example(
        "modelkeep rollback                    # the champion before this one",
        "modelkeep rollback flights@6          # a version you name",
        "modelkeep rollback flights@6 --because 'wrong labels in May'",
    )
)
@click.argument("ref", required=False, metavar="[MODEL[@VERSION]]")
@click.option(
    "--because", default="asked for on the command line", show_default=True, help="Why, for the history."
)
@file_option
@json_option
def rollback(ref: str | None, because: str, file: Path, as_json: bool) -> None:
    """Give all traffic back to an earlier version, in one transaction."""
    from modelkeep.lifecycle import rollout
    from modelkeep.registry import models

    model, version = split_ref(ref) if ref else (declared(file).model, None)
    with opened(file) as keep:
        target = None
        if version is not None:
            with keep.db.read() as conn:
                target = models.version(conn, model, version).version
        now = keep.clock.now()
        found = keep.db.write(lambda conn: rollout.roll_back(conn, model, to=target, now=now, because=because))
    if as_json:
        print_json({"version": found})
    else:
        say(f"[bold]{text(found.name)}[/] has all traffic")


@click.command(
    epilog=example("modelkeep reproduce flights@7", "modelkeep reproduce flights@champion --json"),
)
@click.argument("ref", metavar="MODEL@VERSION")
@file_option
@json_option
def reproduce(ref: str, file: Path, as_json: bool) -> None:
    """Make a version again from its digests and compare metrics and predictions.

    Exit code 1 when they differ.
    """
    from modelkeep.lifecycle import reproduce as again

    with opened(file) as keep, watching(quiet=as_json) as progress:
        found = again.reproduce(keep, ref, progress)
    if as_json:
        print_json(found)
    else:
        _tell(found)
    if not (found.metrics_equal and found.predictions_equal):
        raise SystemExit(exits.REFUSED)


def _tell(found: Reproduced) -> None:
    table(
        ("metric", "first", "again"),
        ((name, first, second) for name, (first, second) in found.metrics.items()),
        title=found.version,
        right=("first", "again"),
    )
    same = "[green]are equal[/]", "[red]differ[/]"
    say(f"metrics {same[not found.metrics_equal]}")
    say(
        f"predictions of {found.rows:,} rows {same[not found.predictions_equal]}"
        f" (largest difference {found.largest_difference:.3g})"
    )
    if found.note:
        say(text(found.note))


@click.command(
    epilog=example("modelkeep doctor", "modelkeep doctor --json"),
)
@file_option
@json_option
def doctor(file: Path, as_json: bool) -> None:
    """Check every digest, every package, the history and the installation. Exit code 5 if something is damaged."""
    from modelkeep.cli.checkup import checkup

    with opened(file) as keep, watching(quiet=as_json) as progress:
        findings = checkup(keep, progress)
    well = all(not finding.faults for finding in findings)
    if as_json:
        print_json({"ok": well, "checks": findings})
    else:
        for finding in findings:
            sign = "[red]✗[/]" if finding.faults else "[green]✓[/]"
            say(f"{sign} {finding.name:<12} {text(finding.detail)}")
            for fault in finding.faults:
                say(f"    [red]{text(fault)}[/]")
    if not well:
        raise SystemExit(exits.DAMAGED)
