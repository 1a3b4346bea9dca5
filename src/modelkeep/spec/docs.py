"""The structs' docstrings as data: what the JSON Schema and the reference pages say about each field."""

from __future__ import annotations

import inspect
import re

from msgspec import Struct

_FIELD = re.compile(r"^ {4}(\w+(?:, \w+)*): (.*)$")


def summary(cls: type[Struct]) -> str:
    """The docstring without its list of attributes; inherited when the class adds no more to it."""
    text = inspect.cleandoc(cls.__doc__ or "")
    return text.partition("\nAttributes:")[0].strip()


def field_texts(cls: type[Struct]) -> dict[str, str]:
    """What the docstring says of each field, by name."""
    texts: dict[str, str] = {}
    names: list[str] = []
    for base in reversed(cls.__mro__):
        if not issubclass(base, Struct):
            continue
        for line in inspect.cleandoc(base.__doc__ or "").partition("Attributes:\n")[2].splitlines():
            if match := _FIELD.match(line):
                names = match[1].split(", ")
                texts.update(dict.fromkeys(names, match[2]))
            elif line.strip():
                texts.update({name: f"{texts[name]} {line.strip()}" for name in names})
    return texts
