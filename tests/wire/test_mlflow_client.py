"""What `apply` makes, seen by MLflow's own client over the wire."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import cast

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "protocols" / "mlflow"))

from serving_mlflow import answering

from modelkeep.core.ports import Silent
from modelkeep.lifecycle.gc import collect
from modelkeep.registry import endpoints, holds
from modelkeep.registry.verify import verify
from modelkeep.store.blobs import Blobs
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


@pytest.mark.filterwarnings("ignore")
def test_copies_of_an_applied_version_outlive_it(project: Project) -> None:
    """Their files stay, through deletion of the original and its model, of all runs, and gc."""
    import mlflow

    project.apply()
    table = rows(5, first=10_000)[["x", "z", "place"]]
    with project.opened() as keep, answering(keep) as address:
        mlflow.set_tracking_uri(address)
        mlflow.set_registry_uri(address)
        client = mlflow.MlflowClient()
        before = mlflow.pyfunc.load_model("models:/late/1").predict(table)
        original = client.get_model_version("late", "1")
        copies = [client.copy_model_version("models:/late/1", "copies")]
        copies.append(client.copy_model_version("models:/copies/1", "further"))
        keep.db.write(lambda conn: holds.add(conn, "version", "further@1", "case 1", now=1.0))
        keep.db.write(lambda conn: endpoints.remove(conn, "late"))
        client.delete_model_version("late", "1")
        client.delete_registered_model("late")
        with pytest.raises(mlflow.MlflowException, match="legal hold"):
            client.delete_run(original.run_id)
        keep.db.write(lambda conn: holds.release(conn, "version", "further@1", "over", now=2.0))
        client.delete_run(original.run_id)
        copies.append(client.create_model_version("copies", original.source, run_id=original.run_id))
        collect(keep, Silent(), older_than=-1.0, grace=-1.0)
        for copy in copies:
            found = mlflow.pyfunc.load_model(f"models:/{copy.name}/{copy.version}").predict(table)
            assert (found == before).all()
            assert client.get_model_version_download_uri(copy.name, copy.version) == original.source
        assert verify(keep.db, cast("Blobs", keep.blobs)) == []
        for copy in copies:
            client.delete_model_version(copy.name, copy.version)
        path = original.source.removeprefix("mlflow-artifacts:/")
        answer = httpx.get(f"{address}/api/2.0/mlflow-artifacts/artifacts/{path}/MLmodel")
        assert answer.status_code == 404


def _files(address: str, source: str) -> list[object]:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return list(get_artifact_repository(source, tracking_uri=address).list_artifacts())
