"""A package: complete, deterministic, readable by an unmodified MLflow, and honest about itself."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import mlflow.pyfunc
import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from format_cases import INPUTS, features, table, target
from sklearn.ensemble import AdaBoostClassifier, HistGradientBoostingClassifier
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline

from modelkeep.core.errors import Damaged, Invalid, NotFound, Refused
from modelkeep.formats import environment, manifest, plots, samples, skops_io
from modelkeep.formats.frames import columns_of
from modelkeep.formats.inference import infer
from modelkeep.formats.onnx.graph import DOUBLE, Graph
from modelkeep.formats.onnx.weights import apart
from modelkeep.formats.package import Package, build, describe
from modelkeep.train.algorithms import resolve

EVALUATION: dict[str, Any] = {
    "task": "classification",
    "metric": "roc_auc",
    "rows": 1234,
    "confidence": 0.95,
    "metrics": {
        "accuracy": {"value": 0.9, "low": 0.88, "high": 0.92, "rows": 1234},
        "roc_auc": {"value": 0.812345, "low": None, "high": None, "rows": 1234},
        "log_loss": {"value": None, "low": None, "high": None, "rows": 0},
    },
    "slices": {
        "origin": [{"value": "J|FK", "rows": 600, "metrics": {"roc_auc": {"value": 0.8, "low": 0.7, "high": 0.9}}}]
    },
    "confusion": {"classes": ["a", "<b>"], "counts": [[5, 1], [0, 0]]},
    "roc": {"<b>": {"x": [0.0, 0.5, 1.0], "y": [0.0, 0.9, 1.0], "threshold": [1.0, 0.5, 0.0]}},
    "pr": {"<b>": {"x": [0.1, 1.0], "y": [1.0, 0.5], "threshold": [0.9, 0.1]}},
    "calibration": {"<b>": {"x": [0.2, 0.8], "y": [0.3, 0.7], "rows": [5.0, 5.0]}},
    "residuals": {},
}
GATES = [{"gate": "roc_auc >= 0.6", "passed": True, "evidence": "0.81 on 1,234 rows"}]


@cache
def classifier() -> tuple[Pipeline, Package]:
    data = table(200)
    y = target(data, "classification", ("a", "b"))
    model = HistGradientBoostingClassifier(max_iter=8, random_state=0)
    pipeline = Pipeline([("features", features()), ("model", model)]).fit(data.select(INPUTS).to_pandas(), y)
    return pipeline, build(pipeline, infer(data, INPUTS, "classification", ("a", "b")), data, extra={"more": b"x"})


def written(package: Package, folder: Path) -> Path:
    for name, data in package.files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def test_rows_to_warm_up_with_are_kept_as_they_were_without_what_is_masked() -> None:
    pipeline, _ = classifier()
    data = table(200)
    said = infer(data, INPUTS, "classification", ("a", "b"))
    few = data.slice(0, 8)
    kept = build(pipeline, said, data, rows=samples.of(columns_of(few, said), said, ["carrier", "at"])).files
    found = samples.recorded(kept)
    invented = samples.example(said)
    assert found["carrier"] == [invented["carrier"]] * 8
    assert found["at"] == [invented["at"]] * 8
    for name in ("distance", "größe", "count", "late", "origin"):
        assert found[name] == few.column(name).to_pylist()  # the first distance and the sixth carrier are missing
    whole = samples.of(columns_of(few, said), said)
    assert whole["carrier"] == few.column("carrier").to_pylist()
    batch = samples.batch(said, whole)
    assert batch["at"].tolist() == few.column("at").to_pylist()
    assert samples.of(columns_of(data.slice(0, 0), said), said) == {}


def test_weights_of_large_graphs_are_a_file_of_their_own_and_the_same_every_time() -> None:
    values = np.arange(3 << 20, dtype=np.float64).reshape(-1, 1024)
    graph = Graph()
    said = graph.op("MatMul", "numbers", graph.const(values))
    few = graph.op("Add", said, graph.const(np.ones(1024)))
    whole = graph.finish({"numbers": (DOUBLE, len(values))}, {"y": (few, DOUBLE, 1024)}, {})
    data, weights = apart(whole, "beside")
    assert apart(whole, "beside") == (data, weights)
    assert weights == values.tobytes()
    assert len(data) < 20_000
    assert apart(data, "beside") == (data, b"")  # what is small stays as it is


def test_rows_that_no_request_may_hold_are_not_kept() -> None:
    said = infer(pa.table({"x": [0.0, 1.0], "s": ["a", "b"]}), ["x", "s"], "regression")
    rows = {
        "x": np.array([1.0, np.inf, np.nan, 3.0]),
        "s": np.array(["a", "b", "c", "long" * samples.LONGEST], dtype=object),
    }
    assert samples.of(rows, said) == {"x": [1.0], "s": ["a"]}
    assert samples.of({name: column[1:] for name, column in rows.items()}, said) == {}


def test_every_file_is_listed_with_its_digest() -> None:
    _, package = classifier()
    described = describe(package, card={"model": "flights"}, evaluation=EVALUATION, gates=GATES)
    for made in (package, described):
        assert set(manifest.verify(made.files).files) == set(made.files) - {"manifest.json"}
    assert {"model.onnx", "model.skops", "signature.json", "MLmodel", "environment.txt", "more"} <= set(
        package.files
    )
    assert described.files["model.onnx"] == package.files["model.onnx"]
    assert msgspec.json.decode(described.files["evaluation.json"])["gates"] == GATES
    with pytest.raises(Damaged, match=r"README\.md"):
        manifest.verify({**described.files, "README.md": b"better"})


def test_a_package_of_a_later_format_is_refused_and_none_is_not_found() -> None:
    _, package = classifier()
    later = package.files["manifest.json"].replace(b'"format": 1', b'"format": 9')
    with pytest.raises(Refused, match="format 9"):
        manifest.read({"manifest.json": later})
    with pytest.raises(Damaged, match="cannot be read"):
        manifest.read({"manifest.json": b"{"})
    with pytest.raises(NotFound):
        manifest.read({})


@pytest.mark.slow
def test_equal_models_are_equal_bytes_in_another_process() -> None:
    code = """
