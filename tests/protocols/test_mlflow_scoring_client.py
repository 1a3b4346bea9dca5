"""MLflow's own scoring client against a real serving process, beside what MLflow itself answers in process."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import pandas as pd
import pytest
from mlflow.models import infer_signature
from mlflow.pyfunc.scoring_server.client import ScoringServerClient
from serving_kit import Home, Worker, worker

sys.path.insert(0, str(Path(__file__).parents[1] / "formats"))
sys.path.insert(0, str(Path(__file__).parents[1] / "serve"))
from isolated_kit import written
from runtime_cases import frame, quiet, saved

from modelkeep.store.blobs import put_tree

pytestmark = pytest.mark.filterwarnings("ignore")
PARAMS: dict[str, Any] = {"factor": 2.0, "add": [0.0], "only": {"above": -1.0}}


def scaled() -> Any:
    """A model that cannot predict without its params."""

    class Scaled(mlflow.pyfunc.PythonModel):  # type: ignore[misc] # local, so it is pickled by value
        def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def] # MLflow reads hints
            if params["factor"] == 0.0:
                raise ValueError("nothing is left")
            found = model_input["a"].to_numpy() * params["factor"] + sum(params["add"])
            return found * (model_input["a"].to_numpy() > params["only"]["above"])

    return Scaled()


class Place:
    """A model behind a real serving process, and in MLflow's own hands."""

    def __init__(self, serving: Worker, folder: Path) -> None:
        host, _, port = serving.url.removeprefix("http://").partition(":")
        self.serving = serving
        self.client = ScoringServerClient(host, port)
        with quiet():
            self.own = mlflow.pyfunc.load_model(str(folder))


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
    with pytest.raises(Exception, match=r"error code 500.*nothing is left"):
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
