"""Autologging and model logging of the frameworks people train with, and MLflow's command line, against us."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from serving_mlflow import answering

from forks import Forks
from small import Project

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    project = Project(tmp_path_factory.mktemp("frameworks"))
    with project.opened() as keep, answering(keep) as address:
        yield address


@pytest.fixture
def tracked(server: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    import mlflow

    mlflow.set_tracking_uri(server)
    mlflow.set_registry_uri(server)
    mlflow.set_experiment(request.node.name)
    yield mlflow
    for library in (
        "sklearn",
        "xgboost",
        "lightgbm",
    ):  # what was turned on by name is not turned off for all at once
        if f"mlflow.{library}" in sys.modules:
            getattr(mlflow, library).autolog(disable=True)
    if mlflow.active_run() is not None:
        mlflow.end_run()


def sample() -> tuple[np.ndarray, np.ndarray]:
    chance = np.random.default_rng(0)
    x = chance.normal(size=(120, 4)).astype(np.float32)
    return x, (x[:, 0] + 0.1 * x[:, 1] > 0).astype(np.int64)


def last_run(mlflow: Any) -> Any:
    found = mlflow.search_runs(output_format="list", max_results=1)[0]
    assert found.info.status == "FINISHED"
    return found


def logged_model(mlflow: Any, run: Any) -> Any:
    models = mlflow.search_logged_models(
        filter_string=f"source_run_id = '{run.info.run_id}'", output_format="list"
    )
    assert len(models) == 1
    return models[0]


@pytest.mark.usefixtures("quick_python")
def test_xgboost(tracked: Any) -> None:
    import xgboost

    x, y = sample()
    tracked.xgboost.autolog(model_format="json")
    xgboost.train({"max_depth": 3, "objective": "binary:logistic"}, xgboost.DMatrix(x, label=y), 5)
    run = last_run(tracked)
    assert run.data.params["max_depth"] == "3"
    back = tracked.pyfunc.load_model(logged_model(tracked, run).model_uri)
    assert ((back.predict(x) > 0.5) == y).mean() > 0.9


@pytest.mark.usefixtures("quick_python")
def test_lightgbm(tracked: Any) -> None:
    import lightgbm

    x, y = sample()
    tracked.lightgbm.autolog()
    data = lightgbm.Dataset(x, label=y)
    settings = {"objective": "binary", "verbose": -1, "metric": "auc", "num_threads": 1}
    lightgbm.train(settings, data, 5, valid_sets=[data], valid_names=["train"])
    run = last_run(tracked)
    assert run.data.metrics["train-auc"] > 0.9
    history = tracked.MlflowClient().get_metric_history(run.info.run_id, "train-auc")
    assert [point.step for point in history] == [0, 1, 2, 3, 4]
    back = tracked.pyfunc.load_model(logged_model(tracked, run).model_uri)
    assert ((back.predict(x) > 0.5) == y).mean() > 0.9


def test_scikit_learn_search(tracked: Any) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    x, y = sample()
    tracked.sklearn.autolog(max_tuning_runs=2, log_models=False)
    with tracked.start_run() as run:
        GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0, 10.0]}, cv=2).fit(x, y)
    children = tracked.search_runs(
        filter_string=f"tags.mlflow.parentRunId = '{run.info.run_id}'", output_format="list"
    )
    assert len(children) == 2
    parent = tracked.get_run(run.info.run_id)
    assert parent.inputs.dataset_inputs[0].dataset.name == "dataset"
    assert "best_C" in parent.data.params


def test_torch(tracked: Any) -> None:
    import torch

    x, y = sample()
    net = torch.nn.Linear(4, 1)
    step = torch.optim.SGD(net.parameters(), lr=0.5)
    with tracked.start_run() as run:
        for epoch in range(20):
            step.zero_grad()
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                net(torch.from_numpy(x))[:, 0], torch.from_numpy(y).float()
            )
            loss.backward()
            step.step()
            tracked.log_metric("loss", loss.item(), step=epoch)
        info = tracked.pytorch.log_model(
            net, name="net", registered_model_name="torch-net", input_example=x[:2], pip_requirements=["torch"]
        )
    points = tracked.MlflowClient().get_metric_history(run.info.run_id, "loss")
    assert points[-1].value < points[0].value
    tracked.MlflowClient().set_registered_model_alias("torch-net", "champion", info.registered_model_version)
    back = tracked.pyfunc.load_model("models:/torch-net@champion")
    assert ((back.predict(x)[:, 0] > 0) == y).mean() > 0.9


def test_autolog(server: str, forks: Forks, tmp_path: Path) -> None:
    """``mlflow.autolog()`` by itself, for libraries imported before and after it."""
    said = _python(
        forks,
        """
import mlflow
import numpy as np
from sklearn.linear_model import LogisticRegression
mlflow.set_experiment("autolog")
mlflow.autolog()
import lightgbm
rows = np.random.default_rng(0).normal(size=(120, 4))
truth = (rows[:, 0] > 0).astype(int)
with mlflow.start_run(run_name="linear"):
    LogisticRegression(C=0.5).fit(rows, truth)
