"""From a tree of nodes to structs, and back. Collects every fault instead of stopping at the first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

from msgspec import NODEFAULT, Struct, inspect

from modelkeep.core.errors import Problem
from modelkeep.spec.names import nearest, unknown
from modelkeep.spec.nodes import Entry, Node, child
from modelkeep.spec.shorthand import STEPS, contract, default_of, expand, fields_of, main_field

_FAILED: Any = object()


class Reader:
    """Builds a struct of a tree.

    Attributes:
        problems: Every fault found.
        places: Line and column of every path read.
        bad: Paths whose value is missing or wrong, so that what depends on them need not be checked.
    """

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []
        self.places: dict[str, tuple[int, int]] = {}
        self.bad: set[str] = set()

    def read(self, cls: type[Struct], node: Node) -> Any:
        """The struct, with defaults or empty values where something was wrong."""
        kind = inspect.type_info(cls)
        assert isinstance(kind, inspect.StructType)
        return self.struct(kind, node, "")

    def wrong(self, path: str, message: str, line: int, column: int) -> Any:
        self.bad.add(path)
        self.problems.append(Problem(path, message, self.file, line, column))
        return _FAILED

    def mismatch(self, kind: inspect.Type, node: Node, path: str) -> Any:
        message = f"found {describe(node)}, expected {expectation(kind)}"
        return self.wrong(path, message, node.line, node.column)

    def value(self, kind: inspect.Type, node: Node, path: str) -> Any:
        """One value of a type; ``_FAILED`` after adding a problem."""
        if node.line:
            self.places[path] = (node.line, node.column)
        match kind:
            case inspect.AnyType():
                return node.plain()
            case inspect.UnionType():
                return self.union(kind, node, path)
            case inspect.StructType():
                if not isinstance(node.value, dict):
                    return self.mismatch(kind, node, path)
                return self.struct(kind, node, path)
            case inspect.VarTupleType() | inspect.TupleType():
                return self.sequence(kind, node, path)
            case inspect.DictType():
                return self.mapping(kind, node, path)
            case _:
                return self.scalar(kind, node, path)

    def scalar(self, kind: inspect.Type, node: Node, path: str) -> Any:
        value = node.value
        if not fits(kind, node):
            return self.mismatch(kind, node, path)
        if isinstance(kind, inspect.LiteralType):
            if value not in kind.values:
                message = unknown(value, [str(item) for item in kind.values], "possible here")
                return self.wrong(path, message, node.line, node.column)
            return value
        if isinstance(kind, inspect.FloatType):
            try:
                return float(value)
            except OverflowError:
                return self.wrong(path, "the number is too large", node.line, node.column)
        return value

    def sequence(self, kind: inspect.VarTupleType | inspect.TupleType, node: Node, path: str) -> Any:
        if not isinstance(node.value, list):
            return self.mismatch(kind, node, path)
        if isinstance(kind, inspect.TupleType):
            kinds: Sequence[inspect.Type] = kind.item_types
            if len(kinds) != len(node.value):
                message = f"found a list of {len(node.value)}, expected {len(kinds)}"
                return self.wrong(path, message, node.line, node.column)
        else:
            kinds = (kind.item_type,) * len(node.value)
        items = [
            self.value(item_kind, item, child(path, index))
            for index, (item_kind, item) in enumerate(zip(kinds, node.value, strict=True))
        ]
        return tuple(empty(k) if item is _FAILED else item for k, item in zip(kinds, items, strict=True))

    def mapping(self, kind: inspect.DictType, node: Node, path: str) -> Any:
        if not isinstance(node.value, dict):
            return self.mismatch(kind, node, path)
        found: dict[str, Any] = {}
        for key, entry in node.value.items():
            value = self.value(kind.value_type, entry.node, child(path, key))
            if value is not _FAILED:
                found[key] = value
        return found

    def union(self, kind: inspect.UnionType, node: Node, path: str) -> Any:
        steps = [item for item in kind.types if isinstance(item, inspect.StructType) and item.tag_field == "step"]
        if steps:
            return self.step(steps, node, path)
        for option in kind.types:
            if fits(option, node):
                return self.value(option, node, path)
        return self.mismatch(kind, node, path)

    def step(self, kinds: list[inspect.StructType], node: Node, path: str) -> Any:
        by_name = {str(kind.tag): kind for kind in kinds}
        if isinstance(node.value, str):
            name, body, at = node.value, None, node
        elif isinstance(node.value, dict) and len(node.value) == 1:
            ((name, entry),) = node.value.items()
            body, at = entry.node, Node(None, entry.line, entry.column)
        elif isinstance(node.value, dict) and node.value:
            found = ", ".join(node.value)
            message = f"found a map with {len(node.value)} entries ({found}), expected one step"
            if next(iter(node.value)) in by_name:
                message += "; indent the step's own fields further"
            return self.wrong(path, message, node.line, node.column)
        else:
            message = f"found {describe(node)}, expected a step: one of {', '.join(by_name)}"
            return self.wrong(path, message, node.line, node.column)
        if name not in by_name:
            return self.wrong(path, self.unknown_step(name, by_name), at.line, at.column)
        kind = by_name[name]
        self.places[child(path, name)] = (at.line, at.column)
        if body is not None and not isinstance(body.value, dict | list | str | None):
            field = next(item for item in kind.fields if item.name == main_field(kind.cls))
            return self.mismatch(field.type, body, child(path, name))
        return self.struct(kind, expand(kind.cls, body), child(path, name))

    def unknown_step(self, name: str, known: dict[str, inspect.StructType]) -> str:
        if name in STEPS:
            other = "features" if "impute" not in known else "data.clean"
            return f"{name!r} is a step of {other}; expected one of {', '.join(known)}"
        return unknown(name, known, "a step")

    def struct(self, kind: inspect.StructType, node: Node, path: str) -> Any:
        entries = cast("dict[str, Entry]", node.value)
        known = {field.name: field for field in kind.fields}
        meant: set[str] = set()
        for key, entry in entries.items():
            if key not in known:
                near = nearest(key, [name for name in known if name not in entries])
                meant.add(near or "")
                message = unknown(key, [near] if near else known, "a known key")
                self.wrong(child(path, key), message, entry.line, entry.column)
        values: dict[str, Any] = {}
        for name, field in known.items():
            where = child(path, name)
            if name in entries:
                value = self.value(field.type, entries[name].node, where)
                if value is _FAILED:
                    value = empty(field.type) if field.required else _FAILED
            elif not field.required:
                value = _FAILED
                if name in meant:
                    self.bad.add(where)
            else:
                if name not in meant:
                    self.wrong(where, f"missing; expected {expectation(field.type)}", node.line, node.column)
                self.bad.add(where)
                value = empty(field.type)
            if value is not _FAILED:
                values[name] = value
        return kind.cls(**values)


def fits(kind: inspect.Type, node: Node) -> bool:
    """Whether a node has the outer form of a type."""
    value = node.value
    match kind:
        case inspect.AnyType():
            return True
        case inspect.NoneType():
            return value is None
        case inspect.StrType() | inspect.LiteralType():
            return isinstance(value, str)
        case inspect.BoolType():
            return isinstance(value, bool)
        case inspect.IntType():
            return isinstance(value, int) and not isinstance(value, bool)
        case inspect.FloatType():
            return _is_number(value)
        case inspect.VarTupleType() | inspect.TupleType():
            return isinstance(value, list)
        case inspect.StructType() | inspect.DictType():
            return isinstance(value, dict)
    return False


def _is_number(value: object) -> bool:
    # NaN compares false with every bound, so it would pass each check that looks for a fault.
    if isinstance(value, float):
        return not math.isnan(value)
    return isinstance(value, int) and not isinstance(value, bool)


def describe(node: Node) -> str:
    """What was found, in words."""
    value = node.value
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"the number {value!r}" if len(repr(value)) <= 40 else "a very long number"
    if isinstance(value, str):
        return f"the text {value if len(value) <= 60 else value[:57] + '...'!r}"
    return "a list" if isinstance(value, list) else "a map"


def expectation(kind: inspect.Type) -> str:
    """What a type takes, in words."""
    match kind:
        case inspect.UnionType():
            return " or ".join(expectation(item) for item in kind.types if not isinstance(item, inspect.NoneType))
        case inspect.StrType():
            return "text"
        case inspect.LiteralType():
            return "one of " + ", ".join(str(item) for item in kind.values)
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType():
            return "a whole number"
        case inspect.FloatType():
            return "a number"
        case inspect.VarTupleType() if isinstance(kind.item_type, inspect.StrType):
            return "a list of texts"
        case inspect.VarTupleType() | inspect.TupleType():
            return "a list"
        case inspect.StructType():
            return "a map with " + ", ".join(field.name for field in kind.fields)
        case inspect.DictType():
            return "a map"
    return "a value"


def empty(kind: inspect.Type) -> Any:
    """A stand-in where a required value was wrong, so that the rest can still be checked."""
    match kind:
        case inspect.UnionType():
            return empty(kind.types[0])
        case inspect.StrType():
            return ""
        case inspect.LiteralType():
            return kind.values[0]
        case inspect.IntType() | inspect.FloatType():
            return 0
        case inspect.BoolType():
            return False
        case inspect.VarTupleType():
            return ()
        case inspect.TupleType():
            return tuple(empty(item) for item in kind.item_types)
        case inspect.DictType():
            return {}
        case inspect.StructType():
            return kind.cls(**{field.name: empty(field.type) for field in kind.fields if field.required})
    return None


def unstruct(value: Any) -> Any:
    """JSON types of a struct, in the form YAML is written in: defaults omitted, steps in their short form."""
    if isinstance(value, Struct):
        body: dict[str, Any] = {}
        for field in fields_of(type(value)):
            item = getattr(value, field.name)
            default = default_of(field)
            if default is NODEFAULT or item != default or type(item) is not type(default):
                body[field.encode_name] = unstruct(item)
        return contract(type(value), body) if value.__struct_config__.tag_field == "step" else body
    if isinstance(value, dict):
        return {key: unstruct(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [unstruct(item) for item in value]
    return value
