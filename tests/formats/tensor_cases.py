"""Little models of images and other tensors, logged with MLflow."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from runtime_cases import saved

RATES = np.linspace(-1.0, 1.0, 784, dtype=np.float32).reshape(28, 28)


class Kept(NamedTuple):
    """A package, what had to be trusted for it, and what its inputs are called."""

    files: dict[str, bytes]
    trusted: tuple[str, ...]


def images(rows: int, *shape: int, seed: int = 7) -> Any:
    """Numbers that look like pixels, (rows, *shape) float32."""
    return np.random.default_rng(seed).random((rows, *(shape or (28, 28))), dtype=np.float32)


def scores(pixels: Any) -> Any:
    """What the digits model says of images (n, 28, 28)."""
    return (pixels * RATES).sum(axis=(1, 2))


def digits_graph(rows: int | None = None, side: int | None = 28) -> Any:
    """An ONNX graph: ``image`` [rows, side, 28] to ``score`` [rows]."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Mul", ["image", "rates"], ["weighed"]),
        helper.make_node("ReduceSum", ["weighed", "axes"], ["score"], keepdims=0),
    ]
    constants = {"rates": RATES if side else np.ones((1, 1), np.float32), "axes": np.array([1, 2], np.int64)}
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [rows, side, side])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, [rows])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def said(given: Any, answer: Any, **more: Any) -> dict[str, Any]:
    """What a folder is saved with."""
    from mlflow.models import infer_signature

    return {"signature": infer_signature(given, answer), "pip_requirements": ["numpy"], **more}


@cache
def digits() -> Kept:
    """[-1, 28, 28] as a graph."""
    import mlflow.onnx

    X = images(3)
    about = said(X, scores(X), input_example=X)
    return Kept(*saved(lambda to: mlflow.onnx.save_model(digits_graph(), to, **about)))


def weighed(pixels: Any, weight: Any) -> Any:
    """What the blend says: each image times its weight."""
    return pixels * np.asarray(weight).reshape(-1, 1, 1)


@cache
def blend() -> Kept:
    """A tensor and a number by name to a tensor, run by MLflow."""
    import mlflow.pyfunc

    class Blend(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
        def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def] # MLflow reads hints
            pixels, weight = model_input["pixels"], model_input["weight"]
            assert pixels.dtype == np.float32
            assert pixels.shape[1:] == (1, 2, 3)
            return {"picture": pixels[:, 0] * weight.reshape(-1, 1, 1), "words": model_input["words"][:, ::-1]}

    given = {
        "pixels": images(2, 1, 2, 3),
        "weight": np.array([1.0, 2.0]),
        "words": np.array([["a", "b"], ["c", "d"]], dtype=object),
    }
    answer = {"picture": weighed(given["pixels"][:, 0], given["weight"]), "words": given["words"]}
    about = said(given, answer)
    return Kept(*saved(lambda to: mlflow.pyfunc.save_model(to, python_model=Blend(), **about)))


@cache
def colours() -> Kept:
    """[-1, 3, 8, 8] as a PyTorch program: the mean of each channel."""
    import mlflow.pytorch
    import torch

    class Mean(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean(dim=(2, 3))

    X = images(2, 3, 8, 8)
    script = torch.jit.script(Mean().eval())
    about = said(X, X.mean(axis=(2, 3)), serialization_format="pickle")
    return Kept(*saved(lambda to: mlflow.pytorch.save_model(script, to, **about)))
