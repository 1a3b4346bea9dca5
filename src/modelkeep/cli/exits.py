"""Errors as words and exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any

import click

from modelkeep.core import errors

OK = 0
REFUSED = 1
INVALID = 2
NOT_FOUND = 3
UNAVAILABLE = 4
DAMAGED = 5
UNEXPECTED = 70
INTERRUPTED = 130

_CODES: tuple[tuple[type[errors.ModelkeepError], str, int], ...] = (
    (errors.Invalid, "invalid", INVALID),
    (errors.UserCodeFailed, "user_code_failed", INVALID),
    (errors.NotFound, "not_found", NOT_FOUND),
    (errors.Conflict, "conflict", REFUSED),
    (errors.Refused, "refused", REFUSED),
    (errors.Damaged, "damaged", DAMAGED),
    (errors.MissingExtra, "missing_extra", UNAVAILABLE),
    (errors.Unavailable, "unavailable", UNAVAILABLE),
    (errors.ModelkeepError, "error", REFUSED),
)


def report(error: errors.ModelkeepError | click.ClickException, *, as_json: bool) -> int:
    """Print an error, as JSON on standard output or as words on standard error.

    Returns:
        The exit code.
    """
    if isinstance(error, click.ClickException):
        return _usage(error, as_json=as_json)
    kind, code = next((kind, code) for cls, kind, code in _CODES if isinstance(error, cls))
    if as_json:
        print_error(kind, error.message, hint=error.hint, problems=_problems(error))
        return code
    lines = [str(problem) for problem in error.problems] if isinstance(error, errors.Invalid) else [error.message]
    click.echo(click.style("error: ", fg="red", bold=True) + lines[0], err=True)
    for line in lines[1:]:
        click.echo(click.style("error: ", fg="red", bold=True) + line, err=True)
    if error.hint:
        click.echo(click.style(" hint: ", fg="cyan") + error.hint, err=True)
    return code


def _usage(error: click.ClickException, *, as_json: bool) -> int:
    code = INVALID if error.exit_code else OK
    if as_json:
        print_error("usage", error.format_message())
    else:
        error.show()
    return code


def _problems(error: errors.ModelkeepError) -> list[dict[str, Any]]:
    if not isinstance(error, errors.Invalid):
        return []
    return [
        {"path": p.path, "message": p.message, "file": p.file, "line": p.line, "column": p.column}
        for p in error.problems
    ]


def print_error(kind: str, message: str, *, hint: str = "", problems: list[dict[str, Any]] | None = None) -> None:
    """``{"error": {...}}`` on standard output."""
    from modelkeep.cli.output import print_json

    found: dict[str, Any] = {"kind": kind, "message": message}
    if hint:
        found["hint"] = hint
    if problems:
        found["problems"] = problems
    print_json({"error": found})


def unexpected(error: Exception, *, as_json: bool) -> int:
    """An error nobody foresaw: the traceback is what whoever mends it needs."""
    traceback.print_exception(error)
    message = f"{type(error).__name__}: {error}"
    if as_json:
        print_error("internal", message, hint="this is a fault of modelkeep; please report it with the traceback")
    else:
        click.echo(
            click.style("this is a fault of modelkeep", bold=True) + "; please report it with the above", err=True
        )
    return UNEXPECTED


def interrupted() -> int:
    """Ctrl-C."""
    click.echo("\nstopped; what was finished is kept, run it again to go on", err=True)
    return INTERRUPTED


def reader_gone() -> int:
    """The reader of a pipe, as ``head``, has left: nothing more to say, and no error when Python flushes."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return OK
