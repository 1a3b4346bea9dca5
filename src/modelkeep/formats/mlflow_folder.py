"""What an ``MLmodel`` file says: flavours, signature, input example. Reading it needs no MLflow and runs nothing.

https://mlflow.org/docs/latest/ml/model/#storage-format
https://mlflow.org/docs/latest/ml/model/signatures/
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import msgspec
import numpy as np
import yaml
from msgspec import Struct

from modelkeep.core.errors import Invalid, NotFound, Problem
from modelkeep.formats.feed import Feed, as_inputs
from modelkeep.formats.samples import ROWS
from modelkeep.formats.signature import Field, Param, ParamType, Type
from modelkeep.formats.tensors import size_of, type_of

FILE = "MLmodel"
_SAMPLED = 1 << 18
"""Most values of an input example that are kept."""

_TYPES: dict[str, Type] = {
    "boolean": "bool",
    "integer": "int64",
    "long": "int64",
    "float": "float64",
    "double": "float64",
    "string": "string",
    "datetime": "timestamp",
}
_CASTS = {"integer": "int32", "float": "float32"}


class Said(Struct, frozen=True, kw_only=True):
    """What the file says.

    Attributes:
        flavors: Configuration by flavour.
        fields: The inputs as columns; empty when there is no signature.
        feed: How these become what the model was logged with; None when there is no signature.
        outputs: What it is said to give; empty when nothing is said.
        params: What a call may say beside its rows.
        sample: Rows of the input example, lists by column; empty when there is none.
        odd: Why there are no ``fields`` though there is a signature: what of it no columns or tensors can carry.
        request: The input example as a scoring request; empty when there is none.
    """

    flavors: dict[str, dict[str, Any]]
    fields: tuple[Field, ...] = ()
    feed: Feed | None = None
    outputs: tuple[Field, ...] = ()
    params: tuple[Param, ...] = ()
    sample: dict[str, list[Any]] = {}
    odd: tuple[Problem, ...] = ()
    request: str = ""


def read(files: Mapping[str, bytes]) -> Said:
    """Read the file of a model folder.

    Raises:
        NotFound: There is none.
        Invalid: It is no such file, or a param is of a type that none has; all of them are named.
    """
    try:
        data = files[FILE]
    except KeyError:
        raise NotFound(f"no {FILE}: this is no model folder of MLflow") from None
    try:
        found = yaml.safe_load(data)
        flavors = {str(name): dict(conf or {}) for name, conf in found["flavors"].items()}
        said = found.get("signature") or {}
        inputs = json.loads(said.get("inputs") or "[]")
        outputs = json.loads(said.get("outputs") or "[]")
        params = json.loads(said.get("params") or "[]")
        if not all(isinstance(one, dict) for one in (*inputs, *outputs, *params)):
            raise TypeError("a signature lists objects")
        json.dumps([inputs, outputs], ensure_ascii=False).encode()  # half a surrogate pair is no text
        msgspec.msgpack.encode(params)
    except (
        yaml.YAMLError,
        KeyError,
        TypeError,
        AttributeError,
        ArithmeticError,
        ValueError,
        RecursionError,
    ) as error:
        raise Invalid(f"cannot be read: {type(error).__name__}: {str(error)[:200]}", path=FILE) from None
    info = found.get("saved_input_example_info")
    if not inputs:
        return Said(flavors=flavors, request=_request(files, info))
    try:
        fields, feed = _tensors(inputs) if inputs[0].get("type") == "tensor" else _columns(inputs)
    except Invalid as error:
        return Said(flavors=flavors, odd=tuple(error.problems), request=_request(files, info))
    return Said(
        flavors=flavors,
        fields=fields,
        feed=feed,
        outputs=_outputs(outputs),
        params=_params(params),
        sample=_sample(files, info, fields, feed),
    )


def _columns(inputs: Sequence[Mapping[str, Any]]) -> tuple[tuple[Field, ...], Feed]:
    problems: list[Problem] = []
    fields: list[Field] = []
    casts: dict[str, str] = {}
    for place, one in enumerate(inputs):
        name, kind = str(one.get("name", place)), str(one.get("type"))
        if kind not in _TYPES:
            known = ", ".join(_TYPES)
            problems.append(Problem(f"signature.inputs.{name}", f"is a {kind}; columns are one of {known}"))
            continue
        fields.append(Field(name=name, type=_TYPES[kind], required=bool(one.get("required", True))))
        if kind in _CASTS and (kind == "float" or fields[-1].required):
            casts[name] = _CASTS[kind]
    if problems:
        raise Invalid(problems)
    return tuple(fields), Feed(kind="frame", casts=casts)


def _tensors(inputs: Sequence[Mapping[str, Any]]) -> tuple[tuple[Field, ...], Feed]:
    found: list[tuple[str, str, tuple[int, ...]]] = []
    for place, one in enumerate(inputs):
        path = f"signature.inputs[{place}]"
        spec = one.get("tensor-spec")
        if not isinstance(spec, Mapping):
            raise Invalid(f"has the tensor-spec {spec!r}; expected an object with dtype and shape", path=path)
        name, dtype, shape = str(one.get("name") or ""), str(spec.get("dtype")), _shape(spec)
        rest = tuple(shape[1:])
        if shape[:1] != [-1] or not all(length > 0 for length in rest):
            raise Invalid(f"has shape {spec.get('shape')}; expected [-1, ...] with the rest fixed", path=path)
        found.append((name, dtype, rest))
    return as_inputs(found)


def _shape(spec: Mapping[str, Any]) -> list[int]:
    """The lengths of a tensor; empty when it has none that are whole numbers."""
    shape = spec.get("shape")
    return shape if isinstance(shape, list) and all(type(length) is int for length in shape) else []


def _outputs(outputs: Sequence[Mapping[str, Any]]) -> tuple[Field, ...]:
    """As far as they are plain; what a model gives is seen when it is tried."""
    fields: list[Field] = []
    for one in outputs:
        spec = one.get("tensor-spec")
        name = str(one.get("name") or "prediction")
        if isinstance(spec, Mapping):
            rest = tuple(_shape(spec)[1:])
            if all(length > 0 for length in rest):
                fields.append(Field(name=name, type=type_of(str(spec.get("dtype"))), shape=rest))
        elif str(one.get("type")) in _TYPES:
            fields.append(Field(name=name, type=_TYPES[str(one.get("type"))]))
    return tuple(fields) if len(fields) == len(outputs) else ()


def _params(params: Sequence[Mapping[str, Any]]) -> tuple[Param, ...]:
    kinds = get_args(ParamType)
    problems: list[Problem] = []
    found: dict[str, Param] = {}
    for place, one in enumerate(params):
        name, kind, shape = str(one.get("name", place)), one.get("type", one.get("dtype")), one.get("shape")
        path = f"signature.params.{name}"
        if kind not in kinds:
            problems.append(Problem(path, f"is a {kind}; params are one of {', '.join(kinds)}"))
        elif shape not in (None, [-1]):
            problems.append(Problem(path, f"has shape {shape}; expected null, or [-1] for a list"))
        elif name in found:
            problems.append(Problem(path, "is there twice"))
        else:
            found[name] = Param(name=name, type=kind, default=one.get("default"), many=shape is not None)
    if problems:
        raise Invalid(problems)
    return tuple(found.values())


def _request(files: Mapping[str, bytes], info: Any) -> str:
    """The input example as a scoring request; empty when there is none."""
    try:
        return files[info["serving_input_path"]].decode()
    except (KeyError, TypeError, UnicodeDecodeError):
        return ""


def _sample(files: Mapping[str, bytes], info: Any, fields: Sequence[Field], feed: Feed) -> dict[str, list[Any]]:
    """Rows of the input example; empty when there is none that fits the signature."""
    try:
        found = json.loads(files[info["artifact_path"]])
        if info.get("params"):  # it says params beside the rows
            found = found["inputs"]
        if feed.kind == "frame":
            rows = [dict(zip(found["columns"], row, strict=True)) for row in found["data"][:ROWS]]
            return {field.name: [row[field.name] for row in rows] for field in fields} if rows else {}
        given = found["inputs"] if isinstance(found, dict) and "inputs" in found else found
        shapes = {field.name: field.shape for field in fields}
        made: dict[str, list[Any]] = {}
        for part in feed.parts:
            most = max(1, min(ROWS, _SAMPLED // size_of(part.shape)))
            block = np.array(given[part.name] if isinstance(given, dict) else given)[:most]
            if shapes[part.columns[0]]:
                made[part.columns[0]] = block.reshape(len(block), *part.shape).tolist()
                continue
            flat = block.reshape(len(block), len(part.columns))
            made |= {name: flat[:, place].tolist() for place, name in enumerate(part.columns)}
        return made if next(iter(made.values()), None) else {}
    except (KeyError, TypeError, ValueError, AttributeError, UnicodeDecodeError, IndexError):
        return {}