settings = {"objective": "binary", "verbose": -1, "num_threads": 1, "num_leaves": 7}
lightgbm.train(settings, lightgbm.Dataset(rows, label=truth), 3)
trees, linear = mlflow.search_runs(output_format="list")
assert linear.info.status == trees.info.status == "FINISHED", (linear.info, trees.info)
assert linear.data.params["C"] == "0.5" and linear.data.metrics["training_accuracy_score"] > 0.9, linear.data
assert trees.data.params["num_leaves"] == "7", trees.data.params
assert {dataset.tags[0].value for dataset in linear.inputs.dataset_inputs} == {"train"}, linear.inputs
for run, threshold in ((linear, 0), (trees, 0.5)):
    (model,) = mlflow.search_logged_models(
        filter_string=f"source_run_id = '{run.info.run_id}'", output_format="list"
    )
    back = mlflow.pyfunc.load_model(model.model_uri)
    assert ((back.predict(rows) > threshold) == truth).mean() > 0.9, model
print("done")
""",
        server,
        tmp_path,
    )
    assert said.split()[-1] == "done"


def test_autolog_of_plain_torch(server: str, forks: Forks, tmp_path: Path) -> None:
    """There is nothing to patch in a loop of one's own: it must go on, and what it logs itself must come."""
    said = _python(
        forks,
        """
import mlflow
import torch
mlflow.set_experiment("plain torch")
mlflow.pytorch.autolog()
rows = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
truth = (rows[:, :1] > 0).float()
net = torch.nn.Linear(4, 1)
step = torch.optim.SGD(net.parameters(), lr=0.5)
with mlflow.start_run() as run:
    for epoch in range(5):
        step.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(net(rows), truth)
        loss.backward()
        step.step()
        mlflow.log_metric("loss", loss.item(), step=epoch)
    info = mlflow.pytorch.log_model(net, name="net", input_example=rows[:2].numpy(), pip_requirements=["torch"])
found = mlflow.get_run(run.info.run_id)
assert found.info.status == "FINISHED"
assert len(mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss")) == 5
back = mlflow.pytorch.load_model(info.model_uri)
assert torch.equal(back(rows), net(rows))
print("done")
""",
        server,
        tmp_path,
    )
    assert said.split()[-1] == "done"


def test_keras(server: str, forks: Forks, tmp_path: Path) -> None:
    """In a process of its own: Keras chooses its back end when it is imported."""
    said = _python(
        forks,
        """
import keras
import mlflow
import numpy as np
from mlflow.keras import MlflowCallback
rows = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
truth = (rows[:, 0] > 0).astype("float32")
mlflow.set_experiment("keras")

def network():
    net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, activation="sigmoid")])
    net.compile("sgd", "binary_crossentropy", metrics=["accuracy"])
    return net

def history(run):
    return [point.step for point in mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss")]

by_hand = network()
with mlflow.start_run() as run:
    by_hand.fit(rows, truth, epochs=2, verbose=0, callbacks=[MlflowCallback(run)])
    info = mlflow.keras.log_model(by_hand, name="model", pip_requirements=["keras"])
found = mlflow.get_run(run.info.run_id)
assert found.data.params["optimizer_name"].lower() == "sgd", found.data.params
assert history(run) == [0, 1], history(run)
wanted = by_hand.predict(rows, verbose=0)
np.testing.assert_allclose(mlflow.keras.load_model(info.model_uri).predict(rows, verbose=0), wanted, rtol=1e-5)

mlflow.keras.autolog(registered_model_name="net")
net = network()
net.fit(rows, truth, epochs=3, verbose=0, batch_size=16)
run = mlflow.last_active_run()
assert run.info.status == "FINISHED", run.info
assert run.data.params["batch_size"] == "16" and run.data.params["epochs"] == "3", run.data.params
assert history(run) == [0, 1, 2], history(run)
assert run.inputs.dataset_inputs[0].dataset.name == "dataset", run.inputs
mlflow.MlflowClient().set_registered_model_alias("net", "champion", 1)
wanted = net.predict(rows, verbose=0)
back = mlflow.pyfunc.load_model("models:/net@champion")
np.testing.assert_allclose(back.predict(rows), wanted, rtol=1e-5)
assert back.metadata.run_id == run.info.run_id
print("done")
""",
        server,
        tmp_path,
        KERAS_BACKEND="torch",
    )
    assert said.split()[-1] == "done"


