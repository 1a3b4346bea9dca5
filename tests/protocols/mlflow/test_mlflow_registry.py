"""MLflow's own client against registered models, versions, aliases, stages and logged models."""

from __future__ import annotations

import threading
from typing import Any

import httpx
import pytest
from mlflow.entities import LoggedModelParameter, LoggedModelStatus, Metric
from mlflow.exceptions import MlflowException
from sqlalchemy import update

from modelkeep.lifecycle.keep import Keep
from modelkeep.registry import catalog, endpoints
from modelkeep.registry.endpoints import Route, Wanted
from modelkeep.store.tables import versions


def refused(code: str, words: str | None = None) -> Any:
    return pytest.raises(MlflowException, match=words, check=lambda error: error.error_code == code)


def test_a_registered_model_lives(client: Any) -> None:
    made = client.create_registered_model("m", tags={"a": "1"}, description="first")
    assert (made.name, made.tags, made.description) == ("m", {"a": "1"}, "first")
    with refused("RESOURCE_ALREADY_EXISTS", "already exists"):
        client.create_registered_model("m")
    run = client.create_run("0").info.run_id
    for number in (1, 2, 3):
        version = client.create_model_version("m", f"runs:/{run}/model", run, tags={"n": str(number)})
        assert (version.version, version.status, version.current_stage) == (str(number), "READY", "None")
        assert version.source == f"mlflow-artifacts:/0/{run}/artifacts/model"
    client.set_registered_model_alias("m", "champion", "2")
    client.set_registered_model_alias("m", "other", "2")
    client.set_registered_model_alias("m", "other", "3")
    assert client.get_model_version_by_alias("m", "champion").version == "2"
    assert client.get_model_version("m", "2").aliases == ["champion"]
    assert client.get_registered_model("m").aliases == {"champion": "2", "other": "3"}
    client.delete_registered_model_alias("m", "other")
    with refused("INVALID_PARAMETER_VALUE", "alias other not found"):
        client.get_model_version_by_alias("m", "other")
    client.update_model_version("m", "1", "described")
    client.set_model_version_tag("m", "1", "n", "one")
    client.delete_model_version_tag("m", "2", "n")
    assert (client.get_model_version("m", "1").description, client.get_model_version("m", "1").tags) == (
        "described",
        {"n": "one"},
    )
    assert client.get_model_version("m", "2").tags == {}
    client.rename_registered_model("m", "renamed")
    assert client.get_model_version_by_alias("renamed", "champion").name == "renamed"
    client.delete_model_version("renamed", "2")
    assert client.get_registered_model("renamed").aliases == {}
    assert client.create_model_version("renamed", f"runs:/{run}/model", run).version == "4"
    client.set_registered_model_tag("renamed", "b", "2")
    client.delete_registered_model_tag("renamed", "a")
    assert client.get_registered_model("renamed").tags == {"b": "2"}
    client.delete_registered_model("renamed")
    with refused("RESOURCE_DOES_NOT_EXIST", "Registered Model with name=renamed not found"):
        client.get_registered_model("renamed")
    with refused("RESOURCE_DOES_NOT_EXIST"):
        client.get_model_version("renamed", "1")


@pytest.mark.filterwarnings("ignore")
def test_stages_still_work(client: Any) -> None:
    client.create_registered_model("m")
    for _ in range(3):
        client.create_model_version("m", "s3://bucket/model")
    client.transition_model_version_stage("m", "1", "production")
    client.transition_model_version_stage("m", "2", "Production", archive_existing_versions=True)
    stages = {each.version: each.current_stage for each in client.search_model_versions("name = 'm'")}
    assert stages == {"1": "Archived", "2": "Production", "3": "None"}
    assert [each.version for each in client.get_latest_versions("m", ["Production"])] == ["2"]
    assert {each.version for each in client.get_latest_versions("m")} == {"1", "2", "3"}
    with refused("INVALID_PARAMETER_VALUE", "Invalid Model Version stage"):
        client.transition_model_version_stage("m", "1", "backstage")


