"""Both runtimes keep the promises of the port; loading is light; timing is honest."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from format_cases import INPUTS, features, table, target
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.ensemble import HistGradientBoostingClassifier, IsolationForest, RandomForestClassifier
from sklearn.linear_model import Ridge
from sklearn.pipeline import Pipeline

from modelkeep.core.errors import Refused
from modelkeep.formats import runtimes
from modelkeep.formats.frames import columns_of
from modelkeep.formats.inference import infer
from modelkeep.formats.package import Package, build
from modelkeep.formats.sklearn_runtime import SklearnModel
from modelkeep.formats.skops_io import loads
from modelkeep.formats.steps import UserFunction

sys.path.insert(0, str(Path(__file__).parents[1] / "conformance"))
from runtime import Case, RuntimeSuite

TASKS = ("classification", "regression", "anomaly")


class Third(ClassifierMixin, BaseEstimator):
    """A user's classifier: no converter knows it."""

    def fit(self, X: Any, y: Any) -> Third:
        self.classes_ = np.unique(y)
        self.middle_ = np.asarray(X).mean(axis=0)
        return self

    def predict_proba(self, X: Any) -> Any:
        above = (np.asarray(X) > self.middle_).mean(axis=1)
        rest = (1 - above) / (len(self.classes_) - 1)
        return np.column_stack([above, *[rest] * (len(self.classes_) - 1)])

    def predict(self, X: Any) -> Any:
        return self.classes_[self.predict_proba(X).argmax(axis=1)]


class Mean(RegressorMixin, BaseEstimator):
    """A user's regressor."""

    def fit(self, X: Any, y: Any) -> Mean:
        self.mean_ = float(np.mean(y))
        return self

    def predict(self, X: Any) -> Any:
        return np.asarray(X)[:, 0] + self.mean_


class Far(BaseEstimator):
    """A user's anomaly detector."""

    offset_ = -2.0

    def fit(self, X: Any, y: Any = None) -> Far:
        self.middle_ = np.asarray(X).mean(axis=0)
        return self

    def score_samples(self, X: Any) -> Any:
        return -np.abs(np.asarray(X) - self.middle_).mean(axis=1)

    def predict(self, X: Any) -> Any:
        return np.where(self.score_samples(X) < self.offset_, -1, 1)


OWN = tuple(f"{kind.__module__}.{kind.__name__}" for kind in (Third, Mean, Far))


@cache
def packaged(task: str, own: bool) -> tuple[Package, Any, Any]:
    data = table(200)
    kinds = ("a", "b", "ü")
    y = target(data, task, kinds) if task != "anomaly" else None
    made: dict[str, Any] = {
        "classification": Third() if own else HistGradientBoostingClassifier(max_iter=8, random_state=0),
        "regression": Mean() if own else Ridge(),
        "anomaly": Far() if own else IsolationForest(n_estimators=10, random_state=0),
    }
    pipeline = Pipeline([("features", features()), ("model", made[task])]).fit(data.select(INPUTS).to_pandas(), y)
    signature = infer(data, INPUTS, task, kinds if task == "classification" else ())  # type: ignore[arg-type]
    package = build(pipeline, signature, data, trust=OWN if own else ())
    columns = columns_of(data, signature)
    return package, columns, SklearnModel(pipeline, signature).predict(columns)


class TestOnnx(RuntimeSuite):
    runtime = "onnx"

    @pytest.fixture(params=TASKS)
    def case(self, request: pytest.FixtureRequest) -> Case:
        package, columns, expected = packaged(request.param, own=False)
        assert package.note == ""
        return Case(package.files, columns, dict(expected))


class TestSklearn(RuntimeSuite):
    runtime = "sklearn"

    @pytest.fixture(params=TASKS)
    def case(self, request: pytest.FixtureRequest) -> Case:
        package, columns, expected = packaged(request.param, own=True)
        assert "has no conversion" in package.note
        return Case(package.files, columns, dict(expected), OWN)


def test_a_users_class_is_refused_by_name_unless_trusted() -> None:
    data = table(50)
    pipeline = Pipeline([("features", features()), ("model", Mean())])
    pipeline.fit(data.select(INPUTS).to_pandas(), np.arange(50.0))
    signature = infer(data, INPUTS, "regression")
    with pytest.raises(Refused, match=r"test_runtimes\.Mean") as refused:
        build(pipeline, signature, data)
    assert "trust: [test_runtimes.Mean]" in refused.value.hint
    package = build(pipeline, signature, data, trust=["test_runtimes.Mean"])
    with pytest.raises(Refused, match=r"test_runtimes\.Mean"):
        runtimes.load(package.files)


def test_a_users_function_is_refused_by_name_wherever_it_hides() -> None:
    import skops.io

    hidden = Pipeline([("f", features()), ("g", Pipeline([("own", UserFunction("os:system"))]))])
    package = skops.io.dumps(hidden)
    with pytest.raises(Refused, match=r"would run os\.system"):
        loads(package)
    assert isinstance(loads(package, trusted=["os.system"]), Pipeline)


@pytest.mark.parametrize("name", ["os.system", "sklearn.datasets.load_iris", "builtins.eval"])
def test_functions_are_never_trusted_by_their_package(name: str) -> None:
    import importlib

    import skops.io
    from sklearn.preprocessing import FunctionTransformer

    module, _, attribute = name.rpartition(".")
    function = getattr(importlib.import_module(module), attribute)
    data = skops.io.dumps(FunctionTransformer(function))
    with pytest.raises(Refused, match="would run"):
        loads(data)


def test_a_loaded_forest_predicts_rows_in_one_thread() -> None:
    from modelkeep.formats.skops_io import dumps

    forest = RandomForestClassifier(5, n_jobs=-1).fit([[0.0], [1.0]], [0, 1])
    assert loads(dumps(forest)).n_jobs == 1


def test_latency_is_in_milliseconds_and_ordered() -> None:
    package, columns, _ = packaged("classification", own=False)
    model = runtimes.load(package.files)
    found = runtimes.latency(model, runtimes.signature(package.files), columns, n=60)
    assert 0.001 < found["p50"] <= found["p95"] <= found["p99"] < 1000
    assert found["n"] == 60


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_serving_needs_neither_scikit_learn_nor_pandas_nor_onnx(tmp_path: Path) -> None:
    package, _, expected = packaged("classification", own=False)
    for name, data in package.files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    code = f"""
import re, sys
from pathlib import Path
from modelkeep.formats import runtimes
from modelkeep.formats.manifest import Folder
from modelkeep.formats.validate import Checker
files = Folder(Path({str(tmp_path)!r}))
model = runtimes.load(files)
row = dict(distance=[12.5], größe=[0.1], count=[3], late=[True], carrier=["日本"], origin=["LGA"])
row["at"] = ["2024-02-29T10:00:00Z"]
print(len(model.predict(Checker(runtimes.signature(files)).check(row, 1))["probability"][0]))
heavy = {{"sklearn", "pandas", "onnx", "skl2onnx", "skops", "scipy", "pyarrow"}} & set(sys.modules)
print(sorted(heavy))
print(int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    classes, heavy, megabytes = done.stdout.split("\n")[:3]
    assert int(classes) == expected["probability"].shape[1]
    assert heavy == "[]"
    assert int(megabytes) < 100
