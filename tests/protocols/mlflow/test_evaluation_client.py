"""Evaluation datasets as MLflow's own client makes, fills, finds and deletes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import mlflow
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.genai import datasets


@pytest.fixture
def experiment(place: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An experiment of the test's own, which the client uses."""
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")
    mlflow.set_tracking_uri(place)
    yield str(mlflow.set_experiment(f"evaluated-{uuid4().hex}").experiment_id)
    mlflow.set_tracking_uri(None)


@pytest.fixture
def http(place: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{place}/api/3.0/mlflow/datasets") as client:
        yield client


def held(dataset_id: str) -> list[Any]:
    store = mlflow.tracking._tracking_service.utils._get_store()
    found: list[Any] = store._load_dataset_records(dataset_id)[0]
    return found


def question(n: int) -> dict[str, Any]:
    return {"inputs": {"q": f"what is {n}?", "n": n}, "expectations": {"answer": str(n)}}


def test_records_are_merged_by_their_inputs(experiment: str) -> None:
    made = datasets.create_dataset(name="questions", experiment_id=experiment, tags={"team": "ä"})
    made.merge_records([question(n) for n in range(3)])
    made.merge_records(
        [
            {"inputs": {"n": 1, "q": "what is 1?"}, "expectations": {"tone": "kind"}, "tags": {"t": "1"}},
            {"inputs": {"q": "new"}, "outputs": {"a": [1, None, float("nan")]}},
        ]
    )
    found = datasets.get_dataset(dataset_id=made.dataset_id)
    assert (found.name, found.tags["team"], found.experiment_ids) == ("questions", "ä", [experiment])
    assert json.loads(found.profile) == {"num_records": 4}
    schema = json.loads(found.schema)
    assert schema["inputs"] == {"q": "string", "n": "integer"}
    assert schema["expectations"] == {"answer": "string", "tone": "string"} and schema["outputs"] == {"a": "array"}
    records = {record.inputs["q"]: record for record in held(made.dataset_id)}
    assert records["what is 1?"].expectations == {"answer": "1", "tone": "kind"}
    assert records["what is 1?"].tags["t"] == "1"
    assert (
        records["new"].outputs["a"][:2] == [1, None]
        and records["new"].outputs["a"][2] != records["new"].outputs["a"][2]
    )
    assert [record.inputs["q"] for record in held(made.dataset_id)] == [
        "what is 0?",
        "what is 1?",
        "what is 2?",
        "new",
    ]
    assert found.digest != made.digest
    assert next(iter(found.to_df()["inputs"])) == {"q": "what is 0?", "n": 0}


def test_records_come_from_frames_and_traces(experiment: str) -> None:
    made = datasets.create_dataset(name="from", experiment_id=experiment)
    made.merge_records(pd.DataFrame([question(n) for n in range(2)]))

    @mlflow.trace
    def ask(q: str) -> str:
        return q.upper()

    ask("loud")
    trace_id = mlflow.get_last_active_trace_id()
    mlflow.log_expectation(trace_id=trace_id, name="loudness", value=11)
    made.merge_records(mlflow.search_traces(return_type="list"))
    found = held(made.dataset_id)[-1]
    assert (found.inputs, found.outputs, found.expectations) == ({"q": "loud"}, "LOUD", {"loudness": 11})
    assert (found.source_type, found.source_id) == ("TRACE", trace_id)


def test_counts_pages_and_deletion_of_records(experiment: str, http: httpx.Client) -> None:
    made = datasets.create_dataset(name="paged", experiment_id=experiment)
    store = mlflow.tracking._tracking_service.utils._get_store()
    counts = store.upsert_dataset_records(made.dataset_id, [question(n % 2500) for n in range(2502)])
    assert counts == {"inserted": 2500, "updated": 2}
    first, token = store._load_dataset_records(made.dataset_id, max_results=1000)
    store.upsert_dataset_records(made.dataset_id, [question(9999)])
    second, token = store._load_dataset_records(made.dataset_id, max_results=2000, page_token=token)
    assert [each.inputs["n"] for each in first + second] == [*range(2500), 9999] and token is None
    gone = [each.dataset_record_id for each in first[:3]]
    assert made.delete_records([*gone, "dr-none"]) == 3
    left = datasets.get_dataset(dataset_id=made.dataset_id)
    assert json.loads(left.profile) == {"num_records": 2498} and len(held(made.dataset_id)) == 2498
    assert http.get(f"{made.dataset_id}/records", params={"page_token": "%%"}).status_code == 400


def test_datasets_are_found_by_name_tag_and_time(experiment: str) -> None:
    other = mlflow.create_experiment(f"other-{uuid4().hex}")
    for n in range(5):
        datasets.create_dataset(
            name=f"set {n}", experiment_id=[experiment, other][: 1 + n % 2], tags={"n": str(n)}
        )

    def names(filter_string: str | None = None, where: str = experiment, **options: Any) -> list[str]:
        found = datasets.search_datasets(experiment_ids=where, filter_string=filter_string, **options)
        return [each.name for each in found]

    assert names(order_by=["name ASC"]) == [f"set {n}" for n in range(5)]
    assert names() == [f"set {n}" for n in (4, 3, 2, 1, 0)]
    assert names(where=other, order_by=["name DESC"]) == ["set 3", "set 1"]
    assert names("name LIKE 'set %' AND tags.n = '2'") == ["set 2"]
    assert names("name IN ('set 1', 'set 3')", order_by=["name"]) == ["set 1", "set 3"]
    assert names("name ILIKE 'SET 4'") == ["set 4"]
    assert names("created_time > 1 AND last_update_time < 1") == []
    assert names("tags.n != '2'", order_by=["name"]) == ["set 0", "set 1", "set 3", "set 4"]
    store = mlflow.tracking._tracking_service.utils._get_store()
    page = store.search_datasets([experiment], max_results=2, order_by=["name ASC"])
    datasets.create_dataset(name="set 00", experiment_id=experiment)
    rest = store.search_datasets([experiment], max_results=5, order_by=["name ASC"], page_token=page.token)
    assert [each.name for each in [*page, *rest]] == [f"set {n}" for n in range(5)]
    for wrong in ("name > 'a'", "colour = 'x'", "tags.n IN ('1')", "name = ", "created_time = 'x'"):
        with pytest.raises(MlflowException) as caught:
            names(wrong)
        assert caught.value.error_code == "INVALID_PARAMETER_VALUE"


def test_tags_experiments_and_deletion(experiment: str) -> None:
    made = datasets.create_dataset(name="moved", experiment_id=experiment, tags={"a": "1"})
    datasets.set_dataset_tags(dataset_id=made.dataset_id, tags={"a": "2", "b": "3"})
    datasets.delete_dataset_tag(dataset_id=made.dataset_id, key="b")
    datasets.delete_dataset_tag(dataset_id=made.dataset_id, key="b")
    assert datasets.get_dataset(dataset_id=made.dataset_id).tags["a"] == "2"
    assert "b" not in datasets.get_dataset(dataset_id=made.dataset_id).tags
    other = mlflow.create_experiment(f"other-{uuid4().hex}")
    joined = datasets.add_dataset_to_experiments(dataset_id=made.dataset_id, experiment_ids=[other])
    assert set(joined.experiment_ids) == {experiment, other}
    left = datasets.remove_dataset_from_experiments(dataset_id=made.dataset_id, experiment_ids=[experiment])
    assert left.experiment_ids == [other]
    with pytest.raises(MlflowException, match="No Experiment with id=987654"):
        datasets.add_dataset_to_experiments(dataset_id=made.dataset_id, experiment_ids=["987654"])
    datasets.delete_dataset(dataset_id=made.dataset_id)
    with pytest.raises(MlflowException, match="not found"):
        datasets.get_dataset(dataset_id=made.dataset_id)


def test_what_makes_no_sense_is_refused_with_its_place(experiment: str, http: httpx.Client) -> None:
    made = datasets.create_dataset(name="strict", experiment_id=experiment)
    for records, where in (
        ("{", "records"),
        ("{}", "records"),
        ("[1]", "records[0]"),
        ('[{"inputs": {}}, {"inputs": [1]}]', "records[1].inputs"),
        ('[{"inputs": {"a": 1}, "tags": "x"}]', "records[0].tags"),
        ('[{"inputs": {"a": 1}, "source": {"source_type": "moon"}}]', "records[0].source.source_type"),
        ("[" * 100_000, "records"),
    ):
        answer = http.post(f"{made.dataset_id}/records", json={"records": records})
        assert (answer.status_code, answer.json()["error_code"]) == (400, "INVALID_PARAMETER_VALUE"), records
        assert answer.json()["message"].startswith(where)
    strange = json.dumps([{"inputs": {"\ud800\0": "\udfff"}, "tags": {"t": "\ud800"}, "outputs": float("inf")}])
    assert http.post(f"{made.dataset_id}/records", json={"records": strange}).json()["inserted_count"] == 1
    [record] = json.loads(http.get(f"{made.dataset_id}/records").json()["records"])
    assert record["inputs"] == {"\ud800\0": "\udfff"} and record["outputs"] == float("inf")
    assert http.post("create", json={"name": ""}).status_code == 400
    assert http.post("create", json={"name": "a", "tags": "[]"}).status_code == 400
    assert http.post("create", json={"name": "a", "experiment_ids": ["x"]}).status_code == 400
    assert http.post("create", json={"name": "a", "experiment_ids": ["987654"]}).status_code == 404
    assert http.post("d-none/records", json={"records": "[]"}).status_code == 404
    assert http.post("search", json={"max_results": 0}).status_code == 400