def test_a_page_of_models_says_of_versions_what_they_say_themselves(
    client: Any, http: httpx.Client, keep: Keep
) -> None:
    said = 'a "quoted" \\ text,\nin Übung \u2028 😀'
    for name in ("a", "b", "empty"):
        client.create_registered_model(name)
    for name, tag in (("a", said), ("a", "older"), ("b", ""), ("b", "2"), ("b", "3")):
        client.create_model_version(name, "s3://bucket/model", description=tag, tags={"said": tag, "n": "1"})
    client.create_model_version("b", "s3://bucket/newest")
    client.set_registered_model_alias("a", "champion", "2")
    client.set_registered_model_alias("b", "older", "1")
    client.set_registered_model_alias("b", "x", "4")
    client.set_registered_model_alias("b", "y", "4")

    def change(conn: Any) -> None:
        for name, version, stage, more in (
            ("a", 2, "Production", {"model_id": "m-1", "status_message": said}),
            ("b", 1, "Archived", {}),
            ("b", 2, "Archived", {"package": "ab" * 32, "run_id": "r", "run_link": "l", "user_id": "u"}),
        ):
            model = catalog.find_model(conn, name).id
            mine = (versions.c.model == model) & (versions.c.version == version)
            conn.execute(update(versions).where(mine).values(stage=stage, **more))

    keep.db.write(change)
    found = http.get("registered-models/search").json()["registered_models"]
    shown = {each["name"]: each["latest_versions"] for each in found}
    assert {name: [each["version"] for each in latest] for name, latest in shown.items()} == {
        "a": ["1", "2"],
        "b": ["2", "4"],
        "empty": [],
    }
    for name, latest in shown.items():
        for each in latest:
            asked = {"name": name, "version": each["version"]}
            alone = http.get("model-versions/get", params=asked).json()["model_version"]
            assert ordered(each) == ordered(alone)
    assert shown["a"][1]["model_id"] == "m-1"
    assert "model_id" not in shown["a"][0]
    assert shown["b"][0]["source"] == f"mlflow-artifacts:/packages/{'ab' * 32}"


def ordered(version: dict[str, Any]) -> dict[str, Any]:
    return {**version, "tags": sorted(version["tags"], key=str), "aliases": sorted(version["aliases"])}


def test_models_and_versions_are_searched(client: Any, http: httpx.Client) -> None:
    for name in ("alpha", "Beta", "gamma"):
        client.create_registered_model(name, tags={"kind": "tree" if name != "gamma" else "line"})
    prompt = {"name": "prompt", "tags": [{"key": "mlflow.prompt.is_prompt", "value": "true"}]}
    assert http.post("registered-models/create", json=prompt).status_code == 200

    def models(text: str = "", **more: Any) -> list[str]:
        return [each.name for each in client.search_registered_models(text, **more)]

    assert set(models()) == {"alpha", "Beta", "gamma"}
    assert models("name ILIKE 'b%'") == ["Beta"]
    assert models("tags.kind = 'tree'", order_by=["name DESC"]) in (["alpha", "Beta"], ["Beta", "alpha"])
    assert [each.name for each in client.search_prompts()] == ["prompt"]
    first = client.search_registered_models(max_results=2, order_by=["timestamp ASC"])
    rest = client.search_registered_models(max_results=2, order_by=["timestamp ASC"], page_token=first.token)
    assert {each.name for each in (*first, *rest)} == {"alpha", "Beta", "gamma"}
    run = client.create_run("0").info.run_id
    for number in range(3):
        client.create_model_version("alpha", f"s3://b/{number}", run if number else None, tags={"n": str(number)})
    client.create_model_version("gamma", "s3://b/g")

    def versions(text: str, **more: Any) -> list[str]:
        return [each.name[0] + each.version for each in client.search_model_versions(text, **more)]

    assert versions("name = 'alpha'", order_by=["version_number DESC"]) == ["a3", "a2", "a1"]
    assert set(versions(f"run_id IN ('{run}')")) == {"a2", "a3"}
    assert versions("source_path = 's3://b/g'") == ["g1"]
    assert versions("tags.n = '2' AND name LIKE 'al%'") == ["a3"]
    assert versions("version_number > 1 AND name = 'alpha'", order_by=["version_number ASC"]) == ["a2", "a3"]


@pytest.mark.parametrize(
    "source",
    [
        "file:///etc/passwd",
        "FILE:/etc",
        "/etc/passwd",
        "etc",
        "../../etc",
        "mlflow-artifacts:/0/../../etc",
        "mlflow-artifacts:/0/%2e%2e/etc",
        "mlflow-artifacts:/0/%252e%252e/etc",
        "s3://b/a\\..\\b",
        "s3://b/a;b",
        "s3://b/a#b",
        "s3://b/a?x=1",
        "sqlite:///x.db",
        " ",
        "",
        "runs:/none/model",
        "models:/m-none",
    ],
)
def test_sources_that_are_no_place_for_a_model_are_refused(light: str, source: str) -> None:
    with httpx.Client(base_url=f"{light}/api/2.0/mlflow") as http:
        http.post("registered-models/create", json={"name": "nowhere"})
        answer = http.post("model-versions/create", json={"name": "nowhere", "source": source})
        assert answer.status_code in (400, 404)
        found = http.get("model-versions/search", params={"filter": "name = 'nowhere'"}).json()
        assert found["model_versions"] == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("registered-models/create", {"name": ""}),
        ("registered-models/create", {"name": "a/b"}),
        ("registered-models/create", {"name": "a:b"}),
        ("registered-models/alias", {"name": "m", "alias": "v1", "version": "1"}),
        ("registered-models/alias", {"name": "m", "alias": "Latest", "version": "1"}),
        ("registered-models/alias", {"name": "m", "alias": "a b", "version": "1"}),
        ("registered-models/alias", {"name": "m", "alias": "a", "version": "one"}),
        ("registered-models/set-tag", {"name": "m", "key": "../k", "value": ""}),
        ("registered-models/set-tag", {"name": "m", "key": "k", "value": "v" * 100_001}),
    ],
)
def test_names_that_would_mislead_are_refused(light: str, path: str, body: dict[str, Any]) -> None:
    with httpx.Client(base_url=f"{light}/api/2.0/mlflow") as http:
        http.post("registered-models/create", json={"name": "m"})
        http.post("model-versions/create", json={"name": "m", "source": "s3://b/m"})
        answer = http.post(path, json=body)
        assert (answer.status_code, answer.json()["error_code"]) == (400, "INVALID_PARAMETER_VALUE")


def test_what_is_served_is_not_deleted(client: Any, keep: Keep) -> None:
    client.create_registered_model("m")
    client.create_model_version("m", "s3://b/1")
    client.create_model_version("m", "s3://b/2")
    route = Route(version=1, package="", weight=1.0, mode="stable")
    keep.db.write(lambda conn: endpoints.put(conn, Wanted(endpoint="e", model="m", routes=(route,))))
    for attempt in (
        lambda: client.delete_registered_model("m"),
        lambda: client.delete_model_version("m", "1"),
        lambda: client.rename_registered_model("m", "n"),
    ):
        with refused("PERMISSION_DENIED", "served at endpoint 'e'"):
            attempt()
    client.delete_model_version("m", "2")


def test_concurrent_registrations_get_numbers_of_their_own(client: Any) -> None:
    client.create_registered_model("m")
    made: list[str] = []

    def register() -> None:
        for _ in range(5):
            made.append(client.create_model_version("m", "s3://b/m").version)

    threads = [threading.Thread(target=register) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(int, made)) == list(range(1, 21))


