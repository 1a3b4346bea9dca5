"""The JSON Schema accepts what loads and refuses what does not."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from spec_strategies import DECLARATIONS
from test_spec_loading import BLUEPRINT

from modelkeep.core.errors import Problem
from modelkeep.spec.declaration import Declaration
from modelkeep.spec.loading import to_builtins
from modelkeep.spec.nodes import from_yaml
from modelkeep.spec.schema import json_schema

INFINITY = float("inf")
SCHEMA = json_schema()
TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
CHECKED = {
    "$ref",
    "type",
    "anyOf",
    "enum",
    "properties",
    "required",
    "additionalProperties",
    "items",
    "prefixItems",
}
CHECKED |= {"minItems", "maxItems", "minProperties", "maxProperties", "minimum", "maximum", "pattern"}
CHECKED |= {"exclusiveMinimum", "exclusiveMaximum", "prefixItems"}
ANNOTATIONS = {"$schema", "$defs", "title", "description", "default", "examples"}


def valid(schema: dict[str, Any] | bool, value: Any) -> bool:
    """JSON Schema 2020-12, as far as this schema uses it; an unknown keyword is an error of the test."""
    if isinstance(schema, bool):
        return schema
    assert set(schema) <= CHECKED | ANNOTATIONS, set(schema) - CHECKED - ANNOTATIONS
    if "$ref" in schema:
        name = schema["$ref"].removeprefix("#/$defs/")
        return valid(SCHEMA["$defs"][name], value)
    if "anyOf" in schema and not any(valid(option, value) for option in schema["anyOf"]):
        return False
    if "enum" in schema and not any(value == item and type(value) is type(item) for item in schema["enum"]):
        return False
    return is_type(schema.get("type"), value) and inside(schema, value)


def is_type(name: str | None, value: Any) -> bool:
    if name is None:
        return True
    if name == "integer":
        return isinstance(value, int) and not isinstance(value, bool)
    if name == "number":
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, TYPES[name])


def inside(schema: dict[str, Any], value: Any) -> bool:
    if isinstance(value, dict):
        if not schema.get("minProperties", 0) <= len(value) <= schema.get("maxProperties", len(value)):
            return False
        known = schema.get("properties", {})
        rest = schema.get("additionalProperties", True)
        return set(schema.get("required", ())) <= set(value) and all(
            valid(known.get(key, rest), item) for key, item in value.items()
        )
    if isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            return False
        first = schema.get("prefixItems", [])
        rules = [*first, *[schema.get("items", True)] * (len(value) - len(first))]
        return all(valid(rule, item) for rule, item in zip(rules, value, strict=False))
    if isinstance(value, str):
        return re.search(schema.get("pattern", ""), value) is not None
    if isinstance(value, int | float) and not isinstance(value, bool):
        low, high = schema.get("minimum", -INFINITY), schema.get("maximum", INFINITY)
        above, below = schema.get("exclusiveMinimum", -INFINITY), schema.get("exclusiveMaximum", INFINITY)
        return low <= value <= high and (above < value < below or abs(value) == INFINITY)
    return True


def written(text: str) -> Any:
    problems: list[Problem] = []
    node = from_yaml(text, "", problems)
    assert node is not None
    assert not problems
    return node.plain()


def test_it_accepts_the_blueprint() -> None:
    assert valid(SCHEMA, written(BLUEPRINT))


@settings(deadline=None, max_examples=100)
@given(DECLARATIONS)
def test_it_accepts_every_declaration(declaration: Declaration) -> None:
    assert valid(SCHEMA, to_builtins(declaration))


@pytest.mark.parametrize(
    ("change", "to"),
    [
        ("hist_gradient_boosting", "random_forrest"),
        ("target:", "targt:"),
        ("drop_duplicates", "drop_duplicate"),
        ("method: onehot", "method: one_hot"),
        ("{test: 0.2, by: key}", "{test: 1.2, by: key}"),
        ("window: 10m", "window: soon"),
        ("metric: roc_auc", "metric: roc"),
        ("trials: 30", "trials: many"),
        ("drop_missing: [late]", "drop_missing: [late]\n      columns: [late]"),
        ("model: flights\n", ""),
    ],
)
def test_it_refuses_what_does_not_load(change: str, to: str) -> None:
    assert change in BLUEPRINT
    assert not valid(SCHEMA, written(BLUEPRINT.replace(change, to)))


def test_every_definition_is_described_and_referred_to() -> None:
    text = str(SCHEMA)
    for name, definition in SCHEMA["$defs"].items():
        assert f"#/$defs/{name}'" in text, name
        if name not in ("CleanStep", "FeatureStep"):
            assert definition["description"], name
