"""What `apply` makes, seen by MLflow's own client over the wire."""

from __future__ import annotations

import sys
from pathlib import Path

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "protocols" / "mlflow"))

from serving_mlflow import answering

from small import Project, rows


@pytest.mark.filterwarnings("ignore")
def test_an_applied_version_is_a_registered_model_and_loads(tmp_path: Path) -> None:
    import mlflow

    project = Project(tmp_path)
    project.write()
    project.declare()
    project.apply()
    table = rows(50, first=10_000)
    with project.opened() as keep, answering(keep) as address:
        mlflow.set_tracking_uri(address)
        mlflow.set_registry_uri(address)
        client = mlflow.MlflowClient()
        version = client.get_model_version_by_alias("late", "champion")
        assert (version.version, version.status) == ("1", "READY")
        run = client.get_run(version.run_id)
        assert run.info.status == "FINISHED"
        assert run.data.params and run.data.metrics
        assert {"MLmodel", "requirements.txt"} <= {
            each.path.rpartition("/")[2] for each in _files(address, version.source)
        }
        model = mlflow.pyfunc.load_model("models:/late@champion")
        found = model.predict(table[["x", "z", "place"]])
        assert (found == table["late"].to_numpy()).mean() > 0.7
        assert client.create_model_version("late", "models:/late/1").source == version.source
        path = version.source.removeprefix("mlflow-artifacts:/")
        answer = httpx.put(f"{address}/api/2.0/mlflow-artifacts/artifacts/{path}/MLmodel", content=b"x")
        assert (answer.status_code, answer.json()["error_code"]) == (403, "PERMISSION_DENIED")


def _files(address: str, source: str) -> list[object]:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return list(get_artifact_repository(source, tracking_uri=address).list_artifacts())