def test_the_command_line(server: str, forks: Forks, tmp_path: Path) -> None:
    """``mlflow experiments``, ``runs`` and ``artifacts``, one interpreter for all."""
    (tmp_path / "note.txt").write_text("kept")
    said = _python(
        forks,
        """
import json
import mlflow
from click.testing import CliRunner
from mlflow.cli import cli

def run(*words):
    done = CliRunner().invoke(cli, list(words))
    assert done.exit_code == 0, (words, done.output, done.exception)
    return done.output

run("experiments", "create", "-n", "by hand")
number = mlflow.get_experiment_by_name("by hand").experiment_id
assert "by hand" in run("experiments", "search", "--view", "all")
run("experiments", "rename", "--experiment-id", number, "--new-name", "renamed")
with mlflow.start_run(experiment_id=number, run_name="first") as made:
    mlflow.log_metric("m", 1.5)
id = made.info.run_id
assert id in run("runs", "list", "--experiment-id", number)
assert json.loads(run("runs", "describe", "--run-id", id))["data"]["metrics"]["m"] == 1.5
run("artifacts", "log-artifact", "--local-file", "note.txt", "--run-id", id, "--artifact-path", "deep")
assert "deep" in run("artifacts", "list", "--run-id", id)
where = run("artifacts", "download", "--run-id", id, "--artifact-path", "deep/note.txt", "-d", "down")
assert open(where.strip().splitlines()[-1]).read() == "kept"
run("runs", "delete", "--run-id", id)
assert id not in run("runs", "list", "--experiment-id", number)
run("runs", "restore", "--run-id", id)
run("experiments", "delete", "--experiment-id", number)
run("experiments", "restore", "--experiment-id", number)
print("done")
""",
        server,
        tmp_path,
    )
    assert said.split()[-1] == "done"


MODEL = """
import mlflow
import numpy as np
from sklearn.linear_model import LogisticRegression
rows = np.array([[-2.0, 0.0], [-1.0, 1.0], [1.0, 0.0], [2.0, 1.0]])
mlflow.set_experiment(f"commands {name}")
with mlflow.start_run() as made:
    info = mlflow.sklearn.log_model(
        LogisticRegression().fit(rows, [0, 0, 1, 1]), name="model", registered_model_name=name,
        pip_requirements=["scikit-learn==1.0"], input_example=rows[:1],
    )
mlflow.MlflowClient().set_registered_model_alias(name, "champion", info.registered_model_version)
"""
ROWS = '{"inputs": [[-3.0, 0.0], [3.0, 0.0]]}'


def test_the_commands_for_models(server: str, forks: Forks, tmp_path: Path) -> None:
    """``mlflow models``, save ``serve`` (below), ``build-docker`` and ``prepare-env``, which make environments."""
    (tmp_path / "rows.json").write_text(ROWS)
    (tmp_path / "rows.csv").write_text("0,1\n-3,0\n3,0\n")
    said = _python(
        forks,
        'import mlflow\nname = "predicted"'
        + MODEL
        + """
import json
from pathlib import Path
from click.testing import CliRunner
from mlflow.cli import cli

def run(*words):
    done = CliRunner().invoke(cli, ["models", *words])
    assert done.exit_code == 0, (words, done.output, done.exception)

for uri in (f"models:/{name}@champion", f"models:/{name}/1", info.model_uri, f"runs:/{made.info.run_id}/model"):
    run("predict", "-m", uri, "-i", "rows.json", "-o", "said.json", "--env-manager", "local")
    assert json.loads(Path("said.json").read_text()) == {"predictions": [0, 1]}, uri
run("generate-dockerfile", "-m", f"models:/{name}@champion", "-d", "image", "--env-manager", "virtualenv")
assert "COPY model_dir" in Path("image", "Dockerfile").read_text()
assert "scikit-learn==1.0" in Path("image", "model_dir", "requirements.txt").read_text()
run("update-pip-requirements", "-m", info.model_uri, "add", "scikit-learn==1.1", "pandas")
run("update-pip-requirements", "-m", info.model_uri, "remove", "mlflow")
for uri in (info.model_uri, f"models:/{name}/1"):
    kept = Path(mlflow.artifacts.download_artifacts(uri), "requirements.txt").read_text().split()
    assert sorted(kept) == ["pandas", "scikit-learn==1.1"], kept
print("done")
""",
        server,
        tmp_path,
    )
    assert said.split()[-1] == "done"


def test_the_command_that_serves(server: str, forks: Forks, tmp_path: Path) -> None:
    _python(forks, 'import mlflow\nname = "served"' + MODEL, server, tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["models", "serve", "-m", "models:/served@champion", "--env-manager", "local", "-p", str(port)]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # where uvicorn is
    env = {"MLFLOW_TRACKING_URI": server, "MLFLOW_REGISTRY_URI": server, "PATH": path}
    serving = forks.run(words, tmp_path, env, program="mlflow")
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            while True:
                try:
                    client.get("/ping").raise_for_status()
                    break
                except httpx.HTTPError:
                    assert not serving.ended.wait(0.1), serving.told()
            kind = {"content-type": "application/json"}
            assert client.post("/invocations", content=ROWS, headers=kind).json() == {"predictions": [0, 1]}
    finally:
        serving.kill()  # and the server with it, which asks to be told of the end of its parent


def _python(forks: Forks, program: str, server: str, folder: Path, **more: str) -> str:
    env = {**os.environ, "MLFLOW_TRACKING_URI": server, "MLFLOW_REGISTRY_URI": server, **more}
    quick = f"import sys; sys.executable = {str(forks.commands / 'python')!r}\n"  # for what mlflow starts
    done = subprocess.run(
        [str(forks.commands / "python"), "-c", quick + program],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout
