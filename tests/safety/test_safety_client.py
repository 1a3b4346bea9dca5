"""MLflow's own client against a server that asks who it is: password, token, and neither."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safety_site import PASSWORD, Site

SCRIPT = """
import sys, tempfile, pathlib
import mlflow
from mlflow.exceptions import MlflowException
mlflow.set_tracking_uri(sys.argv[1])
client = mlflow.MlflowClient()
name = sys.argv[2]
try:
    experiment = client.create_experiment(name)
except MlflowException as error:
    print("refused", error.get_http_status_code())
    sys.exit(0)
run = client.create_run(experiment)
client.log_metric(run.info.run_id, "a", 1.5)
client.log_param(run.info.run_id, "p", "x")
file = pathlib.Path(tempfile.mkdtemp()) / "f.txt"
file.write_text("content")
client.log_artifact(run.info.run_id, str(file))
client.set_terminated(run.info.run_id)
assert [found.info.run_id for found in client.search_runs([experiment])] == [run.info.run_id]
got = client.download_artifacts(run.info.run_id, "f.txt")
assert pathlib.Path(got).read_text() == "content"
client.create_registered_model(name)
version = client.create_model_version(name, f"runs:/{run.info.run_id}/x", run.info.run_id)
client.set_registered_model_alias(name, "live", version.version)
with mlflow.start_span(name="s") as span:
    span.set_inputs({"a": 1})
print("done")
"""


def environment(**extra: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")}
    fixed = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    return {**kept, **fixed, **extra}


@pytest.mark.parametrize(
    ("name", "credentials", "told"),
    [
        ("password", {"MLFLOW_TRACKING_USERNAME": "root", "MLFLOW_TRACKING_PASSWORD": PASSWORD}, "done"),
        ("token", {"MLFLOW_TRACKING_TOKEN": "{token}"}, "done"),
        ("nothing", {}, "refused 401"),
        ("wrong", {"MLFLOW_TRACKING_USERNAME": "root", "MLFLOW_TRACKING_PASSWORD": "nonsense"}, "refused 401"),
        ("reader", {"MLFLOW_TRACKING_TOKEN": "{reader}"}, "refused 403"),
    ],
)
def test_the_client_signs_in_as_it_always_did(
    place_of_all: Site, tmp_path: Path, name: str, credentials: dict[str, str], told: str
) -> None:
    if "looker" not in place_of_all.tokens:
        place_of_all.add("looker", "reader")
    tokens = {"token": place_of_all.tokens["root"], "reader": place_of_all.tokens["looker"]}
    given = {key: value.format(**tokens) for key, value in credentials.items()}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, place_of_all.address, f"{name}-{tmp_path.name}"],
        env=environment(**given),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().splitlines()[-1] == told
