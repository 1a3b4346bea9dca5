"""Values that know where they were written: YAML, or plain Python values, as one kind of tree.

YAML is read event by event, never through a loader: nothing is constructed, depth and size are bounded before
they can hurt, and plain scalars follow the core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema):
``no`` is text, ``1e-3`` is a number, ``10:30`` is text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from modelkeep.core.errors import Invalid, Problem

MAX_NODES = 100_000
MAX_DEPTH = 60

_PARSER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INT = re.compile(r"[-+]?[0-9]{1,300}")
_HUGE = 10**300
_SURROGATE = re.compile("[\ud800-\udfff]")
_RADIX = re.compile(r"0o[0-7]{1,100}|0x[0-9a-fA-F]{1,100}")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_INFINITY = re.compile(r"([-+]?)\.(?:inf|Inf|INF)")
_WORDS = {"": None, "~": None, "null": None, "Null": None, "NULL": None} | {
    word: value for value in (True, False) for word in (str(value).lower(), str(value), str(value).upper())
}
_TEXT_TAGS = ("tag:yaml.org,2002:str", "!")
_VALUE_TAGS = tuple(f"tag:yaml.org,2002:{name}" for name in ("int", "float", "bool", "null"))


class Node:
    """A scalar, a list of nodes, or a map of entries.

    Attributes:
        value: str, int, float, bool, None, ``list[Node]`` or ``dict[str, Entry]``.
        line, column: 1-based; 0 when not from a file.
        size: How many nodes it stands for once aliases are followed.
        depth: How many collections are inside each other here.
    """

    __slots__ = ("column", "depth", "line", "size", "value")

    def __init__(self, value: Any, line: int = 0, column: int = 0) -> None:
        self.value = value
        self.line = line
        self.column = column
        self.size = 1
        self.depth = 0

    def plain(self) -> Any:
        """The value in JSON types."""
        if isinstance(self.value, dict):
            return {key: entry.node.plain() for key, entry in self.value.items()}
        if isinstance(self.value, list):
            return [item.plain() for item in self.value]
        return self.value


class Entry(NamedTuple):
    """One entry of a map, with where its key stands."""

    node: Node
    line: int
    column: int


def resolve(text: str) -> str | int | float | bool | None:
    """What a plain scalar means."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    if _RADIX.fullmatch(text):
        return int(text, 0)
    if match := _INFINITY.fullmatch(text):
        return float(f"{match[1]}inf")
    return float("nan") if text in (".nan", ".NaN", ".NAN") else text


