"""``plan`` and ``apply``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelkeep.cli import exits
from modelkeep.cli.common import declared, example, file_option, json_option, opened
from modelkeep.cli.output import print_json, say, show_gate, text
from modelkeep.cli.progress import watching

if TYPE_CHECKING:
    from modelkeep.lifecycle.apply import Applied
    from modelkeep.lifecycle.progress import Stage


@click.command(
    epilog=example(
        "modelkeep plan",
        "modelkeep plan -f models/flights/modelkeep.yaml",
        "modelkeep plan --json | jq '.stages[] | select(.action == \"run\")'",
    )
)
@file_option
@json_option
def plan(file: Path, as_json: bool) -> None:
    """Compare the declaration with what is: what would run and why, and what is reused. Changes nothing."""
    declaration = declared(file)
    from modelkeep.lifecycle import plan as planning

    with opened(file, declaration) as keep:
        found = planning.plan(keep, declaration)
    if as_json:
        stages = [{"name": s.name, "action": s.action, "because": s.because} for s in found.stages]
        print_json({"model": declaration.model, "stages": stages})
        return
    say(f"[bold]{text(declaration.model)}[/]")
    show_stages(found.stages)
    running = sum(stage.action == "run" for stage in found.stages)
    if running:
        say(f"\n{running} to run, {len(found.stages) - running} reused. Go ahead with [bold]modelkeep apply[/].")
    else:
        say("\n[green]Nothing to do[/]: everything is as declared.")


def show_stages(stages: Sequence[Stage]) -> None:
    """Stages as a diff: ``+`` what is made for the first time, ``~`` what is made anew, ``=`` what is reused."""
    fresh = all(stage.action == "run" for stage in stages)
    for stage in stages:
        if stage.action == "reuse":
            sign, colour = "=", "dim"
        else:
            sign, colour = ("+", "green") if fresh else ("~", "yellow")
        took = f" [dim]({stage.seconds:.1f} s)[/]" if stage.seconds is not None and stage.action == "run" else ""
        say(f"  [{colour}]{sign} {stage.name:<9}[/] {text(stage.because)}{took}")


@click.command(
    epilog=example(
        "modelkeep apply",
        "modelkeep apply --because 'more data from the north'",
        "modelkeep apply --json && modelkeep up",
    )
)
@click.option("--because", default="", help="Why, for the history.")
@file_option
@json_option
def apply(because: str, file: Path, as_json: bool) -> None:
    """Make it so: snapshot, prepare, train, evaluate, gate, package, register, roll out.

    Work already done from exactly the same inputs is reused; interrupted work goes on where it stopped.
    Exit code 1 when a gate refuses the version.
    """
    declaration = declared(file)
    from modelkeep.lifecycle import apply as applying

    reason = {"because": because} if because else {}
    with opened(file, declaration) as keep, watching(quiet=as_json) as progress:
        done = applying.apply(keep, declaration, progress, **reason)
    if as_json:
        print_json(done)
    else:
        _tell(done)
    if not done.passed:
        raise SystemExit(exits.REFUSED)


def _tell(done: Applied) -> None:
    name = done.model if done.version is None else f"{done.model}@{done.version}"
    say(f"[bold]{text(name)}[/]")
    show_stages(done.stages)
    if done.gates:
        say("\ngates")
    for gate in done.gates:
        show_gate(gate.gate, gate.passed, gate.evidence)
    colour = "green" if done.passed else "red"
    say(f"\n[{colour}]{text(done.note)}[/]")
