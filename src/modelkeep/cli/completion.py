"""Completion scripts for shells."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from modelkeep.cli.common import example, json_option

_SHELLS = ("bash", "zsh", "fish")


@click.command(
    epilog=example(
        'eval "$(modelkeep completion bash)"              # in ~/.bashrc',
        'eval "$(modelkeep completion zsh)"               # in ~/.zshrc',
        "modelkeep completion fish > ~/.config/fish/completions/modelkeep.fish",
    )
)
@click.argument("shell", type=click.Choice(_SHELLS))
@json_option
def completion(shell: str, as_json: bool) -> None:
    """Print the completion script for your shell."""
    from modelkeep.cli.main import cli
    from modelkeep.cli.output import print_json

    found = get_completion_class(shell)
    assert found is not None
    script = found(cli, {}, "modelkeep", "_MODELKEEP_COMPLETE").source()
    if as_json:
        print_json({"shell": shell, "script": script})
    else:
        click.echo(script)
