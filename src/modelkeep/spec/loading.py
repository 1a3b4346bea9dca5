"""Reading, checking and writing declarations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from modelkeep.core.errors import Invalid, NotFound, Problem, Unavailable
from modelkeep.spec.check_data import check_data, check_features
from modelkeep.spec.check_model import check_model
from modelkeep.spec.convert import Reader, describe, unstruct
from modelkeep.spec.declaration import Declaration
from modelkeep.spec.nodes import Node, from_value, from_yaml, resolve
from modelkeep.spec.report import Report

DEFAULT_NAME = "modelkeep.yaml"
_MAX_BYTES = 1_000_000
_SHORT = 72


def load(path: Path) -> Declaration:
    """Read a declaration from a YAML file, or from ``modelkeep.yaml`` in a folder.

    Raises:
        NotFound: There is no such file.
        Unavailable: The file cannot be read.
        Invalid: Every fault of the file, each with line, column, path, and what was expected.
    """
    path = path / DEFAULT_NAME if path.is_dir() else path
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise NotFound(
            f"there is no declaration {path}",
            hint="write one with 'modelkeep init DATAFILE', or name another with --file",
        ) from None
    except OSError as error:
        raise Unavailable(f"cannot read {path}: {error.strerror}") from error
    if len(content) > _MAX_BYTES:
        raise Invalid([Problem("", f"{len(content)} bytes; expected at most {_MAX_BYTES}", str(path))])
    return load_text(_decode(content, str(path)), str(path))


def _decode(content: bytes, file: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start]
        line, column = before.count(b"\n") + 1, error.start - (before.rfind(b"\n") + 1) + 1
        message = f"not UTF-8: byte 0x{content[error.start]:02x}; save the file with the encoding UTF-8"
        raise Invalid([Problem("", message, file, line, column)]) from None


def load_text(text: str, file: str = "") -> Declaration:
    """Read a declaration from YAML.

    Args:
        text: The YAML.
        file: Where it came from, for errors.

    Raises:
        Invalid: Every fault found.
    """
    problems: list[Problem] = []
    node = from_yaml(text, file, problems)
    if node is None:
        message = "empty; expected a declaration with at least model and data"
        raise Invalid([*problems, Problem("", message, file)], hint="write one with 'modelkeep init DATAFILE'")
    return _build(node, file, problems)


def from_builtins(data: dict[str, Any]) -> Declaration:
    """Make and check a declaration of JSON types, in the same forms as the YAML.

    Raises:
        Invalid: Every fault found.
    """
    return _build(from_value(data), "", [])


def to_builtins(declaration: Declaration) -> dict[str, Any]:
    """The declaration in JSON types: the forms of the YAML, defaults omitted. What digests are made of."""
    found: dict[str, Any] = unstruct(declaration)
    return found


def check(declaration: Declaration) -> None:
    """The same checks for a declaration made in Python.

    Raises:
        Invalid: Every fault found.
    """
    _build(from_value(to_builtins(declaration)), "", [])


def _build(node: Node, file: str, problems: list[Problem]) -> Declaration:
    if not isinstance(node.value, dict):
        message = f"found {describe(node)}, expected a declaration: a map with at least model and data"
        raise Invalid([*problems, Problem("", message, file, node.line, node.column)])
    reader = Reader(file)
    declaration: Declaration = reader.read(Declaration, node)
    report = Report(file, reader.places, reader.bad)
    check_data(declaration, report)
    check_features(declaration, report)
    check_model(declaration, report)
    found = [*problems, *reader.problems, *report.problems]
    if found:
        raise Invalid(sorted(found, key=lambda problem: (problem.line, problem.column)))
    return declaration


class _Writer(yaml.SafeDumper):
    """Quotes what either YAML 1.1 or the core schema of YAML 1.2 would not read as text."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        """The tag a reader would give a plain scalar."""
        tag: str = super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]
        if (
            kind is yaml.ScalarNode
            and implicit[0]
            and tag.endswith(":str")
            and not isinstance(resolve(value), str)
        ):
            return "tag:yaml.org,2002:null"
        return tag

    def represent_str(self, data: str) -> Any:
        """Escape line breaks that YAML 1.1 readers would turn into others."""
        style = '"' if any(mark in data for mark in "\x85\u2028\u2029\ufeff") else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> Any:
        """Short lists of scalars on one line."""
        if sum(len(str(item)) + 2 for item in sequence) > _SHORT:
            flow_style = False
        return super().represent_sequence(tag, sequence, flow_style)

    def ignore_aliases(self, data: Any) -> bool:
        """Write equal lists out each time."""
        return True


_Writer.add_representer(str, _Writer.represent_str)


def dump(declaration: Declaration) -> str:
    """The declaration as YAML that loads to an equal object."""
    return yaml.dump(
        to_builtins(declaration),
        Dumper=_Writer,
        default_flow_style=None,
        sort_keys=False,
        allow_unicode=True,
        width=100_000,
    )