import test_package as t
package = t.classifier()[1]
print(*(f"{name}={listed.blake3}" for name, listed in sorted(t.manifest.read(package.files).files.items())))
"""
    here = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=here)
    listed = manifest.read(classifier()[1].files).files
    assert done.stdout.split() == [f"{name}={entry.blake3}" for name, entry in sorted(listed.items())]


def test_the_card_tells_what_matters() -> None:
    _, package = classifier()
    facts = {"model": "flights", "description": "Late or not?", "parameters": {"max_iter": 8}}
    card = describe(package, card=facts, evaluation=EVALUATION, gates=GATES).files["README.md"].decode()
    assert card.startswith("# flights\n\nLate or not?\n")
    for line in (
        "On 1,234 rows the model was not fitted on.",
        "| accuracy | 0.9 | 0.88 to 0.92 |",
        "| **roc_auc** | 0.8123 |  |",
        "| log_loss | not defined |  |",
        "| `roc_auc >= 0.6` | passed | 0.81 on 1,234 rows |",
        "| J\\|FK | 600 | 0.8 | 0.7 to 0.9 |",
        "| `carrier` | string | no | DL, UA, rare, É∂, 日本 |",
        "| parameters | max_iter = 8 |",
        "![roc](plots/roc.svg)",
    ):
        assert line in card.split("\n"), line


def test_plots_are_well_formed_and_escape_names() -> None:
    made = plots.of_evaluation(EVALUATION) | {
        "residuals.svg": plots.residuals(
            {
                "predicted": [1.0, 2.0],
                "actual": [1.5, 2.5],
                "q05": [-1.0, -1.0],
                "q50": [0.0, 0.0],
                "q95": [1.0, 1.0],
            }
        )
    }
    assert set(made) == {"roc.svg", "precision_recall.svg", "calibration.svg", "confusion.svg", "residuals.svg"}
    for svg in made.values():
        assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert "&lt;b&gt;" in made["confusion.svg"]
    assert 'points="52.0,258.0 167.0,51.0 282.0,28.0"' in made["roc.svg"]


def test_an_unmodified_mlflow_loads_and_predicts(tmp_path: Path) -> None:
    pipeline, package = classifier()
    loaded = mlflow.pyfunc.load_model(str(written(package, tmp_path)))
    frame = table(50, seed=9).select(INPUTS).to_pandas()
    assert loaded.predict(frame).tolist() == pipeline.predict(frame).tolist()
    probability = loaded.predict(frame, params={"predict_method": "predict_proba"})
    np.testing.assert_allclose(probability, pipeline.predict_proba(frame), atol=1e-12)
    without = frame.drop(columns=["distance"])  # optional, as it had holes in training
    assert loaded.predict(without).tolist() == pipeline.predict(frame.assign(distance=np.nan)).tolist()
    with pytest.raises(Invalid, match="no 'decide'"):
        loaded.predict(frame, params={"predict_method": "decide"})


def test_mlflow_loads_the_scikit_learn_pipeline_too(tmp_path: Path) -> None:
    import mlflow.sklearn

    pipeline, package = classifier()
    frame = table(20, seed=9).select(INPUTS).to_pandas()
    loaded = mlflow.sklearn.load_model(str(written(package, tmp_path)))
    assert loaded.predict(frame).tolist() == pipeline.predict(frame).tolist()


def test_mlflow_loads_a_package_that_scikit_learn_runs(tmp_path: Path) -> None:
    data = pd.DataFrame({"x": np.repeat(np.arange(20.0), 2), "z": 1.0})
    model = KNeighborsClassifier(3, weights="distance").fit(data, np.arange(40) % 2)
    package = build(model, infer(_arrow(data), ["x", "z"], "classification", (0, 1)), _arrow(data))
    assert package.runtime == "sklearn"
    assert "disagree on" in package.note
    loaded = mlflow.pyfunc.load_model(str(written(package, tmp_path)))
    assert loaded.predict(data).tolist() == model.predict(data).tolist()


def test_disagreement_is_told_with_the_rows() -> None:
    """Twins among the training rows: which of them is nearest is a matter of taste, and ONNX has another."""
    rng = np.random.default_rng(0)
    data = pd.DataFrame({"x": np.repeat(rng.integers(0, 5, 60), 4).astype(float)})
    model = KNeighborsClassifier(3).fit(data, rng.integers(0, 2, 240))
    package = build(model, infer(_arrow(data), ["x"], "classification", (0, 1)), _arrow(data))
    assert package.runtime == "sklearn"
    assert "disagree on" in package.note and "of 240 rows" in package.note


def test_what_only_skl2onnx_converts_is_converted() -> None:
    data = table(150)
    y = target(data, "classification")
    pipeline = Pipeline([("features", features()), ("model", AdaBoostClassifier(n_estimators=5, random_state=0))])
    pipeline.fit(data.select(INPUTS).to_pandas(), y)
    package = build(pipeline, infer(data, INPUTS, "classification", (0, 1)), data)
    assert package.runtime == "onnx", package.note


@pytest.mark.parametrize("name", ["xgboost", "lightgbm"])
def test_boosted_trees_run_in_their_library_and_need_no_trust(name: str) -> None:
    data = table(200)
    algorithm = resolve(name, "classification", base=Path())
    params = algorithm.params({"n_estimators": 5, "n_jobs": 1}, seed=0, rows=200)
    pipeline = Pipeline([("features", features()), ("model", algorithm.estimator(params, smallest_class=9))])
    frame = data.select(INPUTS).to_pandas()
    pipeline.fit(frame, target(data, "classification", ("a", "b")))
    package = build(pipeline, infer(data, INPUTS, "classification", ("a", "b")), data)
    assert package.runtime == "sklearn"
    assert package.note.endswith(("XGBClassifier has no conversion", "LGBMClassifier has no conversion"))
    assert f"{name}==" in package.files["requirements.txt"].decode()
    kept = skops_io.loads(package.files["model.skops"])
    assert kept.predict(frame).tolist() == pipeline.predict(frame).tolist()
    assert set(kept.predict(frame)) == {"a", "b"}
    np.testing.assert_array_equal(kept.predict_proba(frame), pipeline.predict_proba(frame))


def test_the_lock_names_every_distribution_once() -> None:
    lines = environment.lock().splitlines()
    names = [line.partition("==")[0] for line in lines]
    assert names == sorted(set(names))
    assert "scikit-learn" in names and f"numpy=={np.__version__}" in lines
    assert any(line.startswith("onnxruntime==") for line in environment.requirements())


def test_regressors_need_no_classes() -> None:
    data = table(100)
    pipeline = Pipeline([("features", features()), ("model", Ridge())])
    pipeline.fit(data.select(INPUTS).to_pandas(), target(data, "regression"))
    package = build(pipeline, infer(data, INPUTS, "regression"), data)
    assert (package.runtime, package.note) == ("onnx", "")


def _arrow(frame: pd.DataFrame) -> Any:
    import pyarrow as pa

    return pa.Table.from_pandas(frame)


def test_the_number_of_threads_is_no_part_of_a_model() -> None:
    pipeline, _ = classifier()
    mapper = pipeline[-1]._bin_mapper
    before = mapper.n_threads
    try:
        mapper.n_threads = 7
        many = skops_io.dumps(pipeline)
        assert mapper.n_threads == 7
        mapper.n_threads = 2
        assert skops_io.dumps(pipeline) == many
    finally:
        mapper.n_threads = before
