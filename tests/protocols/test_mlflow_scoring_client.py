"""MLflow's own scoring client against a real serving process, beside what MLflow itself answers in process."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow.onnx
import mlflow.pyfunc
import numpy as np
import onnx.parser
import pandas as pd
import pytest
from mlflow.models import infer_signature
from mlflow.pyfunc.scoring_server import predictions_to_json
from mlflow.pyfunc.scoring_server.client import ScoringServerClient
from serving_kit import Home, Worker, worker

sys.path.insert(0, str(Path(__file__).parents[1] / "formats"))
sys.path.insert(0, str(Path(__file__).parents[1] / "serve"))
from isolated_kit import written
from runtime_cases import foreign, frame, quiet, saved

from modelkeep.core.errors import ModelkeepError
from modelkeep.formats import adopt
from modelkeep.formats.manifest import Folder
from modelkeep.formats.outputs import returned
from modelkeep.formats.signature import Field
from modelkeep.protocols.mlflow import predictions
from modelkeep.store.blobs import put_tree

pytestmark = pytest.mark.filterwarnings("ignore")
PARAMS: dict[str, Any] = {"factor": 2.0, "add": [0.0], "only": {"above": -1.0}, "form": "array"}
VALUES = ("array", "matrix", "list", "texts")
RECORDS = ("frame", "one column", "series", "nameless", "numbers", "mixed")
COLUMNS = ("dict", "one key", "tuple")


def scaled() -> Any:
    """A model that cannot predict without its params."""

    class Scaled(mlflow.pyfunc.PythonModel):  # type: ignore[misc] # local, so it is pickled by value
        def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def] # MLflow reads hints
            if params["factor"] == 0.0:
                raise ValueError("nothing is left")
            found = model_input["a"].to_numpy() * params["factor"] + sum(params["add"])
            found = found * (model_input["a"].to_numpy() > params["only"]["above"])
            heavy = found > 1.0
            made: dict[str, Callable[[], Any]] = {
                "array": lambda: found,
                "matrix": lambda: np.stack([found, found + 1], axis=1),
                "list": found.tolist,
                "texts": lambda: [f"it is {value}" for value in found],
                "frame": lambda: pd.DataFrame({"heavy": heavy, "score": found, "word": "x", 7: 1}),
                "one column": lambda: pd.DataFrame({"score": found}),
                "series": lambda: pd.Series(found, name="score"),
                "nameless": lambda: pd.Series(found),
                "dict": lambda: {"heavy": heavy, "score": found},
                "one key": lambda: {"score": found.tolist()},
                "tuple": lambda: (found, heavy),
                "numbers": lambda: [{"score": value, "half": value / 2} for value in found.tolist()],
                "mixed": lambda: [{"n": n, "word": "x", "many": [1, n]} for n in range(len(found))],
            }
            return made[params["form"]]()

    return Scaled()


class Place:
    """A model behind a real serving process, and in MLflow's own hands."""

    def __init__(self, serving: Worker, folder: Path) -> None:
        host, _, port = serving.url.removeprefix("http://").partition(":")
        self.serving = serving
        self.client = ScoringServerClient(host, port)
        self.own = own(folder)


def own(folder: Path) -> Any:
    """The model in MLflow's own hands."""
    with quiet():
        return mlflow.pyfunc.load_model(str(folder))


def as_mlflow(model: Any, rows: Any, params: dict[str, Any] | None = None) -> Any:
    """What MLflow's own server answers."""
    body = io.StringIO()
    predictions_to_json(model.predict(rows, params=params), body)
    return json.loads(body.getvalue())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    signature = infer_signature(frame(), params=PARAMS)
    files, trusted = saved(
        lambda to: mlflow.pyfunc.save_model(
            to,
            python_model=scaled(),
            signature=signature,
            input_example=(frame().head(3), PARAMS),
            pip_requirements=["numpy"],
        )
    )
    home = Home(tmp_path_factory.mktemp("client"))
    declared = {"deploy": {"cache": {"rows": 1000}}, "trust": list(trusted)}
    home.serve("scaled", (1, put_tree(home.blobs, files), 1.0, "stable"), declaration=declared)
    folder = written(files, tmp_path_factory.mktemp("folder")).path
    with worker(home) as serving:
        yield Place(serving, folder)


def test_the_client_finds_a_server_of_its_protocol(place: Place) -> None:
    place.client.wait_server_ready()
    place.client.ping()
    assert place.client.get_version()


