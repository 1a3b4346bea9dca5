"""Little models whose rows no signature describes, or none that fits columns, logged with MLflow."""

from __future__ import annotations

import base64
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from runtime_cases import frame, logistic, saved
from tensor_cases import Kept, digits_graph

BARE = {"pip_requirements": ["numpy"]}
NESTED = pd.DataFrame(
    {
        "words": [["a", "b"], ["c"]],
        "about": [{"size": 1, "tags": ["x"]}, {"size": 2, "tags": []}],
        "data": [b"\x00\xff", b"abc"],
    }
)
NESTED_JSON = [
    {"words": ["a", "b"], "about": {"size": 1, "tags": ["x"]}, "data": base64.b64encode(b"\x00\xff").decode()},
    {"words": ["c"], "about": {"size": 2, "tags": []}, "data": base64.b64encode(b"abc").decode()},
]


@cache
def unsigned() -> Kept:
    """A function of anything."""
    import mlflow.pyfunc

    class Anything(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
        def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def] # MLflow reads hints
            if isinstance(model_input, dict):
                return {name: float(np.sum(values)) for name, values in model_input.items()}
            if "fail" in model_input:
                raise RuntimeError("no luck")
            if "odd" in model_input:
                raise KeyError("no such column")
            return {"kind": type(model_input).__name__, "rows": len(model_input)}

    return Kept(*saved(lambda to: mlflow.pyfunc.save_model(to, python_model=Anything(), **BARE)))


@cache
def unsigned_sklearn() -> Kept:
    """A pipeline that was logged without a signature."""
    import mlflow.sklearn

    return Kept(*saved(lambda to: mlflow.sklearn.save_model(logistic(), to, **BARE)))


@cache
def unsigned_graph() -> Kept:
    """A graph whose dimensions nobody fixed: images of any size."""
    import mlflow.onnx

    return Kept(*saved(lambda to: mlflow.onnx.save_model(digits_graph(side=None), to, **BARE)))


@cache
def nested() -> Kept:
    """Columns of lists, objects and bytes."""
    import mlflow.pyfunc
    from mlflow.models import infer_signature

    class Sizes(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
        def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def] # MLflow reads hints
            assert all(isinstance(one, bytes) for one in model_input["data"])
            return [
                {"words": len(row.words), "size": row.about["size"], "bytes": len(row.data)}
                for row in model_input.itertuples()
            ]

    about: dict[str, Any] = {"signature": infer_signature(NESTED), "input_example": NESTED, **BARE}
    return Kept(*saved(lambda to: mlflow.pyfunc.save_model(to, python_model=Sizes(), **about)))


ROWS = frame(3).to_dict(orient="split", index=False)
