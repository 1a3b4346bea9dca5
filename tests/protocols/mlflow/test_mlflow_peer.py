"""The same requests to a server of MLflow and to ours: what one takes the other takes, and refuses as it does."""

from __future__ import annotations

import sys
import time
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


LONG = "v" * 9000
WRITES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("runs/log-parameter", {"key": "long", "value": LONG}),
    ("runs/log-parameter", {"key": "long", "value": LONG + "w"}),
    ("runs/log-parameter", {"key": "long", "value": LONG[:6000]}),
    ("runs/log-parameter", {"key": "long", "value": LONG[:5999]}),
    ("runs/log-parameter", {"key": "none"}),
    ("runs/log-parameter", {"key": "", "value": "v"}),
    ("runs/log-parameter", {"value": "v"}),
    ("runs/log-parameter", {"key": "k" * 250, "value": "v"}),
    ("runs/log-parameter", {"key": "k" * 251, "value": "v"}),
    ("runs/log-parameter", {"key": "a#b", "value": "v"}),
    ("runs/set-tag", {"key": "long", "value": LONG}),
    ("runs/set-tag", {"key": "none"}),
    ("runs/set-tag", {"key": "", "value": "v"}),
    ("runs/set-tag", {"value": "v"}),
    ("runs/set-tag", {"key": "k" * 251, "value": "v"}),
    ("runs/set-tag", {"key": "../b", "value": "v"}),
    ("runs/log-batch", {"params": [{"key": "b", "value": LONG}], "tags": [{"key": "b", "value": LONG}]}),
    ("runs/log-batch", {"params": [{"key": "c"}], "tags": [{"key": "c"}]}),
    ("runs/log-batch", {"params": [{"key": "", "value": "v"}]}),
    ("runs/log-batch", {"tags": [{"key": "", "value": "v"}]}),
    ("runs/log-batch", {"params": [{"key": "k" * 251, "value": "v"}]}),
    ("runs/log-batch", {"params": [{"key": "d", "value": "1"}, {"key": "d", "value": "1"}]}),
    ("runs/log-batch", {"params": [{"key": "e", "value": "1"}, {"key": "e", "value": "2"}]}),
    ("runs/log-batch", {"params": [{"key": "f", "value": LONG}, {"key": "f", "value": LONG + "w"}]}),
    ("runs/log-batch", {"tags": [{"key": "d", "value": "1"}, {"key": "d", "value": "2"}]}),
)


def test_long_values_and_odd_keys_are_taken_alike(both: tuple[Asked, Asked]) -> None:
    outcomes = []
    for asked in both:
        run = asked.run()
        answers = [said(asked.post(path, run_id=run, **body)) for path, body in WRITES]
        data = asked.data(run)
        del data["tags"]["mlflow.runName"]
        outcomes.append((answers, data))
    assert outcomes[1] == outcomes[0]
    assert [len(outcomes[0][1][kind]["long"]) for kind in ("params", "tags")] == [6000, 8000]


BEGINNINGS: tuple[list[tuple[str, str]], ...] = (
    [("long", LONG)],
    [("a#b", "1"), ("../c", "2"), ("/d", "3"), ("", "4"), ("é\n", "5")],
    [(f"t{at}", "v") for at in range(300)],
    [("k" * 250, "v")],
)


def test_runs_begin_with_any_tags(both: tuple[Asked, Asked]) -> None:
    for tags in BEGINNINGS:
        given = [{"key": key, "value": value} for key, value in tags]
        found = [asked.data(asked.run(tags=given))["tags"] for asked in both]
        for each in found:
            del each["mlflow.runName"]
        assert found[1] == found[0] == dict(tags)


def test_a_batch_may_be_larger_than_a_megabyte(both: tuple[Asked, Asked]) -> None:
    """MLflow names a limit of 1,000,000 bytes, but compares it with something else: its server takes more."""
    batch = {
        "params": [{"key": f"p{at}", "value": "v" * 6000} for at in range(100)],
        "tags": [{"key": f"t{at}", "value": "v" * 8000} for at in range(100)],
    }
    for asked in both:
        run = asked.run()
        assert said(asked.post("runs/log-batch", run_id=run, **batch)) == (200, "")
        assert len(asked.data(run)["params"]) == 100


