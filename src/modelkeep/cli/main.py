"""The command ``modelkeep``: finds the command, runs it, and turns every error into words and an exit code.

Command modules are imported only when their command is called, so that ``modelkeep --help`` is quick.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from keyword import iskeyword
from typing import Any, NoReturn

import click

from modelkeep import __version__
from modelkeep.cli import exits
from modelkeep.core.errors import ModelkeepError

COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("declare", "Look at a data file and write a declaration that runs."),
    "schema": ("declare", "Print the JSON Schema of a declaration."),
    "plan": ("make", "Say what would run and why, and what is reused."),
    "apply": ("make", "Make it so: snapshot, train, evaluate, gate, register, roll out."),
    "up": ("run", "Serve, watch, and keep applying by evidence."),
    "serve": ("run", "Serve alone, beside control that may come and go."),
    "show": ("ask", "What is live, what was live, what a version is."),
    "diff": ("ask", "What changed between two versions."),
    "trace": ("ask", "From which rows, code and declaration a version came."),
    "reproduce": ("again", "Make a version again from its digests and compare."),
    "deploy": ("deploy", "Serve a version that a client registered, such as one logged with MLflow."),
    "rollback": ("again", "Give all traffic back to an earlier version."),
    "predict": ("predict", "Predict the rows of a file, or one row of values."),
    "data": ("data", "List, show, compare, grow and export snapshots."),
    "jobs": ("jobs", "Renewals in the queue: show, cancel, try again, read their logs."),
    "labels": ("labels", "Send the truth about past predictions."),
    "import": ("transfer", "Copy an MLflow server, its database or its folder here."),
    "export": ("transfer", "Copy what is kept here to an MLflow server."),
    "gc": ("gc", "Remove deleted runs, and all bytes that nothing refers to."),
    "hold": ("gc", "Legal hold: what is held is never deleted, with all it reaches."),
    "events": ("events", "The history of every change, and its proof."),
    "users": ("users", "Who may come in."),
    "tokens": ("tokens", "How programs come in: make, list, rotate, revoke."),
    "roles": ("users", "What users may: grant, revoke, list."),
    "demo": ("run", "Watch a model live through a year of real flights."),
    "doctor": ("again", "Check every digest, the history and the installation."),
    "completion": ("completion", "Print the completion script for your shell."),
}
"""Each command's module and one line of help, known without importing the module."""

_EPILOG = """\b
Examples:
  modelkeep init flights.csv     write modelkeep.yaml for a data file
  modelkeep plan                 what would run, and why
  modelkeep apply                train, prove, register and roll out
  modelkeep up                   serve it, watch it, renew it

\b
Exit codes: 0 done, 1 refused (gates), 2 bad input, 3 not found, 4 unavailable, 5 damaged.
"""


class Commands(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of a model's life."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module that holds the command."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"modelkeep.cli.{COMMANDS[cmd_name][0]}")
        found: click.Command = getattr(module, f"{cmd_name}_" if iskeyword(cmd_name) else cmd_name)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Name the nearest command when there is no such one."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from modelkeep.spec.names import unknown

            ctx.fail(unknown(args[0], COMMANDS, "a command"))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        """Run a command line and end the process with the right code."""
        words = list(sys.argv[1:] if args is None else args)
        extra["standalone_mode"] = False
        extra.setdefault("prog_name", "modelkeep")
        try:
            code = super().main(words, *rest, **extra)
        except (ModelkeepError, click.ClickException) as error:
            code = exits.report(error, as_json="--json" in words)
        except (KeyboardInterrupt, click.Abort):
            code = exits.interrupted()
        except BrokenPipeError:
            code = exits.reader_gone()
        except Exception as error:
            code = exits.unexpected(error, as_json="--json" in words)
        sys.exit(code if isinstance(code, int) else 0)


@click.group(
    cls=Commands,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="modelkeep")
def cli() -> None:
    """Keep models good for life: declare what must stay true, apply it, and let it be kept."""


def main() -> NoReturn:
    """The entry point."""
    _settle()
    cli.main()
    raise AssertionError("main always exits")  # pragma: no cover


def _settle() -> None:
    """Say to libraries what they read once, when they are imported. Processes started from here inherit it.

    What the user has set stays.
    """
    # Threads of OpenMP wait for each other spinning 300,000 rounds before they sleep: where another process has a
    # core they need, a fit of one second takes ten. With a thousand rounds it takes two, and an idle machine loses
    # a tenth. (libgomp manual, GOMP_SPINCOUNT)
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # Arrow's own allocator keeps what is freed: 80 MB of a training's peak, for no time gained.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")


if __name__ == "__main__":
    main()
