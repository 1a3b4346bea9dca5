"""Traces as MLflow's own client makes, reads, changes and deletes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import mlflow
import pytest
from mlflow.entities import AssessmentSource, SpanType
from mlflow.exceptions import MlflowException

HUMAN = AssessmentSource(source_type="HUMAN", source_id="ann")


@pytest.fixture
def traced(place: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server that the client sends traces to at once, and an experiment of the test's own."""
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")
    mlflow.set_tracking_uri(place)
    mlflow.set_experiment(f"traced-{uuid4().hex}")
    yield place
    mlflow.set_tracking_uri(None)


@mlflow.trace(name="inner", span_type=SpanType.TOOL, attributes={"depth": 2})
def inner(x: Any) -> dict[str, Any]:
    return {"y": x, "nan": float("nan"), "none": None, "list": [1, 2.5, "ü", True]}


@mlflow.trace(name="outer")
def outer(x: Any) -> dict[str, Any]:
    return inner(x)


def last() -> str:
    found = mlflow.get_last_active_trace_id()
    assert found is not None
    return found


def made(x: Any = 1) -> str:
    outer(x)
    return last()


def test_a_trace_comes_back_as_it_was_told(traced: str) -> None:
    with mlflow.start_run() as run:
        trace_id = made({"text": 'héllo \n "q"', "big": 2**53 + 1})
    found = mlflow.get_trace(trace_id)
    assert found is not None
    first, second = found.data.spans
    assert (first.name, second.name, second.span_type, second.parent_id) == (
        "outer",
        "inner",
        "TOOL",
        first.span_id,
    )
    assert first.inputs == {"x": {"text": 'héllo \n "q"', "big": 2**53 + 1}}
    outputs = first.outputs
    assert outputs["list"] == [1, 2.5, "ü", True] and outputs["none"] is None and outputs["nan"] != outputs["nan"]
    assert isinstance(outputs["list"][0], int) and second.attributes["depth"] == 2
    info = found.info
    assert (info.state.value, info.trace_metadata["mlflow.sourceRun"]) == ("OK", run.info.run_id)
    assert info.tags["mlflow.traceName"] == "outer"
    assert info.tags["mlflow.trace.spansLocation"] == "TRACKING_STORE"
    assert info.execution_duration is not None and info.execution_duration >= 0
    assert "héllo" in (info.request_preview or "")
    assert mlflow.MlflowClient().get_trace(trace_id).info.request_time == info.request_time


def test_an_error_ends_a_trace_with_its_event(traced: str) -> None:
    @mlflow.trace
    def broken() -> None:
        raise ValueError("no way")

    with pytest.raises(ValueError, match="no way"):
        broken()
    found = mlflow.get_trace(last())
    assert found is not None and found.info.state.value == "ERROR"
    [span] = found.data.spans
    assert span.status.status_code.value == "ERROR"
    [event] = span.events
    assert event.name == "exception" and event.attributes["exception.message"] == "no way"


def test_spans_begun_and_ended_by_hand(traced: str) -> None:
    client = mlflow.MlflowClient()
    root = client.start_trace("by hand", inputs={"a": 1}, tags={"t": "1"}, attributes={"k": "v"})
    child = client.start_span("child", root.trace_id, root.span_id, inputs=[1, 2])
    client.end_span(root.trace_id, child.span_id, outputs="done", status="OK")
    client.end_trace(root.trace_id, outputs={"b": 2}, status="ERROR")
    found = client.get_trace(root.trace_id)
    assert [span.name for span in found.data.spans] == ["by hand", "child"]
    assert found.data.spans[1].inputs == [1, 2] and found.data.spans[1].outputs == "done"
    assert (found.info.state.value, found.info.tags["t"]) == ("ERROR", "1")
    with mlflow.start_span("context", span_type=SpanType.LLM) as span:
        span.set_attribute("x", {"y": [None]})
        mlflow.update_current_trace(
            tags={"u": "ä"}, metadata={"mlflow.trace.session": "s1"}, client_request_id="r-9"
        )
    found = mlflow.get_trace(last())
    assert found is not None and found.data.spans[0].attributes["x"] == {"y": [None]}
    assert (found.info.tags["u"], found.info.client_request_id) == ("ä", "r-9")
    assert found.info.trace_metadata["mlflow.trace.session"] == "s1"


