"""Packages of every runtime with what they must say, for the suite that holds runtimes to their promises."""

from __future__ import annotations

import contextlib
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1] / "conformance"))
from runtime import Case
from test_runtimes import packaged

from modelkeep.core.errors import Refused
from modelkeep.formats import adopt, runtimes, samples, signature
from modelkeep.formats.manifest import Folder

NAMES = ("a", "b", "c")
FUNCTION = """
import json

FACTORS = {}

def load(folder):
    FACTORS.update(json.loads((folder / "factors.json").read_text()))

def predict(columns):
    return {"total": sum(columns[name] * factor for name, factor in FACTORS.items()), "many": columns["a"] > 0.5}
"""


def frame(rows: int = 40) -> pd.DataFrame:
    return pd.DataFrame(np.random.default_rng(5).random((rows, 3)), columns=list(NAMES))


def target() -> Any:
    return (frame().a > 0.5).astype(int).to_numpy()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What frameworks say while they save."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def sklearn_case(task: str) -> Case:
    """A pipeline of scikit-learn's own classes, told to run as such."""
    package, columns, expected = packaged(task, own=False)
    return Case(as_sklearn(package.files), columns, dict(expected))


def as_sklearn(files: dict[str, bytes]) -> dict[str, bytes]:
    """The package run by scikit-learn rather than by its graph."""
    return {
        **files,
        "manifest.json": files["manifest.json"].replace(b'"runtime": "onnx"', b'"runtime": "sklearn"'),
    }


def saved(
    save: Callable[[str], Any], *, trusted: tuple[str, ...] = ()
) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """A folder as MLflow saves it, made a package; and what had to be trusted for it."""
    with tempfile.TemporaryDirectory() as name, quiet():
        folder = Path(name) / "model"
        save(str(folder))
        try:
            adopt.adopt(folder, trusted=trusted)
        except Refused as refused:
            trusted = (*trusted, refused.hint.split()[-1])
            adopt.adopt(folder, trusted=trusted)
        return dict(Folder(folder)), trusted


def said(X: Any, y: Any) -> dict[str, Any]:
    """What every folder is saved with; the requirements keep MLflow from finding them out in seconds."""
    from mlflow.models import infer_signature

    return {"signature": infer_signature(X, y), "pip_requirements": ["numpy"]}


def columns() -> dict[str, Any]:
    return {name: frame()[name].to_numpy() for name in NAMES}


def _classes(estimator: Any) -> dict[str, Any]:
    found = estimator.predict_proba(frame())
    return {"label": estimator.classes_[found.argmax(axis=1)], "probability": found}


@cache
def logistic() -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=100).fit(frame(), target())


@cache
def foreign(kind: str) -> Case:
    """The case of one kind of model made elsewhere."""
    files, trusted, expected = _FOREIGN[kind]()
    return Case(files, columns(), expected, trusted)


def _skops() -> Any:
    import mlflow.sklearn

    model = logistic()
    files, trusted = saved(lambda to: mlflow.sklearn.save_model(model, to, **said(frame(), target())))
    return files, trusted, _classes(model)


def _pickle() -> Any:
    import mlflow.sklearn

    model = logistic()
    files, trusted = saved(
        lambda to: mlflow.sklearn.save_model(
            model, to, serialization_format="cloudpickle", **said(frame(), target())
        )
    )
    assert len(trusted) == 1
    return files, trusted, _classes(model)


def _graph() -> Any:
    import mlflow.onnx
    from skl2onnx import to_onnx

    model = logistic()
    X = frame().to_numpy(np.float32)
    made = to_onnx(model, X[:1], options={"zipmap": False})
    expected = _classes(model)
    files, trusted = saved(lambda to: mlflow.onnx.save_model(made, to, **said(X, expected["label"])))
    return files, trusted, {"label": expected["label"], "probabilities": expected["probability"]}