def _found(asked: Asked, path: str, key: str, **body: Any) -> Any:
    """Names of what a search finds, in order of their names; the error when it is refused."""
    answer = asked.post(path, **body)
    if answer.status_code != 200:
        return said(answer)
    found = [each["info"] for each in answer.json().get(key, [])]
    return sorted(each.get("run_name") or each["name"] for each in found)


OF_NAN = [f"metrics.m {op} {number}" for op in ("=", "!=", "<", "<=", ">", ">=") for number in (0, 1, -1)]
OF_NAN += ["metrics.m != 1 AND metrics.m < 1", "metrics.m != 1 AND params.p = 'a'", "metrics.none != 1"]


def test_nan_meets_the_filters_it_meets_there(both: tuple[Asked, Asked]) -> None:
    found = []
    for asked in both:
        made = asked.post("experiments/create", name=f"nan {time.time_ns()}").json()["experiment_id"]
        for name, value in (("nan", "NaN"), ("zero", 0), ("one", 1), ("minus", -1), ("without", None)):
            run = asked.post("runs/create", experiment_id=made, start_time=1, run_name=name).json()["run"]["info"]
            asked.post("runs/log-parameter", run_id=run["run_id"], key="p", value=name[1])
            if value is not None:
                point = {"key": "m", "value": value, "timestamp": 1}
                assert said(asked.post("runs/log-metric", run_id=run["run_id"], **point)) == (200, "")
        search = {"path": "runs/search", "key": "runs", "experiment_ids": [made]}
        found.append({text: _found(asked, filter=text, **search) for text in OF_NAN})
    assert found[1] == found[0]
    assert found[0]["metrics.m != 1"] == ["minus", "nan", "zero"]


OF_LISTS = (
    "params.p IN ('a')",
    "params.p IN ('a', 'c')",
    "params.p NOT IN ('a', 'c')",
    "params.p not in ('a')",
    "tags.t IN ('a', 'b')",
    "tags.t NOT IN ('a')",
    "name IN ('a', 'd')",
    "params.p IN ('a', 'b') AND metrics.m > 1",
    "params.none IN ('a')",
    "metrics.m IN (1)",
)
DATASETS: tuple[list[dict[str, str]], ...] = (
    [{"dataset_name": "train", "dataset_digest": "0"}],
    [{"dataset_name": "train", "dataset_digest": "1"}, {"dataset_name": "test", "dataset_digest": "2"}],
    [{"dataset_name": "test", "dataset_digest": "1"}],
)


def test_logged_models_are_found_by_lists_and_by_datasets(both: tuple[Asked, Asked]) -> None:
    found = []
    for asked in both:
        made = asked.post("experiments/create", name=f"logged {time.time_ns()}").json()["experiment_id"]
        run = asked.post("runs/create", experiment_id=made, start_time=1).json()["run"]["info"]["run_id"]
        for at, name in enumerate("abcd"):
            held = (
                {"params": [{"key": "p", "value": name}], "tags": [{"key": "t", "value": name}]} if at < 3 else {}
            )
            body = asked.post("logged-models", experiment_id=made, name=name, **held).json()
            points = [
                {"dataset_name": "train", "dataset_digest": str(at), "value": at},
                {"dataset_name": "test" if at == 2 else "train", "dataset_digest": str(at), "value": "NaN"},
                {"value": at + 1},
            ]
            for step, point in enumerate(points if at != 3 else points[2:]):
                said_of = {"key": "m", "timestamp": 1, "step": step, "model_id": body["model"]["info"]["model_id"]}
                assert said(asked.post("runs/log-metric", run_id=run, **said_of, **point)) == (200, "")
        search = {"path": "logged-models/search", "key": "models", "experiment_ids": [made]}
        outcomes = {text: _found(asked, filter=text, **search) for text in OF_LISTS}
        for given in DATASETS:
            outcomes[str(given)] = _found(asked, datasets=given, **search)
            outcomes[f"{given} p"] = _found(asked, datasets=given, filter="params.p != 'b'", **search)
            outcomes[f"{given} m"] = _found(asked, datasets=given, filter="metrics.m > 1", **search)
        found.append(outcomes)
    assert found[1] == found[0]
    assert found[0]["params.p NOT IN ('a', 'c')"] == ["b"]
    assert found[0][str(DATASETS[0])] == ["a"]
    assert found[0][str(DATASETS[1])] == ["b", "c"]