def test_tags_change_and_system_tags_do_not(traced: str) -> None:
    trace_id = made()
    mlflow.set_trace_tag(trace_id, "stage", "a")
    mlflow.set_trace_tag(trace_id, "stage", "b")
    mlflow.set_trace_tag(trace_id, "mlflow.traceName", "renamed")
    client = mlflow.MlflowClient()
    assert client.get_trace(trace_id).info.tags["stage"] == "b"
    assert [
        t.info.trace_id for t in client.search_traces(locations=[_experiment()], filter_string="name = 'renamed'")
    ]
    mlflow.delete_trace_tag(trace_id, "stage")
    assert "stage" not in client.get_trace(trace_id).info.tags
    with pytest.raises(MlflowException, match="No trace tag with key 'stage'"):
        mlflow.delete_trace_tag(trace_id, "stage")
    with pytest.raises(MlflowException, match="not found"):
        mlflow.set_trace_tag("tr-0", "a", "b")
    place = {"key": "mlflow.artifactLocation", "value": "file:///etc"}
    answer = httpx.patch(f"{traced}/api/3.0/mlflow/traces/{trace_id}/tags", json=place)
    assert (answer.status_code, answer.json()["error_code"]) == (400, "INVALID_PARAMETER_VALUE")


def _experiment() -> str:
    return str(mlflow.tracking.fluent._get_experiment_id())


def test_assessments_are_logged_changed_overridden_and_deleted(traced: str) -> None:
    trace_id = made()
    feedback = mlflow.log_feedback(
        trace_id=trace_id, name="quality", value=4, source=HUMAN, rationale="fine", metadata={"a": "1"}
    )
    wanted = mlflow.log_expectation(trace_id=trace_id, name="facts", value={"of": ["a", None]}, source=HUMAN)
    errored = mlflow.log_feedback(trace_id=trace_id, name="judge", error=ValueError("down"))
    assert mlflow.get_assessment(trace_id, wanted.assessment_id).value == {"of": ["a", None]}
    assert mlflow.get_assessment(trace_id, errored.assessment_id).error.error_message == "down"
    updated = mlflow.update_assessment(
        trace_id,
        feedback.assessment_id,
        mlflow.entities.Feedback(name="quality", value="good", metadata={"b": "2"}),
    )
    assert (updated.value, updated.metadata, updated.source.source_id) == ("good", {"a": "1", "b": "2"}, "ann")
    other = mlflow.override_feedback(trace_id=trace_id, assessment_id=feedback.assessment_id, value="bad")
    valid = {each.assessment_id: each.valid for each in _assessments(trace_id)}
    assert (valid[feedback.assessment_id], valid[other.assessment_id]) == (False, True)
    mlflow.delete_assessment(trace_id, other.assessment_id)
    mlflow.delete_assessment(trace_id, other.assessment_id)
    valid = {each.assessment_id: each.valid for each in _assessments(trace_id)}
    assert valid.keys() == {feedback.assessment_id, wanted.assessment_id, errored.assessment_id}
    assert valid[feedback.assessment_id] is True
    with pytest.raises(MlflowException, match="not found"):
        mlflow.get_assessment(trace_id, "a-none")
    with pytest.raises(MlflowException, match="Cannot update"):
        mlflow.update_assessment(trace_id, wanted.assessment_id, mlflow.entities.Feedback(name="facts", value=1))


def _assessments(trace_id: str) -> list[Any]:
    found = mlflow.get_trace(trace_id)
    assert found is not None
    return list(found.info.assessments)


def test_an_assessment_made_inside_the_trace_travels_with_it(traced: str) -> None:
    with mlflow.start_span("assessed"):
        mlflow.log_feedback(trace_id=mlflow.get_active_trace_id(), name="self", value=0.5)
    [found] = _assessments(last())
    assert (found.name, found.value) == ("self", 0.5)


def test_traces_are_deleted_by_id_and_by_time(traced: str) -> None:
    client, ids = mlflow.MlflowClient(), [made(n) for n in range(5)]
    where = _experiment()
    assert client.delete_traces(where, trace_ids=[ids[0], "tr-unknown"]) == 1
    with pytest.raises(MlflowException, match="not found"):
        client.get_trace(ids[0])
    now = client.get_trace(ids[4]).info.request_time
    assert client.delete_traces(where, max_timestamp_millis=now + 1, max_traces=1) == 1
    assert client.delete_traces(where, max_timestamp_millis=1) == 0
    assert client.delete_traces(where, max_timestamp_millis=now + 1) == 3
    assert mlflow.search_traces(locations=[where], return_type="list") == []
    for wrong in ({}, {"max_timestamp_millis": 1, "request_ids": ["a"]}, {"max_traces": 1, "request_ids": ["a"]}):
        answer = httpx.post(
            f"{traced}/api/2.0/mlflow/traces/delete-traces", json={"experiment_id": where, **wrong}
        )
        assert answer.status_code == 400


