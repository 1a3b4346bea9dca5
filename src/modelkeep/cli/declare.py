"""``init`` and ``schema``."""

from __future__ import annotations

from pathlib import Path

import click

from modelkeep.cli.common import DEFAULT_FILE, example, file_option, json_option
from modelkeep.cli.output import print_json, say, text
from modelkeep.core.errors import Conflict, Unavailable


@click.command(
    epilog=example(
        "modelkeep init flights.csv",
        "modelkeep init 'data/2013/*.parquet' --file flights/modelkeep.yaml",
        "modelkeep init flights.csv --force          # write over modelkeep.yaml",
    )
)
@click.argument("datafile", type=click.Path(path_type=Path))
@file_option
@click.option("--force", is_flag=True, help="Write over a declaration that is there.")
@json_option
def init(datafile: Path, file: Path, force: bool, as_json: bool) -> None:
    """Look at DATAFILE and write a commented declaration that already runs."""
    from modelkeep.data.starter import declare
    from modelkeep.spec.loading import load_text

    file = file / DEFAULT_FILE if file.is_dir() else file
    if file.exists() and not force:
        raise Conflict(f"{file} is there already", hint="write over it with --force, or name another with --file")
    # The source is named as the declaration's folder sees it.
    elsewhere = file.parent.resolve() != Path.cwd() and ":" not in str(datafile)
    written = declare(datafile.absolute() if elsewhere else datafile)
    declaration = load_text(written, str(file))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh = file.with_name(file.name + ".new")
        fresh.write_text(written, encoding="utf-8")
        fresh.replace(file)
    except OSError as error:
        raise Unavailable(f"cannot write {file}: {error.strerror}") from error
    if as_json:
        print_json({"file": str(file), "model": declaration.model, "target": declaration.data.target})
        return
    say(f"wrote [bold]{text(file)}[/]: model {declaration.model}, target {text(declaration.data.target)}")
    say("read it, change what you know better, then: [bold]modelkeep plan[/]")


@click.command(
    epilog=example(
        "modelkeep schema > modelkeep.schema.json",
        "# then, as the first line of modelkeep.yaml:",
        "# yaml-language-server: $schema=modelkeep.schema.json",
    )
)
@json_option
def schema(as_json: bool) -> None:
    """Print the JSON Schema of a declaration, with which editors complete and check."""
    from modelkeep.spec.schema import json_schema

    print_json(json_schema())