def _xgboost() -> Any:
    import mlflow.xgboost
    import xgboost

    model = xgboost.XGBClassifier(n_estimators=5).fit(frame(), target())
    files, trusted = saved(lambda to: mlflow.xgboost.save_model(model, to, **said(frame(), target())))
    return files, trusted, _classes(model)


def _lightgbm() -> Any:
    import lightgbm
    import mlflow.lightgbm

    data = lightgbm.Dataset(frame(), target().astype(float), params={"verbose": -1, "min_data_in_leaf": 2})
    model = lightgbm.train({"objective": "regression", "verbose": -1, "min_data_in_leaf": 2}, data, 5)
    files, trusted = saved(lambda to: mlflow.lightgbm.save_model(model, to, **said(frame(), target())))
    return files, trusted, {"prediction": model.predict(frame())}


def _pyfunc() -> Any:
    import mlflow.pyfunc

    class Twice(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
        def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def] # MLflow reads hints
            return model_input["a"] * 2 + model_input["c"]

    answer = frame().a * 2 + frame().c
    files, trusted = saved(lambda to: mlflow.pyfunc.save_model(to, python_model=Twice(), **said(frame(), answer)))
    assert len(trusted) == 1
    return files, trusted, {"prediction": answer.to_numpy()}


def _net() -> Any:
    import torch

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.softmax(self.layer(x), 1)

    torch.manual_seed(1)
    net = Net().eval()
    X = frame().to_numpy(np.float32, copy=True)
    with torch.inference_mode():
        return net, X, net(torch.from_numpy(X)).numpy().astype(np.float64)


def _torchscript() -> Any:
    import mlflow.pytorch
    import torch

    net, X, y = _net()
    with quiet():
        script = torch.jit.script(net)
    files, trusted = saved(
        lambda to: mlflow.pytorch.save_model(script, to, serialization_format="pickle", **said(X, y))
    )
    return files, trusted, {"prediction": y}


def _pt2() -> Any:
    import mlflow.pytorch

    net, X, y = _net()
    files, trusted = saved(
        lambda to: mlflow.pytorch.save_model(
            net, to, serialization_format="pt2", input_example=X[:2], **said(X, y)
        )
    )
    return files, trusted, {"prediction": y}


def _function() -> Any:
    fields = [signature.Field(name=name, type="float64") for name in NAMES]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "score.py").write_text(FUNCTION)
        (folder / "factors.json").write_text('{"a": 1.0, "b": -2.0}')
        sample = frame(3).to_dict("list")
        try:
            adopt.adopt_function(folder, "score.py", fields, sample)
            raise AssertionError("code ran that nobody trusted")
        except Refused as refused:
            trusted = (refused.hint.split()[-1],)
        adopt.adopt_function(folder, "score.py", fields, sample, trusted=trusted)
        files = dict(Folder(folder))
    assert samples.recorded(files) == sample
    X = frame()
    return files, trusted, {"total": (X.a - 2 * X.b).to_numpy(), "many": (X.a > 0.5).to_numpy()}


_FOREIGN: dict[str, Callable[[], Any]] = {
    "skops": _skops,
    "pickle": _pickle,
    "graph": _graph,
    "xgboost": _xgboost,
    "lightgbm": _lightgbm,
    "pyfunc": _pyfunc,
    "torchscript": _torchscript,
    "pt2": _pt2,
    "function": _function,
}
RUNTIMES = {"skops": "sklearn", "pickle": "sklearn", "torchscript": "torch", "pt2": "torch"}
"""The runtime of a kind, where it is not called like it."""
FLOAT32 = {"graph", "xgboost", "torchscript", "pt2"}
"""Kinds that compute in single precision, where a batch is not bitwise its rows."""


def foreign_case(kind: str) -> Case:
    """The case of a kind, its inputs named as its signature names them."""
    case = foreign(kind)
    names = [field.name for field in runtimes.signature(case.files).inputs]
    return case._replace(columns=dict(zip(names, case.columns.values(), strict=True)))