@pytest.mark.parametrize(
    "params",
    [
        None,
        {},
        {"factor": 3},
        {"factor": 0.5, "add": [1, 2.5]},
        {"only": {"above": 0.5}},
        {"factor": 2.0, "add": []},
    ],
)
def test_params_reach_the_model_as_through_mlflow(place: Place, params: dict[str, Any] | None) -> None:
    rows = frame()
    for _ in range(2):  # the second time from the cache
        answer = place.client.invoke(rows, params=params).get_predictions("ndarray").tolist()
        assert answer == place.own.predict(rows, params=params).tolist()


@pytest.mark.parametrize("form", (*VALUES, *RECORDS, *COLUMNS))
@pytest.mark.parametrize("rows", [1, 40])
def test_what_a_model_returns_is_written_as_mlflow_writes_it(place: Place, form: str, rows: int) -> None:
    given = frame().head(rows)
    expected = as_mlflow(place.own, given, {"form": form})
    for _ in range(2):  # the second time from the cache
        assert place.client.invoke(given, params={"form": form}) == expected
    if form in RECORDS:
        found = place.client.invoke(given, params={"form": form}).get_predictions()
        assert len(found) == rows
        assert set(map(str, found.columns)) == set(expected["predictions"][0])


@pytest.mark.parametrize(
    ("params", "path"),
    [
        ({"factor": "much"}, "params.factor"),
        ({"factor": True}, "params.factor"),
        ({"add": 1.0}, "params.add"),
        ({"only": {"below": 1.0}}, "params"),
        ({"only": 1.0}, "params.only"),
    ],
)
def test_what_mlflow_refuses_is_refused_by_its_path(place: Place, params: dict[str, Any], path: str) -> None:
    with pytest.raises(mlflow.exceptions.MlflowException), quiet():
        place.own.predict(frame(3), params=params)
    with pytest.raises(Exception, match="error code 400") as refused:
        place.client.invoke(frame(3), params=params)
    assert problems(refused.value) == [path]


def test_params_that_no_signature_names_are_refused(place: Place) -> None:
    with pytest.raises(Exception, match="error code 400") as refused:
        place.client.invoke(frame(3), params={"temperature": 1.0, "predict_method": "predict_proba"})
    assert sorted(problems(refused.value)) == ["params.predict_method", "params.temperature"]


def test_errors_say_what_is_wrong(place: Place) -> None:
    with pytest.raises(Exception, match="error code 400") as refused:
        place.client.invoke(frame(3).drop(columns="a"))
    assert problems(refused.value) == ["inputs.a"]
    with pytest.raises(Exception, match=r"error code 400.*nothing is left"):
        place.client.invoke(frame(3), params={"factor": 0.0})


def problems(error: Exception) -> list[str]:
    """The paths of the problems in an answer, as the client raises it."""
    text = str(error).partition("response: ")[2].removesuffix(")")
    return [problem["path"] for problem in json.loads(text)["problems"]]


def test_calls_at_once_with_different_params_get_each_its_own_answer(place: Place) -> None:
    def ask(n: int) -> bool:
        rows = pd.DataFrame({"a": [float(n)], "b": [0.0], "c": [0.0]})
        params = None if n % 4 == 0 else {"factor": float(n % 4 + 10)}
        factor = 2.0 if params is None else params["factor"]
        return bool(place.client.invoke(rows, params=params)["predictions"] == [n * factor])

    with ThreadPoolExecutor(12) as pool:
        assert all(pool.map(ask, range(200)))


