"""The short forms of a step, both ways: ``drop_missing: [late]`` is ``{step: drop_missing, columns: [late]}``.

In YAML a step is a bare name or a map with one entry. What stands under the name is the step's fields, or the
value of its main field alone.
"""

from __future__ import annotations

from functools import cache
from typing import Any, get_args

from msgspec import NODEFAULT, Struct
from msgspec.structs import FieldInfo, fields

from modelkeep.spec.nodes import Entry, Node
from modelkeep.spec.steps import Cast, CleanStep, FeatureStep, Filter, Function, Rename

_MAIN = {Filter: "where", Function: "function"}
_MAPS = (Cast, Rename)
STEPS: dict[str, type[Struct]] = {
    str(cls.__struct_config__.tag): cls for cls in (*get_args(CleanStep), *get_args(FeatureStep))
}


@cache
def fields_of(cls: type[Struct]) -> tuple[FieldInfo, ...]:
    """The fields of a struct, looked up once."""
    return fields(cls)


def default_of(field: FieldInfo) -> Any:
    """The field's default, or ``msgspec.NODEFAULT`` for one that must be given."""
    if field.default_factory is not NODEFAULT:
        return field.default_factory()
    return field.default


def main_field(cls: type[Struct]) -> str:
    """The field that may be written without its name."""
    return _MAIN.get(cls, "columns")


def expand(cls: type[Struct], body: Node | None) -> Node:
    """The step's fields as a map, whatever form was written."""
    if body is None or body.value is None:
        at = (body.line, body.column) if body else (0, 0)
        return Node({}, *at)
    main = main_field(cls)
    value = body
    if isinstance(body.value, dict):
        if cls not in _MAPS or _long_form(body.value):
            return body
    elif isinstance(body.value, str) and main == "columns" and cls not in _MAPS and _list_only(cls):
        value = Node([body], body.line, body.column)
    return Node({main: Entry(value, body.line, body.column)}, body.line, body.column)


def contract(cls: type[Struct], body: dict[str, Any]) -> Any:
    """The shortest form that ``expand`` takes back: a bare name, or a map with one entry."""
    name = str(cls.__struct_config__.tag)
    main = main_field(cls)
    if not body:
        return name
    if set(body) != {main}:
        return {name: body}
    value = body[main]
    # A text where only a list is right stays under its name, so that it is found out.
    short = cls in _MAPS or isinstance(value, list) or (isinstance(value, str) and not _list_only(cls))
    return {name: value if short else body}


def _long_form(value: dict[str, Entry]) -> bool:
    return set(value) == {"columns"} and isinstance(value["columns"].node.value, dict)


def _list_only(cls: type[Struct]) -> bool:
    # ``drop_missing: late`` can only mean one column; elsewhere a bare text may name a group of columns.
    return all(field.type == tuple[str, ...] for field in fields_of(cls) if field.name == "columns")
