"""What commands share: options, and opening the home of a declaration."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from modelkeep.core.errors import Invalid

if TYPE_CHECKING:
    from modelkeep.lifecycle.keep import Keep
    from modelkeep.spec.declaration import Declaration

F = TypeVar("F", bound=Callable[..., Any])
DEFAULT_FILE = "modelkeep.yaml"


def json_option(command: F) -> F:
    """``--json``, as ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(command)


def file_option(command: F) -> F:
    """``--file``, as ``file``: the declaration."""
    return click.option(
        "--file",
        "-f",
        type=click.Path(path_type=Path),
        default=Path(DEFAULT_FILE),
        show_default=True,
        help="The declaration.",
    )(command)


def example(*lines: str) -> str:
    """An epilog with examples, kept as written."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def declared(file: Path) -> Declaration:
    """The declaration in a file."""
    from modelkeep.spec.loading import load

    return load(file)


@contextlib.contextmanager
def opened(file: Path, declaration: Declaration | None = None) -> Iterator[Keep]:
    """The home that belongs to a declaration's folder.

    Args:
        declaration: When loaded already; its ``blobs`` is used.
    """
    from modelkeep.app.wiring import open_keep

    where = file if file.is_dir() or file.parent.is_dir() else Path()
    if declaration is None and file.is_file():
        # Questions about what is kept must work beside a declaration that is being edited.
        with contextlib.suppress(Invalid):
            declaration = declared(file)
    keep = open_keep(where, blobs=declaration.blobs if declaration else "")
    try:
        yield keep
    finally:
        keep.close()


def split_ref(text: str) -> tuple[str, str | None]:
    """``flights@7`` as ("flights", "7"); without ``@`` the second is None.

    Raises:
        Invalid: Nothing before or after the ``@``.
    """
    model, at, ref = text.partition("@")
    if not model or (at and not ref):
        raise Invalid(f"{text!r} names no version; expected MODEL, MODEL@NUMBER or MODEL@ALIAS")
    return model, ref or None


def model_of(given: str | None, file: Path) -> str:
    """The model named, or the one declared in the file."""
    return given if given else declared(file).model