def test_a_logged_model_lives(client: Any, http: httpx.Client) -> None:
    run = client.create_run("0").info.run_id
    made = client.create_logged_model(
        "0", "net", source_run_id=run, tags={"a": "1"}, params={"depth": "3"}, model_type="agent"
    )
    assert made.status == LoggedModelStatus.PENDING
    assert made.artifact_location == f"mlflow-artifacts:/0/models/{made.model_id}/artifacts"
    client.finalize_logged_model(made.model_id, LoggedModelStatus.READY)
    client.set_logged_model_tags(made.model_id, {"b": "2", "c": "3"})
    client.delete_logged_model_tag(made.model_id, "c")
    client.log_model_params(made.model_id, {"width": "5"})
    client.log_metric(run, "auc", 0.5, timestamp=1, step=0, model_id=made.model_id)
    client.log_batch(run, [Metric("auc", 0.7, 2, 1, made.model_id, "train", "d1")])
    client.log_outputs(run, [_output(made.model_id)])
    found = client.get_logged_model(made.model_id)
    assert (found.name, found.tags, found.params) == ("net", {"a": "1", "b": "2"}, {"depth": "3", "width": "5"})
    assert {(each.value, each.dataset_name, each.run_id) for each in found.metrics} == {
        (0.5, None, run),
        (0.7, "train", run),
    }
    assert client.get_run(run).outputs.model_outputs[0].model_id == made.model_id
    client.create_registered_model("m")
    version = client.create_model_version("m", f"models:/{made.model_id}", model_id=made.model_id)
    assert (version.source, version.run_id) == (found.artifact_location, run)
    said = http.get("model-versions/get", params={"name": "m", "version": "1"}).json()["model_version"]
    assert said["model_id"] == made.model_id
    client.delete_logged_model(made.model_id)
    with refused("RESOURCE_DOES_NOT_EXIST"):
        client.get_logged_model(made.model_id)


def _output(model_id: str) -> Any:
    from mlflow.entities import LoggedModelOutput

    return LoggedModelOutput(model_id, 0)


def test_logged_models_are_searched(client: Any) -> None:
    run = client.create_run("0").info.run_id
    ids = {}
    for at, name in enumerate(("a", "b", "c")):
        ids[name] = client.create_logged_model(
            "0", name, params={"p": str(at)}, tags={"even": str(at % 2)}
        ).model_id
        points = [
            Metric("auc", at / 10, 1, 0, ids[name], "train", "d"),
            Metric("auc", 1 - at / 10, 2, 0, ids[name]),
        ]
        client.log_batch(run, points)
    client.create_logged_model("0", "none")

    def found(text: str = "", order: Any = None, **more: Any) -> str:
        return "".join(each.name[0] for each in client.search_logged_models(["0"], text, order_by=order, **more))

    assert found("name = 'b'") == "b"
    assert found("params.p = '1'") == "b"
    assert sorted(found("tags.even = '0' AND metrics.auc > 0.5")) == ["a", "c"]
    assert found("metrics.auc > 0.15", datasets=[{"dataset_name": "train", "dataset_digest": "d"}]) == "c"
    assert sorted(found(datasets=[{"dataset_name": "train"}])) == ["a", "b", "c"]
    assert found("params.p IN ('1', '7')", datasets=[{"dataset_name": "train"}]) == "b"
    assert sorted(found("tags.even NOT IN ('1')")) == ["a", "c"]
    assert found(datasets=[{"dataset_name": "test"}]) == ""
    assert found(order=[{"field_name": "metrics.auc", "ascending": False}]) == "abcn"
    by_train = [{"field_name": "metrics.auc", "ascending": False, "dataset_name": "train"}]
    assert found(order=by_train) == "cban"
    assert found(order=[{"field_name": "name"}]) == "abcn"
    first = client.search_logged_models(["0"], max_results=3, order_by=[{"field_name": "name"}])
    rest = client.search_logged_models(
        ["0"], max_results=3, order_by=[{"field_name": "name"}], page_token=first.token
    )
    assert "".join(each.name[0] for each in (*first, *rest)) == "abcn"


def test_what_is_not_built_says_so(light: str) -> None:
    for path in ("3.0/mlflow/scorers/list", "2.0/mlflow/gateway/endpoints", "3.0/mlflow/issues/search"):
        answer = httpx.post(f"{light}/api/{path}", json={})
        assert (answer.status_code, answer.json()["error_code"]) == (501, "NOT_IMPLEMENTED")


def test_params_of_logged_models_are_written_once(client: Any) -> None:
    made = client.create_logged_model("0", "m", params={"a": "1"})
    client.log_model_params(made.model_id, {"a": "1"})
    with refused("INVALID_PARAMETER_VALUE", "Changing param values"):
        client.log_model_params(made.model_id, {"a": "2"})
    assert LoggedModelParameter("a", "1").value == client.get_logged_model(made.model_id).params["a"]