def test_traces_are_linked_to_runs_and_prompts(traced: str) -> None:
    ids = [made(n) for n in range(3)]
    client = mlflow.MlflowClient()
    run = client.create_run(_experiment())
    client.link_traces_to_run(ids[:2], run.info.run_id)
    client.link_traces_to_run(ids[:1], run.info.run_id)
    found = mlflow.search_traces(run_id=run.info.run_id, return_type="list")
    assert {each.info.trace_id for each in found} == set(ids[:2])
    answer = httpx.post(
        f"{traced}/api/2.0/mlflow/traces/link-prompts",
        json={"trace_id": ids[2], "prompt_versions": [{"name": "greet", "version": "3"}]},
    )
    assert answer.status_code == 200
    found = mlflow.search_traces(filter_string="prompt = 'greet/3'", return_type="list")
    assert [each.info.trace_id for each in found] == [ids[2]]
    assert json.loads(found[0].info.tags["mlflow.linkedPrompts"]) == [{"name": "greet", "version": "3"}]
    with pytest.raises(MlflowException, match="not found"):
        client.link_traces_to_run(ids, "0" * 32)


def test_the_api_of_older_clients(traced: str) -> None:
    from mlflow.entities.trace_status import TraceStatus
    from mlflow.tracking._tracking_service.utils import _get_store

    store = _get_store()
    begun = store.deprecated_start_trace_v2(_experiment(), 1000, {"m": "1"}, {"mlflow.traceName": "old"})
    ended = store.deprecated_end_trace_v2(begun.request_id, 1500, TraceStatus.OK, {"n": "2"}, {"t": "3"})
    assert (ended.execution_time_ms, ended.status, ended.tags["t"]) == (500, TraceStatus.OK, "3")
    assert ended.request_metadata["m"] == "1" and ended.request_metadata["n"] == "2"
    with httpx.Client(base_url=f"{traced}/api/2.0/mlflow") as http:
        info = http.get(f"traces/{begun.request_id}/info").json()["trace_info"]
        assert (info["timestamp_ms"], info["execution_time_ms"]) == (1000, 500)
        found = http.get("traces", params={"experiment_ids": [_experiment()], "filter": "name = 'old'"}).json()
        assert [each["request_id"] for each in found["traces"]] == [begun.request_id]
        assert http.get("traces/tr-none/info").status_code == 404


