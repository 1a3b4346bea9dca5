"""The JSON Schema of a declaration as it is written in YAML, short forms included.

Editors complete and check with it: ``# yaml-language-server: $schema=modelkeep.schema.json``.
Follows JSON Schema 2020-12 (https://json-schema.org/draft/2020-12/schema).
"""

from __future__ import annotations

from typing import Any, get_args

import msgspec
from msgspec import Struct

from modelkeep.spec import declaration as d
from modelkeep.spec.docs import field_texts, summary
from modelkeep.spec.names import (
    ALGORITHMS,
    CAST_TYPES,
    COLUMN_GROUPS,
    COLUMN_TYPES,
    DATE_PARTS,
    METRICS,
)
from modelkeep.spec.shorthand import STEPS, default_of, fields_of, main_field
from modelkeep.spec.steps import Cast, CleanStep, FeatureStep, Rename

_STRUCTS: tuple[type[Struct], ...] = (
    d.Declaration,
    d.Data,
    d.Origin,
    d.Split,
    d.Partition,
    d.Checks,
    d.ColumnCheck,
    d.Train,
    d.Tune,
    d.Range,
    d.Deploy,
    d.Replicas,
    d.MicroBatch,
    d.Cache,
    d.Monitor,
    d.Drift,
    d.Log,
    d.Update,
    d.Resources,
)
_DURATION = {"type": "string", "pattern": r"^\s*([0-9.]+\s*(ms|s|m|h|d|w)\s*)+$", "examples": ["10m", "1d"]}
_OPEN_NAME = {"type": "string", "pattern": r"[.:]"}
_HINTS: dict[tuple[type[Struct], str], dict[str, Any]] = {
    (d.Train, "algorithm"): {"anyOf": [{"enum": list(ALGORITHMS)}, _OPEN_NAME]},
    (d.Train, "families"): {"type": "array", "items": {"anyOf": [{"enum": list(ALGORITHMS[1:])}, _OPEN_NAME]}},
    (d.Train, "metric"): {"enum": ["", *METRICS]},
    (d.Train, "time_budget"): _DURATION,
    (d.Tune, "timeout"): {"anyOf": [_DURATION, {"type": "null"}]},
    (d.Monitor, "metric"): {"enum": ["", *METRICS]},
    (d.Monitor, "window"): _DURATION,
    (d.Update, "cooldown"): _DURATION,
    (d.Replicas, "quiet"): _DURATION,
    (d.MicroBatch, "wait"): _DURATION,
    (d.MicroBatch, "budget"): _DURATION,
    (d.Deploy, "in_range"): {"anyOf": [{"enum": ["numeric"]}, {"type": "array", "items": {"type": "string"}}]},
    (d.Split, "test"): {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    (d.Log, "sample"): {"type": "number", "minimum": 0, "maximum": 1},
    (d.Checks, "max_age"): {"anyOf": [_DURATION, {"type": "null"}]},
    (d.Checks, "quarantine"): {"type": "number", "minimum": 0, "maximum": 1},
    (d.ColumnCheck, "type"): {"enum": [*COLUMN_TYPES, None]},
    (d.Declaration, "engine"): {"type": "string", "examples": ["local", "ray://cluster:10001", "spark"]},
    (d.Resources, "cpu"): {"type": "number", "exclusiveMinimum": 0},
    (d.Resources, "memory"): {"type": "string", "examples": ["4GB", "512MB"]},
    (d.Resources, "gpu"): {"type": "number", "minimum": 0},
}
_GROUP_OR_LIST: dict[str, Any] = {
    "anyOf": [{"enum": list(COLUMN_GROUPS)}, {"type": "array", "items": {"type": "string"}}]
}


def json_schema() -> dict[str, Any]:
    """The schema, made of the structs: their types, defaults and docstrings."""
    _, components = msgspec.json.schema_components(_STRUCTS, ref_template="#/$defs/{name}")
    found: dict[str, Any] = {}
    for cls in (*_STRUCTS, *STEPS.values()):
        component = components[cls.__name__]
        component.pop("title", None)
        component["description"] = summary(cls)
        _describe(cls, component)
        found[cls.__name__] = component
    found["CleanStep"] = _one_of_steps(CleanStep)
    found["FeatureStep"] = _one_of_steps(FeatureStep)
    found["Data"]["properties"]["clean"]["items"] = {"$ref": "#/$defs/CleanStep"}
    found["Declaration"]["properties"]["features"]["items"] = {"$ref": "#/$defs/FeatureStep"}
    top = found.pop("Declaration")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Modelkeep declaration",
        **top,
        "$defs": found,
    }


def _describe(cls: type[Struct], component: dict[str, Any]) -> None:
    properties: dict[str, Any] = component["properties"]
    if cls.__struct_config__.tag_field == "step":
        del properties["step"]
        component["required"] = [name for name in component.get("required", ()) if name != "step"]
        _step_fields(cls, properties)
    texts = field_texts(cls)
    for field in fields_of(cls):
        found = properties[field.encode_name]
        hint = _HINTS.get((cls, field.name))
        if hint is not None:
            found = {**hint, **{key: value for key, value in found.items() if key == "default"}}
        default = default_of(field)
        if isinstance(default, Struct):
            # Spelt-out defaults of nested structs say nothing an editor could use.
            found.pop("default", None)
        if field.name in texts:
            found["description"] = texts[field.name]
        properties[field.encode_name] = found


def _step_fields(cls: type[Struct], properties: dict[str, Any]) -> None:
    """Names where the type says only text."""
    columns = properties.get("columns", {})
    if cls is Cast:
        columns["additionalProperties"] = {"enum": list(CAST_TYPES)}
    elif "anyOf" in columns:
        columns["anyOf"] = _GROUP_OR_LIST["anyOf"]
    if "parts" in properties:
        properties["parts"]["items"] = {"enum": list(DATE_PARTS)}


def _one_of_steps(union: Any) -> dict[str, Any]:
    """A bare name, or an object with one entry."""
    bare = [name for name, cls in STEPS.items() if cls in get_args(union) and not _required(cls)]
    bodies = {name: _body(cls) for name, cls in STEPS.items() if cls in get_args(union)}
    entry = {
        "type": "object",
        "properties": bodies,
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 1,
    }
    return {"anyOf": [{"enum": bare}, entry] if bare else [entry]}


def _required(cls: type[Struct]) -> list[str]:
    return [field.name for field in fields_of(cls) if field.required]


def _body(cls: type[Struct]) -> dict[str, Any]:
    """What may stand under a step's name: its fields, or its main field alone."""
    full = {"$ref": f"#/$defs/{cls.__name__}"}
    forms: list[dict[str, Any]] = [full]
    main = main_field(cls)
    if cls is Cast:
        forms.append({"type": "object", "additionalProperties": {"enum": list(CAST_TYPES)}})
    elif cls is Rename:
        forms.append({"type": "object", "additionalProperties": {"type": "string"}})
    elif set(_required(cls)) <= {main}:
        forms.append({"type": "array", "items": {"type": "string"}} if main == "columns" else {"type": "string"})
        if main == "columns":
            forms.append({"type": "string"})
    if not _required(cls):
        forms.append({"type": "null"})
    return {"anyOf": forms, "description": summary(cls)}