GRAPH = """
<ir_version: 8, opset_import: ["" : 18]>
g (float[N, 3] x) => (float[N, 1] low, float[N, 1] high)
<float[3, 1] w = {1.0, 2.0, 3.0}> {
    low = MatMul(x, w)
    high = Add(low, low)
}
"""
FUNCTIONS = {
    "several": 'return {"heavy": columns["a"] > 0.5, "prediction": columns["a"] / 2}',
    "single": 'return {"score": columns["a"] / 2}',
}


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Worker, dict[str, Any]]]:
    """Graphs as MLflow saves them, in its own hands too, and functions, behind one serving process."""
    home = Home(tmp_path_factory.mktemp("others"))
    graph = onnx.parser.parse_model(GRAPH)
    theirs: dict[str, Any] = {}
    for name, given in (("framed", frame()), ("tensors", frame().to_numpy(np.float32))):
        about = {"signature": infer_signature(given), "pip_requirements": ["numpy"]}
        files, _ = saved(lambda to, about=about: mlflow.onnx.save_model(graph, to, **about))
        theirs[name] = own(written(files, tmp_path_factory.mktemp(name)).path)
        home.serve(name, (1, put_tree(home.blobs, files), 1.0, "stable"))
    files = foreign("graph").files
    theirs["classifier"] = own(written(files, tmp_path_factory.mktemp("classifier")).path)
    home.serve("classifier", (1, put_tree(home.blobs, files), 1.0, "stable"))
    classifier = onnx.load_from_string(files["model.onnx"])
    about = {"signature": infer_signature(frame()), "pip_requirements": ["numpy"]}
    files, _ = saved(lambda to: mlflow.onnx.save_model(classifier, to, **about))
    home.serve("table", (1, put_tree(home.blobs, files), 1.0, "stable"))
    for name, body in FUNCTIONS.items():
        folder = tmp_path_factory.mktemp(name)
        (folder / "score.py").write_text(f"def predict(columns):\n    {body}\n")
        fields = [Field(name="a", type="float64")]
        trusted = (adopt.content_of(folder),)
        adopt.adopt_function(folder, "score.py", fields, {"a": [1.0]}, trusted=trusted)
        package = put_tree(home.blobs, dict(Folder(folder)))
        home.serve(name, (1, package, 1.0, "stable"), declaration={"trust": list(trusted)})
    with worker(home) as serving:
        yield serving, theirs


def client_of(serving: Worker, endpoint: str) -> ScoringServerClient:
    host, _, port = serving.url.removeprefix("http://").partition(":")
    return ScoringServerClient(host, f"{port}/endpoints/{endpoint}")


def test_a_graph_answers_as_through_mlflow(others: tuple[Worker, dict[str, Any]]) -> None:
    serving, theirs = others
    rows = frame().astype(np.float32)
    answer = client_of(serving, "framed").invoke(rows)
    assert set(answer["predictions"][0]) == {"low", "high"}
    assert answer == as_mlflow(theirs["framed"], rows.astype(float))
    answer = client_of(serving, "tensors").invoke(rows.to_numpy())
    assert set(answer["predictions"]) == {"low", "high"}
    assert answer == as_mlflow(theirs["tensors"], rows.to_numpy())


def test_a_graphs_probabilities_are_not_lost(others: tuple[Worker, dict[str, Any]]) -> None:
    serving, theirs = others
    rows = frame().to_numpy(np.float32)
    answer = client_of(serving, "classifier").invoke(rows)["predictions"]
    expected = as_mlflow(theirs["classifier"], rows)["predictions"]
    assert answer["label"] == expected["label"]
    np.testing.assert_allclose(answer["probabilities"], expected["probabilities"], atol=1e-6)
    records = client_of(serving, "table").invoke(frame())["predictions"]  # MLflow has no table of unequal widths
    assert [record["label"] for record in records] == expected["label"]
    found = [record["probabilities"] for record in records]
    np.testing.assert_allclose(found, expected["probabilities"], atol=1e-6)


def test_several_outputs_of_a_function_are_records(others: tuple[Worker, dict[str, Any]]) -> None:
    serving, _ = others
    rows = pd.DataFrame({"a": [0.25, 3.0]})
    expected = [{"heavy": False, "prediction": 0.125}, {"heavy": True, "prediction": 1.5}]
    assert client_of(serving, "several").invoke(rows)["predictions"] == expected
    assert client_of(serving, "single").invoke(rows)["predictions"] == [0.125, 1.5]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (
            pd.DataFrame([[1, 2, 3], [4, 5, 6]], columns=["a", "a", "b"]),
            [{"a": [1, 2], "b": 3}, {"a": [4, 5], "b": 6}],
        ),
        (pd.DataFrame([[1.5, 2.0], [3.0, None]], columns=[1, "1"]), [{"1": 2.0}, {"1": None}]),
        ([{"a": 1}, {"b": "x"}], [{"a": 1, "b": None}, {"a": None, "b": "x"}]),
        ([{"a": True, "b": False}] * 2, [{"a": True, "b": False}] * 2),
        ([{"a": 1, 2: 0.5}] * 2, [{"a": 1, "2": 0.5}] * 2),
        ([{}, {}], None),
    ],
)
def test_odd_tables_are_written_or_refused_before_the_door(found: Any, expected: Any) -> None:
    """A door that raises would leave a whole batch without its answers."""
    if expected is None:
        with pytest.raises(ModelkeepError, match="gave nothing for 2 rows"):
            returned(found, 2)
        return
    write = predictions.answer(returned(found, 2))
    assert json.loads(write(0, 2)) == {"predictions": expected}
    assert json.loads(write(1, 2)) == {"predictions": expected[1:]}
