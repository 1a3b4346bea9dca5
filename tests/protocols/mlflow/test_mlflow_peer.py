"""The same requests to a server of MLflow and to ours: what one takes the other takes, and refuses as it does."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "transfer"))

from mlflow_server import tracking_server


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of ``mlflow server`` with its default store."""
    with tracking_server(tmp_path_factory.mktemp("peer")) as address:
        yield address


class Asked:
    """A server, asked for operations of MLflow by their paths."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.http = httpx.Client(base_url=f"{address}/api/2.0/mlflow")

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.http.post(path, json=body)

    def run(self, **said: Any) -> str:
        made = self.post("runs/create", experiment_id="0", start_time=1, **said).json()
        return str(made["run"]["info"]["run_id"])

    def data(self, run_id: str) -> dict[str, dict[str, Any]]:
        """Params and tags of a run."""
        found = self.http.get("runs/get", params={"run_id": run_id}).json()["run"]["data"]
        return {
            kind: {each["key"]: each.get("value", "") for each in found.get(kind, [])}
            for kind in ("params", "tags")
        }


@pytest.fixture(scope="module")
def both(peer: str, place: str) -> Iterator[tuple[Asked, Asked]]:
    """The peer and ours."""
    asked = Asked(peer), Asked(place)
    yield asked
    for each in asked:
        each.http.close()


def said(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json().get("error_code", "")


def _sources(asked: Asked) -> dict[str, tuple[Any, ...]]:
    """What registering each source comes to: status, error, and the run that is read back."""
    run, other = asked.run(), asked.run()
    logged = asked.post("logged-models", experiment_id="0", name="m", source_run_id=run).json()["model"]["info"]
    model = logged["model_id"]
    place = asked.http.get("runs/get", params={"run_id": run}).json()["run"]["info"]["artifact_uri"]
    proxied = f"{asked.address}/api/2.0/mlflow-artifacts/artifacts/{place.removeprefix('mlflow-artifacts:/')}"
    names = {run: "run", other: "other", "": ""}
    name = f"m{run}"
    asked.post("registered-models/create", name=name)
    found = {}
    for what, body in {
        "of a run": {"source": f"runs:/{run}/f", "run_id": run},
        "of a run, not said": {"source": f"runs:/{run}/f"},
        "of a run, another said": {"source": f"runs:/{run}/f", "run_id": other},
        "of a run and a model": {"source": f"runs:/{run}/f", "run_id": run, "model_id": model},
        "of a server's run": {"source": f"runs://host/{run}/f", "run_id": run},
        "place of a run": {"source": f"{place}/f", "run_id": run},
        "place of a run, not said": {"source": f"{place}/f"},
        "place of a run, another said": {"source": f"{place}/f", "run_id": other},
        "place of a run, none such said": {"source": f"{place}/f", "run_id": "0" * 32},
        "place beside a run's": {"source": f"{place}2/f", "run_id": run},
        "place of a run, slashes": {"source": place.replace(":/", ":///") + "//f", "run_id": run},
        "place of a run, other case": {"source": place.replace("mlflow", "MLflow") + "/f", "run_id": run},
        "place of a run on a host": {"source": place.replace(":/", "://host/") + "/f", "run_id": run},
        "place of a run by http": {"source": f"{proxied}/f", "run_id": run},
        "place of a run by http, not said": {"source": f"{proxied}/f"},
        "place of a model": {"source": logged["artifact_uri"], "model_id": model},
        "place of a model, not said": {"source": logged["artifact_uri"]},
        "place of a model, its run said": {"source": logged["artifact_uri"], "run_id": run},
        "place of a model, another run said": {
            "source": logged["artifact_uri"],
            "run_id": other,
            "model_id": model,
        },
        "place of a run, a model said": {"source": f"{place}/f", "run_id": run, "model_id": model},
        "a model": {"source": f"models:/{model}", "model_id": model},
        "a model, not said": {"source": f"models:/{model}"},
        "a model, another said": {"source": f"models:/{model}", "model_id": "m-0"},
        "a model, another run said": {"source": f"models:/{model}", "model_id": model, "run_id": other},
        "a version": {"source": f"models:/{name}/1"},
        "a version, its run said": {"source": f"models:/{name}/1", "run_id": run},
        "a version, another run said": {"source": f"models:/{name}/1", "run_id": other},
        "a version, a model said": {"source": f"models:/{name}/1", "model_id": model},
        "elsewhere": {"source": "s3://b/f"},
        "elsewhere, a run said": {"source": "s3://b/f", "run_id": run},
    }.items():
        answer = asked.post("model-versions/create", name=name, **body)
        made = answer.json().get("model_version", {})
        found[what] = (*said(answer), names[made.get("run_id", "")])
    return found


def test_sources_must_be_of_the_run_or_model_that_is_named(both: tuple[Asked, Asked]) -> None:
    theirs, ours = map(_sources, both)
    assert ours == theirs
    assert theirs["of a run"] == (200, "", "run")
    assert theirs["of a run, not said"] == (400, "INVALID_PARAMETER_VALUE", "")
