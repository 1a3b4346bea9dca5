"""``import mlflow`` and ``export mlflow``: come from MLflow, and go back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelkeep.cli import exits
from modelkeep.cli.common import example, file_option, json_option, opened
from modelkeep.cli.output import print_json, say, size, table, text
from modelkeep.cli.progress import watching

if TYPE_CHECKING:
    from modelkeep.protocols.mlflow.transfer import exporting
    from modelkeep.protocols.mlflow.transfer.importing import Report


@click.group("import", epilog=example("modelkeep import mlflow http://127.0.0.1:5000"))
def import_() -> None:
    """Copy what another tool keeps here."""


@import_.command(
    "mlflow",
    epilog=example(
        "modelkeep import mlflow http://127.0.0.1:5000",
        "modelkeep import mlflow sqlite:///mlflow.db",
        "modelkeep import mlflow postgresql://mlflow@db/mlflow --artifacts s3://bucket/mlflow",
    ),
)
@click.argument("source")
@click.option("--artifacts", default="", metavar="PLACE", help="Where the server keeps files: folder or URL.")
@click.option("--no-artifacts", is_flag=True, help="Leave files where they are.")
@click.option("--prefix", default="", help="Goes before the names of all experiments and models.")
@click.option("--rename", is_flag=True, help="Give others to numbers and names that are taken.")
@click.option("--again", is_flag=True, help="Copy also what was copied before and is unchanged.")
@click.option("--workspace", default="default", show_default=True, help="Of a database with several.")
@click.option(
    "--verify",
    type=click.Choice(["sample", "all", "none"]),
    default="sample",
    show_default=True,
    help="What to compare at the end.",
)
@file_option
@json_option
def import_mlflow(
    source: str,
    artifacts: str,
    no_artifacts: bool,
    prefix: str,
    rename: bool,
    again: bool,
    workspace: str,
    verify: str,
    file: Path,
    as_json: bool,
) -> int:
    """Copy an MLflow server, its database or an mlruns folder, keeping ids and times.

    Experiments, runs with whole histories, datasets, logged models, traces, files, registered models, versions,
    aliases, tags, evaluation datasets, webhooks. The SOURCE is only read. Stopped midway, the same command goes
    on; later, it copies what is new.
    """
    from modelkeep.protocols.mlflow.transfer import importing
    from modelkeep.protocols.mlflow.transfer.checking import SAMPLE
    from modelkeep.protocols.mlflow.transfer.choosing import open_source

    most = {"sample": SAMPLE, "all": None, "none": 0}[verify]
    options = importing.Options(prefix, rename, not no_artifacts, again, most)
    with opened(file) as keep, watching(quiet=as_json) as progress:
        found = open_source(source, artifacts=artifacts, workspace=workspace)
        try:
            report = importing.run(keep, found, options, progress)
        finally:
            found.close()
    if as_json:
        print_json(report)
    else:
        _show(report)
    return exits.DAMAGED if report.checked.faults else exits.OK


def _show(report: Report) -> None:
    rows = [
        (kind.replace("_", " "), size(count) if kind == "bytes" else count, report.unchanged.get(kind, 0) or "")
        for kind, count in report.copied.items()
    ]
    note = f" ({report.note})" if report.note else ""
    say(f"{text(report.origin)}{text(note)}")
    table(("", "copied", "unchanged"), rows, right=("copied", "unchanged"))
    _show_names(report.renamed, report.left, "here")
    for kind, count in report.others.items():
        say(f"  [yellow]not copied[/]: {count:,} {text(kind)}")
    checked = report.checked
    for fault in checked.faults:
        say(f"  [red]✗[/] {text(fault)}")
    if not checked.faults:
        what = f"{checked.runs:,} runs, {checked.points:,} points, {checked.files:,} files ({size(checked.bytes)})"
        what += f", {checked.models:,} models, {checked.versions:,} versions, {checked.traces:,} traces"
        say(f"[green]✓[/] compared with the source: {what}; in {report.seconds:.1f} s")


def _show_names(renamed: dict[str, str], left: list[str], where: str) -> None:
    for was, now in renamed.items():
        say(f"  {text(was)} is {text(now)} {where}")
    for line in left:
        say(f"  [yellow]left[/]: {text(line)}")


@click.group("export", epilog=example("modelkeep export mlflow http://127.0.0.1:5000"))
def export() -> None:
    """Copy what is kept here to another tool."""


@export.command("mlflow", epilog=example("modelkeep export mlflow http://127.0.0.1:5000 --prefix old-"))
@click.argument("target")
@click.option("--prefix", default="", help="Goes before the names of all experiments and models.")
@click.option("--rename", is_flag=True, help="Give other names to what has a name that is taken there.")
@file_option
@json_option
def export_mlflow(target: str, prefix: str, rename: bool, file: Path, as_json: bool) -> int:
    """Copy everything to the MLflow server at the address TARGET.

    The server gives its own ids; those of here stay as tags. Stopped midway, the same command goes on; later, it
    copies what is new.
    """
    from modelkeep.protocols.mlflow.transfer import exporting

    with opened(file) as keep, watching(quiet=as_json) as progress:
        report = exporting.run(keep, target, progress, prefix=prefix, rename=rename)
    if as_json:
        print_json(report)
    else:
        _show_export(report)
    return exits.DAMAGED if report.faults else exits.OK


def _show_export(report: exporting.Report) -> None:
    say(text(report.target))
    rows = [(kind, count, report.unchanged.get(kind, 0) or "") for kind, count in report.exported.items()]
    table(("", "exported", "unchanged"), rows, right=("exported", "unchanged"))
    _show_names(report.renamed, report.left, "there")
    for line in report.lost:
        say(f"  [dim]lost[/]: {text(line)}")
    for fault in report.faults:
        say(f"  [red]✗[/] {text(fault)}")
    if not report.faults:
        say(f"[green]✓[/] {report.compared:,} runs read back are the same there; in {report.seconds:.1f} s")
