"""What TensorFlow Serving's clients are told of a version, and how they address it.

A version has the signature ``serving_default``, which takes every input and gives every output; a classification
has ``classification`` too, and a regression ``regression``. Aliases are what TensorFlow Serving calls labels.

https://www.tensorflow.org/tfx/serving/signature_defs
"""

from __future__ import annotations

from typing import Any, Final

from modelkeep.core.errors import Invalid, NotFound
from modelkeep.formats.signature import Field, Signature, Type
from modelkeep.serve.batching import Lane
from modelkeep.serve.dataplane import DataPlane
from modelkeep.serve.endpoint import Endpoint

DEFAULT: Final = "serving_default"
_NAMES: Final = {
    "predict": (DEFAULT, "predict"),
    "classify": (DEFAULT, "classification", "classify"),
    "regress": (DEFAULT, "regression", "regress"),
}
_TASKS: Final = {"classify": "classification", "regress": "regression"}
DTYPES: Final[dict[Type, str]] = {
    "float64": "DT_DOUBLE",
    "int64": "DT_INT64",
    "bool": "DT_BOOL",
    "string": "DT_STRING",
    "timestamp": "DT_STRING",
}


def endpoint(plane: DataPlane, name: str) -> Endpoint:
    """The endpoint of a model.

    Raises:
        NotFound: In the words that TensorFlow Serving has for it.
        Unavailable: Nothing is loaded yet.
    """
    try:
        return plane.endpoint(name)
    except NotFound as error:
        raise NotFound(f"Servable not found for request: Latest({name[:60]}); {error}") from None


def lane(found: Endpoint, key: str, version: str = "", label: str = "") -> Lane:
    """Who answers: by key and weight, or the version or alias that is named. Raises as ``endpoint``."""
    try:
        if label.isdecimal():
            raise NotFound(f"a label is a name, not the number {label[:20]}")
        return found.lane(key, version or label)
    except NotFound as error:
        wanted = f"{found.name}, {(version or label)[:60]}"
        raise NotFound(f"Servable not found for request: Specific({wanted}); {error}") from None


def check(verb: str, name: str | None, signature: Signature) -> None:
    """Whether a version has a signature of this name for a verb (``predict``, ``classify``, ``regress``).

    Raises:
        Invalid: It has none, or its task is another.
    """
    if name and name not in _NAMES[verb]:
        known = ", ".join(_NAMES[verb])
        raise Invalid(
            f'Serving signature name: "{name[:60]}" not found in signature def; there are: {known}',
            path="signature_name",
        )
    task = _TASKS.get(verb, signature.task)
    if signature.task != task:
        raise Invalid(f"the model is for {signature.task}, and only one for {task} can be asked to {verb}")
    if verb == "classify" and "probability" not in {field.name for field in signature.outputs}:
        raise Invalid("the model gives no probabilities, so it cannot be asked to classify; ask it to predict")


def definitions(signature: Signature) -> dict[str, Any]:
    """The signatures of a version, as the JSON form of ``tensorflow.SignatureDef`` by name."""
    inputs = {field.name: _tensor(field) for field in signature.inputs}
    outputs = {field.name: _tensor(field) for field in signature.outputs}
    made = {
        DEFAULT: {"inputs": inputs, "outputs": outputs, "method_name": "tensorflow/serving/predict"},
    }
    examples = {"inputs": {"name": "inputs:0", "dtype": "DT_STRING", "tensor_shape": _shape((-1,))}}
    if signature.task == "classification":
        made["classification"] = {
            "inputs": examples,
            "outputs": {
                "classes": {"name": "classes:0", "dtype": "DT_STRING", "tensor_shape": _shape((-1, -1))},
                "scores": {"name": "scores:0", "dtype": "DT_FLOAT", "tensor_shape": _shape((-1, -1))},
            },
            "method_name": "tensorflow/serving/classify",
        }
    elif signature.task == "regression":
        made["regression"] = {
            "inputs": examples,
            "outputs": {"outputs": {"name": "outputs:0", "dtype": "DT_FLOAT", "tensor_shape": _shape((-1,))}},
            "method_name": "tensorflow/serving/regress",
        }
    return made


def _tensor(field: Field) -> dict[str, Any]:
    return {
        "name": f"{field.name}:0",
        "dtype": DTYPES[field.type],
        "tensor_shape": _shape((-1, *field.shape)),
    }


def _shape(shape: tuple[int, ...]) -> dict[str, Any]:
    return {"dim": [{"size": str(size), "name": ""} for size in shape], "unknown_rank": False}


def statuses(found: Endpoint, version: str = "", label: str = "") -> list[dict[str, Any]]:
    """How the versions stand: those that answer are available. Raises ``NotFound``."""
    versions = [lane(found, "", version, label).channel.version] if version or label else found.versions
    return [
        {"version": str(one), "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
        for one in reversed(versions)
    ]
