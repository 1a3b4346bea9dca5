"""Models logged with MLflow's own client, deployed with one command, answered by a real serving process."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "protocols" / "mlflow"))
sys.path.insert(0, str(Path(__file__).parents[1] / "serve"))
sys.path.insert(0, str(Path(__file__).parents[1] / "formats"))

from runtime_cases import FUNCTION, frame, logistic, quiet, said, target
from serving_kit import Home, Worker, worker
from serving_mlflow import answering

from forks import Forks
from modelkeep.monitor import ingest
from modelkeep.registry import captures, endpoints, events, models
from modelkeep.store.blobs import read_tree
from small import Project, until

pytestmark = pytest.mark.filterwarnings("ignore")


class Place:
    """A home with models that a client logged, a serving process beside it, and commands."""

    def __init__(self, project: Project, forks: Forks, serving: Worker) -> None:
        self.project, self.forks, self.serving = project, forks, serving

    def run(self, *words: str) -> tuple[int, Any]:
        code, out = self.forks.done([*words, "--json"], self.project.folder)
        return code, json.loads(out)

    def ask(self, endpoint: str, rows: pd.DataFrame) -> dict[str, Any]:
        self.serving.until(
            lambda health: any(one["endpoint"] == endpoint for one in health["endpoints"]), limit=60
        )
        body = {
            "inputs": [
                {"name": name, "shape": [len(rows)], "datatype": "FP64", "data": column.tolist()}
                for name, column in rows.items()
            ]
        }
        answer = self.serving.infer(endpoint, body)
        assert answer.status_code == 200, answer.text
        return {one["name"]: np.array(one["data"]) for one in answer.json()["outputs"]}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Iterator[Place]:
    project = Project(tmp_path_factory.mktemp("foreign"))
    project.folder.mkdir(exist_ok=True)
    project.declare()
    with contextlib.ExitStack() as stack:
        keep = stack.enter_context(project.opened())
        address = stack.enter_context(answering(keep))
        with quiet():
            _log(address)
        yield Place(project, forks, stack.enter_context(worker(Home(keep.home), ready=False)))


def _log(address: str) -> None:
    import mlflow
    import xgboost
    from skl2onnx import to_onnx

    mlflow.set_tracking_uri(address)
    mlflow.set_registry_uri(address)
    mlflow.set_experiment("foreign")

    class Twice(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
        def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
            return model_input["a"] * 2

    X, y = frame(), target()
    graph = to_onnx(logistic(), X.to_numpy(np.float32)[:1], options={"zipmap": False})
    trees = xgboost.XGBClassifier(n_estimators=3).fit(X, y)
    with mlflow.start_run():
        mlflow.sklearn.log_model(
            logistic(), name="m", registered_model_name="churn", input_example=X.head(3), **said(X, y)
        )
        mlflow.pyfunc.log_model(name="p", python_model=Twice(), registered_model_name="twice", **said(X, X.a))
        mlflow.onnx.log_model(graph, name="g", registered_model_name="graph", **said(X, y))
        mlflow.xgboost.log_model(trees, name="x", registered_model_name="churn", **said(X, y))
        mlflow.sklearn.log_model(logistic(), name="n", registered_model_name="unsigned", pip_requirements=["x"])
    mlflow.MlflowClient().set_registered_model_alias("churn", "blessed", "1")


def test_a_pipeline_answers_under_its_alias_and_is_replaced_by_a_newer_version(place: Place) -> None:
    X = frame()
    code, done = place.run("deploy", "churn@blessed")
    assert (code, done["runtime"], done["endpoint"], done["version"]["version"]) == (0, "sklearn", "churn", 1)
    found = place.ask("churn", X)
    np.testing.assert_allclose(found["probability"].reshape(-1, 2), logistic().predict_proba(X), rtol=1e-9)
    code, done = place.run("deploy", "churn", "--because", "trees are better")
    assert (code, done["runtime"], done["version"]["aliases"]) == (0, "xgboost", ["champion"])
    place.serving.until(lambda health: _runtime(health, "churn") == "xgboost", limit=60)
    assert place.ask("churn", X)["label"].tolist() == target().tolist()
    assert place.run("rollback", "churn")[0] == 0
    place.serving.until(lambda health: _runtime(health, "churn") == "sklearn", limit=60)
    with place.project.opened() as keep, keep.db.read() as conn:
        told = events.history(conn, subject="churn")
        assert events.verify(conn) == []
        package = models.version(conn, "churn", 1).package
    moved = [event for event in told if event.kind in ("version.promoted", "version.rolled_back")]
    assert [(event.kind, event.subject) for event in moved] == [
        ("version.promoted", "churn@1"),
        ("version.promoted", "churn@2"),
        ("version.rolled_back", "churn@1"),
    ]
    assert moved[1].data["because"] == "trees are better"
    assert {"MLmodel", "manifest.json", "sample.json", "signature.json"} <= set(read_tree(keep.blobs, package))


def _runtime(health: dict[str, Any], endpoint: str) -> str:
    return str(next(one["routes"][0]["runtime"] for one in health["endpoints"] if one["endpoint"] == endpoint))


def test_code_runs_only_when_its_digest_is_trusted(place: Place) -> None:
    code, refused = place.run("deploy", "twice")
    assert (code, refused["error"]["kind"]) == (1, "refused")
    assert "would run the code that its MLflow folder brings" in refused["error"]["message"]
    digest = refused["error"]["hint"].split()[-1]
    assert place.run("deploy", "twice", "--trust", digest[:-1] + "x")[0] == 1
    code, done = place.run("deploy", "twice", "--trust", digest, "--memory", "2000")
    assert (code, done["runtime"], done["content"]) == (0, "pyfunc", digest)
    assert place.ask("twice", frame())["prediction"].tolist() == (frame().a * 2).tolist()
    health = place.serving.health()
    apart = next(one["routes"][0]["apart"] for one in health["endpoints"] if one["endpoint"] == "twice")
    assert apart["memory_limit"] == 2000 << 20
    assert apart["processes"][0]["pss_bytes"] > 10 << 20
    assert place.run("deploy", "twice@1")[0] == 0, "what an endpoint trusts stays trusted"
    with place.project.opened() as keep, keep.db.read() as conn:
        granted = events.history(conn, subject="twice", kind="trust.granted")
    assert [event.data for event in granted] == [{"endpoint": "twice", "trust": [digest]}]


def test_a_graph_runs_in_the_serving_process(place: Place) -> None:
    code, done = place.run("deploy", "graph@1", "--endpoint", "onnx")
    assert (code, done["runtime"], done["endpoint"]) == (0, "graph", "onnx")
    found = place.ask("onnx", frame())
    np.testing.assert_allclose(found["probabilities"].reshape(-1, 2), logistic().predict_proba(frame()), atol=1e-5)
    health = place.serving.health()
    assert next(o["routes"][0]["apart"] for o in health["endpoints"] if o["endpoint"] == "onnx") is None


def test_an_endpoint_is_told_what_a_declaration_could_say(place: Place) -> None:
    said = ["monitor.log.sample=1", "monitor.log.mask=[b]", "deploy.errors=redacted", "deploy.cache.rows=100"]
    words = [word for one in said for word in ("--set", one)]
    code, done = place.run("deploy", "graph@1", "--endpoint", "told", *words, "--set", "deploy.batch.budget=2s")
    assert code == 0, done
    X = frame()
    for _ in range(2):
        place.ask("told", X)
    wrong = place.serving.infer("told", {"inputs": [{"name": "a", "shape": [1], "datatype": "FP64", "data": [1]}]})
    assert wrong.status_code == 400
    assert "is not what is expected here" in wrong.text, "errors are redacted"

    def captured() -> int:
        with place.project.opened() as keep:
            ingest.take_in(keep.home / "capture", keep.db, keep.blobs)
            with keep.db.read() as conn:
                return captures.total_rows(conn, "told")

    until(lambda: captured() == 2 * len(X))
    with place.project.opened() as keep, keep.db.read() as conn:
        (part, *_) = [one for one in captures.between(conn, "told", 0.0, float("inf")) if one.digest]
        names = ingest.rows_of(keep.blobs, part).column_names
    assert ("in.a" in names, "in.b" in names) == (True, False), names


@pytest.mark.parametrize(
    ("said", "path", "message"),
    [
        ("deploy.batch.budgt=1s", "deploy.batch.budgt", "did you mean 'budget'"),
        ("deploy.batch.budget=soon", "deploy.batch.budget", "is not a duration"),
        ("deploy.cache.rows=-1", "deploy.cache.rows", "out of range"),
        ("deploy.rollout=[canary 5% 10m]", "deploy.rollout", "are by hand"),
        ("deploy.batch=1", "deploy.batch", "expected"),
        ("train.algorithm=x", "train.algorithm", "no field under deploy"),
        ("monitor.log.mask=[nobody]", "monitor.log.mask", "nobody"),
        ("monitor.log.mask=[", "monitor.log.mask", "no YAML"),
        ("deploy.batch.budget", "", "expected FIELD=VALUE"),
    ],
)
def test_a_setting_that_is_none_says_why(place: Place, said: str, path: str, message: str) -> None:
    code, told = place.run("deploy", "graph@1", "--endpoint", "never", "--set", said)
    assert code == 2
    assert message in json.dumps(told["error"])
    assert path in json.dumps(told["error"])
    with place.project.opened() as keep, keep.db.read() as conn:
        assert endpoints.get(conn, "never") is None


def test_a_model_without_a_signature_is_given_whole_requests_when_trusted(place: Place) -> None:
    code, said_so = place.run("deploy", "unsigned")
    assert said_so["error"]["kind"] == "refused"
    code, done = place.run("deploy", "unsigned", "--trust", said_so["error"]["hint"].split()[-1])
    assert (code, done["runtime"]) == (0, "pyfunc")
    assert "has no signature" in done["note"]
    place.serving.until(lambda health: any(one["endpoint"] == "unsigned" for one in health["endpoints"]), limit=60)
    body = {"dataframe_split": frame().to_dict(orient="split", index=False)}
    answer = place.serving.client.post("/endpoints/unsigned/invocations", json=body)
    assert answer.json() == {"predictions": logistic().predict(frame()).tolist()}, answer.text


def test_what_cannot_be_deployed_says_why(place: Place) -> None:
    assert place.run("deploy", "nobody")[0] == 3
    assert place.run("deploy", "churn@9")[0] == 3
    place.run("deploy", "graph", "--endpoint", "taken")
    code, said_so = place.run("deploy", "churn", "--endpoint", "taken")
    assert (code, said_so["error"]["kind"]) == (1, "conflict")


def test_a_python_function_becomes_a_version(place: Place) -> None:
    folder = place.project.folder
    (folder / "score.py").write_text(FUNCTION)
    (folder / "factors.json").write_text('{"a": 1.0, "b": -2.0}')
    frame().to_csv(folder / "rows.csv", index=False)
    words = ("deploy", "score", "--function", "score.py", "--sample", "rows.csv")
    code, said_so = place.run(*words)
    assert code == 2
    assert "load in score.py raised" in said_so["error"]["message"]
    assert "factors.json" in said_so["error"]["message"]
    code, done = place.run(*words, "--with", "factors.json")
    assert (code, done["runtime"], done["version"]["version"]) == (0, "function", 1)
    found = place.ask("score", frame())
    np.testing.assert_allclose(found["total"], frame().a - 2 * frame().b)
    assert found["many"].tolist() == (frame().a > 0.5).tolist()
    code, told = place.run("predict", "score@1", "rows.csv")
    assert code == 0, told
    np.testing.assert_allclose(told["predictions"]["total"], frame().a - 2 * frame().b)
    assert place.run("deploy", "score", "--function", "score.py")[0] == 2
    assert place.run(*words, "--with", "score.py")[0] == 2
    assert place.run("deploy", "score", "--function", "nothing.py", "--sample", "rows.csv")[0] == 2
    with place.project.opened() as keep, keep.db.read() as conn:
        assert [event.data["trust"] for event in events.history(conn, subject="score", kind="trust.granted")] == [
            [done["content"]]
        ]
