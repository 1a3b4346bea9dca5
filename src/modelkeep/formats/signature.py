"""The signature of a model: what goes in, what comes out, and what training saw of each."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct

from modelkeep.core.errors import Invalid

Type = Literal["int64", "float64", "bool", "string", "timestamp"]
Task = Literal["classification", "regression", "anomaly"]
Label = bool | int | float | str
ParamType = Literal["boolean", "integer", "long", "float", "double", "string", "datetime", "object"]


class Field(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One column.

    Attributes:
        name: Its name.
        type: ``timestamp`` is microseconds since 1970 UTC.
        required: Whether every row must have it. Columns with missing values in training need not be given.
        min: Smallest value in training, or allowed when ``strict``; for a timestamp, microseconds.
        max: Largest such value.
        categories: Distinct values in training, sorted, when few.
        strict: Whether a value outside the categories, or outside ``min`` and ``max``, is refused.
        shape: Of one row's value; empty for a scalar.
    """

    name: str
    type: Type
    required: bool = True
    min: float | None = None
    max: float | None = None
    categories: tuple[str, ...] | None = None
    strict: bool = False
    shape: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """Values of a row."""
        return math.prod(self.shape)


class Param(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something a call may say beside its rows, as MLflow's ``ParamSchema`` has it.

    Attributes:
        name: Its name.
        type: In MLflow's words.
        default: What the model is told by a call that does not say it; a JSON value.
        many: Whether it is a list of such values.
    """

    name: str
    type: ParamType
    default: Any = None
    many: bool = False


class Signature(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a model takes and gives.

    Attributes:
        inputs: In the order of training.
        outputs: ``label`` and ``probability``; or ``prediction``; or ``label`` and ``score``.
        task: ``classification``, ``regression`` or ``anomaly``.
        classes: Sorted labels, in the order of the columns of ``probability``; empty unless classification.
        params: What a call may say beside its rows.
        verbatim: Whether the model is given whole requests of MLflow's scoring protocol, for nobody knows what it
            takes: the input ``request`` is the text of one, JSON or CSV, the output ``answer`` the JSON that it
            is answered with.
    """

    inputs: tuple[Field, ...]
    outputs: tuple[Field, ...]
    task: Task
    classes: tuple[Label, ...] = ()
    params: tuple[Param, ...] = ()
    verbatim: bool = False

    def to_builtins(self) -> dict[str, Any]:
        """JSON types."""
        made: dict[str, Any] = msgspec.to_builtins(self)
        return made

    def to_mlflow(self) -> dict[str, str]:
        """The ``signature`` of an ``MLmodel`` file.

        https://mlflow.org/docs/latest/ml/model/signatures/
        """
        params = [{"name": "predict_method", "type": "string", "default": "predict", "shape": None}]
        return {
            "inputs": json.dumps([_to_mlflow(field) for field in self.inputs]),
            "outputs": json.dumps([_to_mlflow(field) for field in self.outputs[:1]]),
            "params": json.dumps(params),
        }


def from_builtins(data: Any) -> Signature:
    """The signature of a package.

    Raises:
        Invalid: It is not one.
    """
    try:
        return msgspec.convert(data, Signature)
    except msgspec.ValidationError as error:
        raise Invalid(f"not a signature: {error}", path="signature.json") from error


def outputs_of(task: Task, classes: Sequence[Label], *, probability: bool = True) -> tuple[Field, ...]:
    """The outputs of a task."""
    if task == "regression":
        return (Field(name="prediction", type="float64"),)
    if task == "anomaly":
        return (Field(name="label", type="bool"), Field(name="score", type="float64"))
    label = Field(name="label", type=_label_type(classes))
    return (label, Field(name="probability", type="float64", shape=(len(classes),))) if probability else (label,)


def _label_type(classes: Sequence[Label]) -> Type:
    if all(isinstance(item, bool) for item in classes):
        return "bool"
    if all(isinstance(item, int) for item in classes):
        return "int64"
    return "string" if all(isinstance(item, str) for item in classes) else "float64"


_MLFLOW = {"int64": "long", "float64": "double", "bool": "boolean", "string": "string", "timestamp": "datetime"}


def _to_mlflow(field: Field) -> dict[str, Any]:
    kind = "double" if field.type == "int64" and not field.required else _MLFLOW[field.type]
    return {"type": kind, "name": field.name, "required": field.required}