def test_many_at_once_and_what_is_still_on_its_way(traced: str) -> None:
    ids = [made(n) for n in range(12)]
    store = mlflow.tracking._tracking_service.utils._get_store()
    assert [each.info.trace_id for each in store.batch_get_traces(ids[::-1])] == ids[::-1]
    assert store.batch_get_traces(ids, experiment_ids=["0"]) == []
    infos = store.batch_get_trace_infos([ids[3], "tr-none"])
    assert [each.trace_id for each in infos] == [ids[3]]
    info = {
        "trace_id": "tr-" + "a" * 32,
        "trace_location": {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": _experiment()}},
        "request_time": "2025-01-01T00:00:00.250Z",
        "trace_metadata": {"mlflow.trace.sizeStats": '{"num_spans": 2}'},
    }
    with httpx.Client(base_url=f"{traced}/api/3.0/mlflow") as http:
        told = http.post("traces", json={"trace": {"trace_info": info}}).json()["trace"]["trace_info"]
        assert told["request_time"] == "2025-01-01T00:00:00.250Z"
        assert http.get("traces/get", params={"trace_id": info["trace_id"]}).status_code == 404
        found = http.get("traces/get", params={"trace_id": info["trace_id"], "allow_partial": "True"})
        assert found.json()["trace"]["spans"] == []
        assert http.get("traces/batchGet", params={"trace_ids": [info["trace_id"]]}).json() == {"traces": []}


def test_what_no_client_could_read_back_is_refused(traced: str) -> None:
    trace_id = made()
    deep: Any = 1
    for _ in range(60):
        deep = [deep]
    serialized = {"serialization_format": "JSON_FORMAT", "value": "[1"}
    with httpx.Client(base_url=f"{traced}/api/3.0/mlflow") as http:

        def create(**fields: Any) -> httpx.Response:
            said = {"assessment_name": "a", "source": {"source_type": "HUMAN"}, **fields}
            return http.post(f"traces/{trace_id}/assessments", content=json.dumps({"assessment": said}))

        for wrong in (
            {},
            {"feedback": {"value": 1}, "expectation": {"value": 1}},
            {"feedback": {"value": deep}},
            {"feedback": {"value": 10**400}},
            {"feedback": "good"},
            {"expectation": {"serialized_value": serialized}},
            {"expectation": {"serialized_value": {**serialized, "value": "1", "serialization_format": "XML"}}},
            {"feedback": {}, "assessment_name": ""},
            {"feedback": {}, "source": {"source_type": "MOON"}},
            {"feedback": {}, "create_time": "yesterday"},
            {"feedback": {}, "metadata": {"a": 1}},
            {"feedback": {}, "rationale": "\ud800"},
        ):
            answer = create(**wrong)
            assert (answer.status_code, answer.json()["error_code"]) == (400, "INVALID_PARAMETER_VALUE"), wrong
        assert create(feedback={"value": "a\0b", "colour": "red"}, moon=3).status_code == 200
        info = {"trace_id": "tr-x", "request_time": "2025-01-01T00:00:00Z"}
        here = {"mlflow_experiment": {"experiment_id": _experiment()}}
        for wrong in (
            {"trace_location": {}},
            {"trace_location": {"mlflow_experiment": {"experiment_id": "moon"}}},
            {"trace_location": here, "trace_id": "../x"},
            {"trace_location": here, "trace_id": "a" * 300},
            {"trace_location": here, "request_time": "2025-13-01T00:00:00Z"},
            {"trace_location": here, "execution_duration": "long"},
            {"trace_location": here, "state": "ODD"},
            {"trace_location": here, "tags": {"": "x"}},
            {"trace_location": here, "tags": ["x"]},
        ):
            assert http.post("traces", json={"trace": {"trace_info": {**info, **wrong}}}).status_code == 400, wrong
        nowhere = {"trace_location": {"mlflow_experiment": {"experiment_id": "987654"}}}
        assert http.post("traces", json={"trace": {"trace_info": {**info, **nowhere}}}).status_code == 404
    assert [(each.name, each.value) for each in _assessments(trace_id)] == [("a", "a\ufffdb")]


def test_the_client_sends_beside_the_program_unless_told_otherwise(
    traced: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "true")
    mlflow.tracing.reset()
    ids = [made(n) for n in range(20)]
    mlflow.flush_trace_async_logging()
    found = mlflow.search_traces(return_type="list", max_results=50)
    assert {each.info.trace_id for each in found} == set(ids)
    assert all(len(each.data.spans) == 2 and each.info.state.value == "OK" for each in found)
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")
    mlflow.tracing.reset()


def test_sessions_prompts_models_and_copies(traced: str) -> None:
    mlflow.set_registry_uri(traced)
    name = f"greet-{uuid4().hex[:8]}"
    mlflow.genai.register_prompt(name=name, template="hi {{x}}")

    @mlflow.trace
    def prompted() -> str:
        mlflow.update_current_trace(metadata={"mlflow.trace.session": "s1"})
        return str(mlflow.genai.load_prompt(f"prompts:/{name}/1").format(x=1))

    assert prompted() == "hi 1"
    trace_id = last()
    mlflow.MlflowClient()._tracing_client.link_prompt_versions_to_trace(
        trace_id, [mlflow.genai.load_prompt(f"prompts:/{name}/1")]
    )
    found = mlflow.search_traces(filter_string=f"prompt = '{name}/1'", return_type="list")
    assert [each.info.trace_id for each in found] == [trace_id]
    [session] = mlflow.search_sessions(locations=[_experiment()])
    assert [each.info.trace_id for each in session] == [trace_id]
    model = mlflow.create_external_model(name="m")
    with mlflow.start_span("modelled"):
        mlflow.update_current_trace(metadata={"mlflow.modelId": model.model_id})
    [found] = mlflow.search_traces(model_id=model.model_id, return_type="list")
    assert found.info.trace_id == last()
    mlflow.add_trace(found)
    both = mlflow.search_traces(filter_string="span.name = 'modelled'", return_type="list")
    assert len({each.info.trace_id for each in both}) == 2


def test_evaluations_write_what_they_found(traced: str) -> None:
    from mlflow.genai import datasets, evaluate, scorer

    @scorer
    def exact(outputs: Any, expectations: dict[str, Any]) -> bool:
        return bool(outputs == expectations["answer"])

    questions = datasets.create_dataset(name="questions", experiment_id=_experiment())
    questions.merge_records(
        [{"inputs": {"q": q}, "expectations": {"answer": answer}} for q, answer in (("a", "A"), ("b", "x"))]
    )
    result = evaluate(data=questions, predict_fn=lambda q: q.upper(), scorers=[exact])
    assert result.metrics["exact/mean"] == 0.5
    found = mlflow.search_traces(run_id=result.run_id, return_type="list", filter_string="feedback.exact = 'true'")
    assert [each.data.spans[0].inputs for each in found] == [{"q": "a"}]
    assert mlflow.get_run(result.run_id).inputs.dataset_inputs[0].dataset.name == "questions"
