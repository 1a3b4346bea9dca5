"""Writes the reference pages from the code itself: ``python -m modelkeep.cli.reference docs/reference``."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import click
import msgspec
from msgspec import NODEFAULT, Struct, inspect

from modelkeep.cli.main import cli
from modelkeep.spec import declaration as d
from modelkeep.spec import names
from modelkeep.spec.convert import expectation
from modelkeep.spec.docs import field_texts, summary
from modelkeep.spec.shorthand import default_of, fields_of
from modelkeep.spec.steps import CleanStep, FeatureStep

_SECTIONS: tuple[tuple[str, type[Struct]], ...] = (
    ("", d.Declaration),
    ("data", d.Data),
    ("data.source", d.Origin),
    ("data.split", d.Split),
    ("data.partition", d.Partition),
    ("data.checks", d.Checks),
    ("data.checks.columns.NAME", d.ColumnCheck),
    ("train", d.Train),
    ("train.tune", d.Tune),
    ("train.tune.space.NAME", d.Range),
    ("deploy", d.Deploy),
    ("deploy.replicas", d.Replicas),
    ("deploy.batch", d.MicroBatch),
    ("deploy.cache", d.Cache),
    ("monitor", d.Monitor),
    ("monitor.drift", d.Drift),
    ("monitor.log", d.Log),
    ("update", d.Update),
)
_MADE = "<!-- Made by `python -m modelkeep.cli.reference`; edit the code instead. -->\n"


def command_page() -> str:
    """Every command's help, from Click."""
    parts = ["# Commands\n", _MADE]
    for words, command, context in _commands(
        cli, click.Context(cli, info_name="modelkeep", **cli.context_settings), ("modelkeep",)
    ):
        parts.append(f"{'#' * min(len(words) + 1, 4)} `{' '.join(words)}`\n")
        parts.append(f"```text\n{command.get_help(context).strip()}\n```\n")
    return "\n".join(parts)


def _commands(
    command: click.Command, context: click.Context, words: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], click.Command, click.Context]]:
    context.max_content_width = 100
    context.terminal_width = 100
    yield words, command, context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            inner = click.Context(found, parent=context, info_name=name)
            yield from _commands(found, inner, (*words, name))


def declaration_page() -> str:
    """Every field, from the structs' docstrings, types and defaults."""
    parts = ["# The declaration\n", _MADE]
    for path, cls in _SECTIONS:
        parts += [f"## {f'`{path}`' if path else 'Top level'}\n", _markdown(summary(cls)) + "\n", _fields(cls)]
    for title, union, where in (
        ("Cleaning steps", CleanStep, "data.clean"),
        ("Feature steps", FeatureStep, "features"),
    ):
        parts.append(f"## {title}\n\nUnder `{where}`: a list of bare names, or of maps with one entry.\n")
        for cls in get_args(union):
            parts += [f"### `{cls.__struct_config__.tag}`\n", _markdown(summary(cls)) + "\n", _fields(cls)]
    for title, known in (
        ("Algorithms", names.ALGORITHMS),
        ("Classification metrics", names.CLASSIFICATION_METRICS),
        ("Regression metrics", names.REGRESSION_METRICS),
        ("Measured of a package and of live traffic", names.LATENCIES),
        ("Measured of live traffic only", ("error_rate",)),
    ):
        parts.append(f"## {title}\n\n{', '.join(f'`{name}`' for name in known)}\n")
    return "\n".join(parts)


def _fields(cls: type[Struct]) -> str:
    kinds = inspect.type_info(cls)
    assert isinstance(kinds, inspect.StructType)
    types = {field.name: field.type for field in kinds.fields}
    texts = field_texts(cls)
    lines = ["| field | takes | default | meaning |", "|---|---|---|---|"]
    for field in fields_of(cls):
        default = default_of(field)
        shown = "required" if default is NODEFAULT else _default(default)
        lines.append(
            f"| `{field.name}` | {_takes(types[field.name])} | {shown} | {_markdown(texts.get(field.name, ''))} |"
        )
    return "\n".join(lines) + "\n"


def _takes(kind: inspect.Type) -> str:
    if isinstance(kind, inspect.VarTupleType) and isinstance(kind.item_type, inspect.UnionType):
        return "a list of steps"
    if isinstance(kind, inspect.StructType):
        return "a map"
    if isinstance(kind, inspect.UnionType):
        return " or ".join(_takes(item) for item in kind.types if not isinstance(item, inspect.NoneType))
    return expectation(kind)


def _default(value: Any) -> str:
    if isinstance(value, Struct):
        return "its defaults"
    if value in ("", None, (), {}):
        return ""
    return f"`{msgspec.json.encode(value).decode()}`"


def _markdown(text: str) -> str:
    """reStructuredText as Markdown, safe inside a table; lines of one paragraph are joined."""
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
    return "\n\n".join(re.sub(r"``([^`]+)``", r"`\1`", part).replace("|", "\\|") for part in paragraphs)


def write(folder: Path) -> list[Path]:
    """Write the pages and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = {"cli.md": command_page(), "declaration.md": declaration_page()}
    for name, text in pages.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in pages]


if __name__ == "__main__":
    for page in write(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/reference")):
        print(page)
