"""Files of traces: spans that older clients upload, attachments, and ``traces.json`` of spans in the database."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import httpx
import mlflow
import pytest
from mlflow.entities import Trace, TraceData
from mlflow.exceptions import MlflowException
from mlflow.tracing.attachments import Attachment
from mlflow.tracing.client import TracingClient

from modelkeep.lifecycle.keep import Keep
from modelkeep.registry.verify import verify


@pytest.fixture
def made(shared: tuple[Keep, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Trace]:
    """A trace with two spans."""
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")
    mlflow.set_tracking_uri(shared[1])
    mlflow.set_experiment(uuid4().hex)
    with mlflow.start_span("outer", attributes={"n": 1, "s": "ü", "d": {"a": [None, 0.5]}}) as span:
        span.set_inputs({"q": "why?"})
        with mlflow.start_span("inner"):
            pass
    found = mlflow.get_trace(mlflow.get_last_active_trace_id())
    assert found is not None
    yield found
    mlflow.set_tracking_uri(None)


def test_spans_in_files_are_read_back(shared: tuple[Keep, str], made: Trace) -> None:
    keep, address = shared
    client = TracingClient()
    info = made.info
    info.trace_id = f"tr-{uuid4().hex}"
    info.tags = {"mlflow.traceName": "old"}
    returned = client.start_trace(info)
    assert "mlflow.trace.spansLocation" not in returned.tags
    with pytest.raises(MlflowException, match="missing span data"):
        mlflow.MlflowClient().get_trace(info.trace_id)
    client._upload_trace_data(returned, made.data)
    found = mlflow.MlflowClient().get_trace(info.trace_id)
    assert [each.name for each in found.data.spans] == ["outer", "inner"]
    assert found.data.spans[0].inputs == {"q": "why?"}
    listed = mlflow.search_traces(filter_string="name = 'old'", return_type="list")
    assert [len(each.data.spans) for each in listed] == [2]
    answer = httpx.get(f"{address}/ajax-api/3.0/mlflow/get-trace-artifact", params={"request_id": info.trace_id})
    assert "attachment" in answer.headers["content-disposition"]
    assert len(TraceData.from_dict(answer.json()).spans) == 2
    assert verify(keep.db, keep.blobs) == []


def test_attachments_are_kept_beside_the_spans(shared: tuple[Keep, str], made: Trace) -> None:
    _, address = shared
    attachment = Attachment(content_type="image/png", content_bytes=b"\x89PNG\0" * 1000)
    TracingClient()._upload_attachments(made.info, {attachment.id: attachment})
    fetch = f"{address}/ajax-api/2.0/mlflow/get-trace-artifact"
    said = {"request_id": made.info.trace_id, "path": attachment.id}
    answer = httpx.get(fetch, params=said)
    assert answer.content == b"\x89PNG\0" * 1000
    assert answer.headers["content-type"] == "application/octet-stream"
    assert httpx.get(fetch, params={**said, "path": "none"}).status_code == 404
    for wrong in ("../traces.json", "/etc/passwd", "a/../../b", "%2e%2e/x", "a\\b"):
        assert httpx.get(fetch, params={**said, "path": wrong}).status_code == 400
    assert httpx.get(fetch, params={"request_id": "tr-none"}).status_code == 404
    assert httpx.get(fetch).status_code == 404
    mlflow.MlflowClient().delete_traces(made.info.experiment_id, trace_ids=[made.info.trace_id])
    assert httpx.get(fetch, params=said).status_code == 404


def test_spans_of_the_database_in_the_form_of_files(shared: tuple[Keep, str], made: Trace) -> None:
    _, address = shared
    fetch = f"{address}/api/3.0/mlflow/get-trace-artifact"
    found = TraceData.from_dict(httpx.get(fetch, params={"request_id": made.info.trace_id}).json())
    assert [each.to_dict() for each in found.spans] == [each.to_dict() for each in made.data.spans]