def child(path: str, key: str | int) -> str:
    """The path of what is inside."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    return f"{path}.{key}" if path else key


def from_value(value: Any, path: str = "", depth: int = 0) -> Node:
    """A tree of a plain Python value.

    Raises:
        Invalid: Something in it that YAML could not say.
    """
    if depth > MAX_DEPTH:
        raise Invalid(f"nested more than {MAX_DEPTH} deep", path=path)
    if value is None or isinstance(value, str | int | float):
        if isinstance(value, int) and abs(value) >= _HUGE:
            raise Invalid("a number with more than 300 digits", path=path)
        if isinstance(value, str) and _SURROGATE.search(value):
            raise Invalid("text with a lone surrogate, which no file can hold", path=path)
        return Node(value)
    if isinstance(value, Mapping):
        entries = {
            str(key): Entry(from_value(item, child(path, str(key)), depth + 1), 0, 0)
            for key, item in value.items()
        }
        return Node(entries)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return Node([from_value(item, child(path, index), depth + 1) for index, item in enumerate(value)])
    raise Invalid(
        f"a {type(value).__name__} cannot be written down; expected text, a number, true, false, a list or a map",
        path=path,
    )


def from_yaml(text: str, file: str, problems: list[Problem]) -> Node | None:
    """Read one YAML document; duplicate keys and the like are added to ``problems``.

    Returns:
        The tree, or None for a document with nothing in it.

    Raises:
        Invalid: The text is not YAML, or so deep or so large that it can only be an attack.
    """
    builder = _Builder(file, problems)
    try:
        for event in yaml.parse(text, Loader=_PARSER):
            builder.feed(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = ": ".join(part for part in (error.context, error.problem) if part)
        line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        raise Invalid([*problems, Problem("", f"not YAML: {what}", file, line, column)]) from None
    except yaml.YAMLError as error:
        raise Invalid([*problems, Problem("", f"not YAML: {str(error).splitlines()[0]}", file)]) from None
    return builder.root


class _Frame:
    """A collection being read; ``keys`` is None for a list."""

    __slots__ = ("anchor", "key", "merged", "node", "path")

    def __init__(self, node: Node, path: str, anchor: str | None) -> None:
        self.node = node
        self.path = path
        self.anchor = anchor
        self.key: tuple[str, int, int] | None = None
        self.merged: list[Node] = []


class _Builder:
    def __init__(self, file: str, problems: list[Problem]) -> None:
        self.file = file
        self.problems = problems
        self.root: Node | None = None
        self.stack: list[_Frame] = []
        self.anchors: dict[str, Node] = {}
        self.documents = 0

    def feed(self, event: Any) -> None:
        if isinstance(event, yaml.ScalarEvent):
            self.scalar(event)
        elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            self.open(event)
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            self.close()
        elif isinstance(event, yaml.AliasEvent):
            self.alias(event)
        elif isinstance(event, yaml.DocumentStartEvent):
            self.documents += 1
            if self.documents > 1:
                self.refuse(event, "a second document begins here; expected one declaration in a file")

    def refuse(self, event: Any, message: str) -> None:
        raise Invalid([*self.problems, self.problem(event, message)])

    def problem(self, event: Any, message: str, path: str = "") -> Problem:
        mark = event.start_mark
        return Problem(path, message, self.file, mark.line + 1, mark.column + 1)

    def here(self) -> str:
        if not self.stack:
            return ""
        top = self.stack[-1]
        if isinstance(top.node.value, list):
            return child(top.path, len(top.node.value))
        return child(top.path, top.key[0]) if top.key else top.path

    def scalar(self, event: Any) -> None:
        value: Any = event.value
        if event.tag is not None and event.tag not in (*_TEXT_TAGS, *_VALUE_TAGS):
            self.problems.append(self.problem(event, f"the tag {event.tag} is not allowed here", self.here()))
        if event.tag not in _TEXT_TAGS and event.style in (None, "") and not self.wants_key():
            value = resolve(value)
        node = Node(value, event.start_mark.line + 1, event.start_mark.column + 1)
        self.keep(event.anchor, node)
        if self.wants_key():
            self.key(event)
        else:
            self.add(node)

    def wants_key(self) -> bool:
        return bool(self.stack) and isinstance(self.stack[-1].node.value, dict) and self.stack[-1].key is None

    def key(self, event: Any) -> None:
        top = self.stack[-1]
        name = event.value
        if name in top.node.value:
            first = top.node.value[name]
            message = f"{name!r} stands here twice; first in line {first.line}"
            self.problems.append(self.problem(event, message, child(top.path, name)))
        # A merge key must not look like a key named "<<".
        name = "<<" if name == "<<" and event.implicit[0] else name
        top.key = (name, event.start_mark.line + 1, event.start_mark.column + 1)

    def open(self, event: Any) -> None:
        if self.wants_key():
            self.refuse(event, "a key must be text, found a list or a map")
        if len(self.stack) >= MAX_DEPTH:
            self.refuse(event, f"nested more than {MAX_DEPTH} deep")
        if event.tag not in (None, "!", "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
            self.problems.append(self.problem(event, f"the tag {event.tag} is not allowed here", self.here()))
        value: Any = {} if isinstance(event, yaml.MappingStartEvent) else []
        node = Node(value, event.start_mark.line + 1, event.start_mark.column + 1)
        self.stack.append(_Frame(node, self.here(), event.anchor))

    def close(self) -> None:
        frame = self.stack.pop()
        if isinstance(frame.node.value, dict):
            for source in frame.merged:
                for name, entry in source.value.items():
                    frame.node.value.setdefault(name, entry)
        self.keep(frame.anchor, frame.node)
        self.add(frame.node)

    def alias(self, event: Any) -> None:
        node = self.anchors.get(event.anchor)
        if node is None:
            self.refuse(event, f"*{event.anchor} refers to nothing above, or to what it is part of")
            return
        if self.wants_key():
            self.refuse(event, "a key must be written out, found an alias")
        self.add(node)

    def keep(self, anchor: str | None, node: Node) -> None:
        if anchor:
            self.anchors[anchor] = node

    def add(self, node: Node) -> None:
        if not self.stack:
            self.root = node if node.value is not None else None
            return
        top = self.stack[-1]
        top.node.size += node.size
        top.node.depth = max(top.node.depth, node.depth + 1)
        if top.node.size > MAX_NODES or top.node.depth > MAX_DEPTH:
            message = f"more than {MAX_NODES} values or {MAX_DEPTH} levels once aliases are followed"
            raise Invalid([*self.problems, Problem("", message, self.file, top.node.line, top.node.column)])
        if isinstance(top.node.value, list):
            top.node.value.append(node)
            return
        assert top.key is not None
        name, line, column = top.key
        top.key = None
        if name == "<<" and self.merge(top, node):
            return
        top.node.value.setdefault(name, Entry(node, line, column))

    def merge(self, frame: _Frame, node: Node) -> bool:
        """Take ``<<: *defaults`` (https://yaml.org/type/merge.html); whether it is one."""
        sources = node.value if isinstance(node.value, list) else [node]
        if not all(isinstance(source.value, dict) for source in sources):
            return False
        frame.merged.extend(sources)
        return True
