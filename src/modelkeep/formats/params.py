"""Params of one call: what MLflow's signature allows beside the rows, checked, as they travel to the model.

https://mlflow.org/docs/latest/ml/model/signatures/#model-signatures-with-inference-params
They travel as MessagePack: equal params are equal bytes, so calls can be grouped and answers kept by them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from modelkeep.core.errors import Invalid, Problem
from modelkeep.formats.signature import Param
from modelkeep.formats.validate import shown

_encode = msgspec.msgpack.Encoder(order="deterministic").encode
_decode = msgspec.msgpack.Decoder().decode


def packed(specs: Sequence[Param], given: Mapping[str, Any], *, ignore_unknown: bool = False) -> bytes:
    """The params of a call as they travel; empty when they say nothing but the defaults.

    Types are converted as MLflow converts them: whole numbers to ``float`` and ``double``, nothing else.

    Args:
        specs: Of the signature.
        given: JSON values by name.
        ignore_unknown: Whether params that the signature does not name are left out, as MLflow does, or refused.

    Raises:
        Invalid: Every problem found, at paths like ``params.temperature``.
    """
    known = {spec.name: spec for spec in specs}
    problems: list[Problem] = []
    said: dict[str, Any] = {}
    for name, value in given.items():
        spec = known.get(name)
        if spec is None:
            if not ignore_unknown:
                problems.append(Problem(f"params.{name}", f"is no parameter; expected {_names(specs)}"))
            continue
        try:
            converted = _converted(spec, value)
            data = _encode(converted)
        except (ValueError, OverflowError, RecursionError):  # what cannot be encoded is half a surrogate pair
            problems.append(Problem(f"params.{name}", f"is {shown(value)}; expected {_expected(spec)}"))
        else:
            if converted is None or data != _encode(spec.default):
                said[name] = converted
    if problems:
        raise Invalid(problems[:20])
    return _encode(said) if said else b""


def unpacked(params: bytes) -> dict[str, Any] | None:
    """Params by name, as ``packed`` made them; None when there are none."""
    found: dict[str, Any] | None = _decode(params) if params else None
    return found


def _converted(spec: Param, value: Any) -> Any:
    """Raises ``ValueError`` or ``OverflowError`` when it is none of this type."""
    if not spec.many:
        return _scalar(spec.type, value)
    if type(value) is not list:
        raise ValueError
    return [_scalar(spec.type, item) for item in value]


def _scalar(kind: str, value: Any) -> Any:
    if kind == "object":  # what is in it is checked by MLflow, where the model is
        if type(value) is not dict:
            raise ValueError
        return value
    if value is None:
        return None
    if type(value) not in _PYTHON[kind]:
        raise ValueError
    if kind == "datetime":
        datetime.fromisoformat(value)
    elif kind in ("float", "double"):
        return float(value)
    return value


_PYTHON: dict[str, tuple[type, ...]] = {
    "boolean": (bool,),
    "integer": (int,),
    "long": (int,),
    "float": (float, int),
    "double": (float, int),
    "string": (str,),
    "datetime": (str,),
}


def _expected(spec: Param) -> str:
    what = {"datetime": "datetime as ISO 8601 writes it"}.get(spec.type, spec.type)
    return f"a list of type {what}" if spec.many else f"a value of type {what}"


def _names(specs: Sequence[Param]) -> str:
    return ", ".join(spec.name for spec in specs[:20]) or "none, for this version's signature names none"
