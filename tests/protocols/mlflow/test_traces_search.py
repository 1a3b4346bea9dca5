"""Searches of traces through MLflow's own client: filters, orders, and pages while traces are added."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import mlflow
import pytest
from mlflow.exceptions import MlflowException

from modelkeep.lifecycle.keep import Keep
from modelkeep.registry import experiments, traces, traces_assessments, traces_spans
from modelkeep.registry.traces_assessments import Assessment
from modelkeep.registry.traces_spans import Span, Spans

T0 = 1_700_000_000_000


def span(n: int, name: str, kind: str, attributes: str, status: str = "OK", parent: str | None = None) -> Span:
    content = f'{{"name":"{name}","attributes":[{attributes}]}}'
    return Span(f"{n:016x}", parent, name, kind, status, (T0 + n) * 10**6, (T0 + n + 9) * 10**6, content)


def attribute(key: str, kind: str, value: str) -> str:
    return f'{{"key":"{key}","value":{{"{kind}":{value}}}}}'


def assess(kind: str, name: str, value: Any, **more: Any) -> Assessment:
    made = f"a-{uuid4().hex}"
    return Assessment(made, kind, name, value, {"assessment_name": name, kind: {"value": value}}, **more)


def fill(conn: Any) -> int:
    """Six traces, ``t0`` to ``t5``, one a second; the last one is still going on."""
    number = experiments.create(conn, uuid4().hex, T0, "", {})
    sign = f"{number}-"
    for n in range(6):
        done = n < 5
        told = traces.Told(
            trace_id=f"{sign}t{n}",
            experiment=number,
            start_ms=T0 + 1000 * n,
            duration_ms=(n % 3) * 100 if done else None,
            status=("OK", "ERROR", "OK", "OK", "ERROR", "IN_PROGRESS")[n],
            client_request_id=f"client {n}" if n % 2 else None,
            metadata={"user": f"u{n % 2}", **({traces.SESSION: "s1"} if n in (1, 2) else {})},
            tags={traces.NAME: f"Chat_{n}" if n < 3 else f"tool%{n}", "stage": "ärger" if n == 4 else "dev"},
            final=True,
        )
        row = traces.tell(conn, told)
        spans = {
            "a": span(
                n, "root", "CHAIN", attribute("model", "string_value", f'"gpt-{n}"'), "OK" if done else "UNSET"
            ),
            "b": span(
                n + 100,
                f"call {n}",
                "LLM" if n % 2 else "TOOL",
                ",".join(
                    [
                        attribute("temp", "double_value", "0.5"),
                        attribute("n", "int_value", str(n)),
                        attribute("my key", "bool_value", "true" if n % 2 else "false"),
                        attribute("text", "string_value", f'"say \\"hi\\" {n}"'),
                    ]
                ),
                parent=f"{n:016x}",
            ),
        }
        traces_spans.log(conn, number, [Spans(told.trace_id, spans)])
        if n == 0:
            traces_assessments.put(conn, row, assess("feedback", "score", 0.25))
            traces_assessments.put(conn, row, assess("expectation", "answer", "yes"))
        if n == 1:
            traces_assessments.put(conn, row, assess("feedback", "score", 4))
            traces_assessments.put(conn, row, assess("feedback", "polite", True, session="s1"))
        if n == 3:
            first = assess("feedback", "score", "good")
            traces_assessments.put(conn, row, first)
            traces_assessments.put(conn, row, assess("feedback", "score", "bad", overrides=first.assessment_id))
        if n == 4:
            traces_assessments.put(conn, row, assess("issue", "iss-1", "slow"))
    return number


@pytest.fixture(scope="module")
def filled(shared: tuple[Keep, str]) -> str:
    """An experiment with six traces."""
    return str(shared[0].db.write(fill))


@pytest.fixture(autouse=True)
def client(shared: tuple[Keep, str]) -> Iterator[None]:
    mlflow.set_tracking_uri(shared[1])
    yield
    mlflow.set_tracking_uri(None)


def found(experiment: str, filter_string: str | None = None, **options: Any) -> str:
    """The numbers of the traces a search finds, in order."""
    options.setdefault("include_spans", False)
    listed = mlflow.search_traces(
        locations=[experiment], filter_string=filter_string, return_type="list", **options
    )
    return "".join(each.info.trace_id[-1] for each in listed)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("status = 'OK'", "320"),
        ("trace.status != 'OK'", "541"),
        ("attributes.status IN ('ERROR', 'IN_PROGRESS')", "541"),
        ("status NOT IN ('ERROR')", "5320"),
        (f"timestamp_ms >= {T0 + 4000}", "54"),
        (f"timestamp < {T0 + 1000} AND attribute.timestamp_ms > 0", "0"),
        ("execution_time_ms > 99", "421"),
        ("execution_time = 0", "30"),
        (f"end_time_ms <= {T0 + 1100}", "10"),
        ("name = 'Chat_1'", "1"),
        ("name LIKE 'Chat%'", "210"),
        ("name LIKE 'chat%'", ""),
        ("trace.name ILIKE 'cHAT_2'", "2"),
        ("name LIKE 'tool%5'", "5"),
        ("name RLIKE '^Chat_[12]$'", "21"),
        ("name IN ('Chat_0', 'tool%3')", "30"),
        ("tags.stage = 'ärger'", "4"),
        ("tag.stage != 'ärger'", "53210"),
        ("tags.`stage` RLIKE 'ä.g'", "4"),
        ("tags.other IS NULL AND tags.stage IS NOT NULL", "543210"),
        ("metadata.user = 'u1'", "531"),
        ("request_metadata.`user` LIKE '%0'", "420"),
        ("metadata.mlflow.trace.session = 's1'", "21"),
        ("metadata.`mlflow.trace.session` IS NULL", "5430"),
        ("client_request_id = 'client 3'", "3"),
        ("client_request_id LIKE 'client%'", "531"),
        ("span.name = 'root'", "543210"),
        ("span.name LIKE 'call%' AND span.type = 'LLM'", "531"),
        ("span.name = 'root' AND span.type = 'LLM'", ""),
        ("span.type IN ('TOOL')", "420"),
        ("span.status = 'UNSET'", "5"),
        ("span.name RLIKE 'l [34]'", "43"),
        ("span.attributes.model = 'gpt-3'", "3"),
        ("span.attributes.model != 'gpt-3'", "54210"),
        ("span.attributes.model LIKE 'gpt%'", "543210"),
        ("span.attributes.model RLIKE '-[02]$'", "20"),
        ("span.attributes.n = '4'", "4"),
        ("span.attributes.temp = '0.5' AND span.type = 'TOOL'", "420"),
        ("span.attributes.`my key` = 'true'", "531"),
        ("span.attributes.text LIKE '%\"hi\" 5%'", "5"),
        ("span.attributes.n IN ('1', '2')", "21"),
        ("span.attributes.none = 'x'", ""),
        ("span.content LIKE '%gpt-2%'", "2"),
        ("trace.text ILIKE '%GPT-2%'", "2"),
        ("feedback.score > 0.2", "10"),
        ("feedback.score >= 4", "1"),
        ("feedback.score = '4'", "1"),
        ("feedback.score = 'bad'", "3"),
        ("feedback.score = 'good'", ""),
        ("feedback.score LIKE 'b%'", "3"),
        ("feedback.score != 'bad'", "10"),
        ("feedback.score IS NOT NULL", "310"),
        ("feedback.score IS NULL", "542"),
        ("feedback.polite = 'true'", "21"),
        ("feedback.`polite` IS NULL", "5430"),
        ("expectation.answer = 'yes'", "0"),
        ("expectation.score IS NOT NULL", ""),
        ("issue.id = 'iss-1'", "4"),
        ("prompt = 'none/1'", ""),
    ],
)
def test_filters(filled: str, text: str, wanted: str) -> None:
    assert found(filled, text) == wanted


@pytest.mark.parametrize(
    ("order", "wanted"),
    [
        (None, "543210"),
        (["timestamp_ms ASC"], "012345"),
        (["execution_time_ms DESC"], "241305"),
        (["execution_time ASC"], "304125"),
        (["status", "timestamp ASC"], "145023"),
        (["name DESC"], "543210"),
        (["end_time_ms"], "012345"),
        (["request_id DESC"], "543210"),
        (["tags.stage", "timestamp_ms"], "012354"),
        (["metadata.`mlflow.trace.session`", "timestamp_ms ASC"], "120345"),
    ],
)
def test_orders(filled: str, order: list[str] | None, wanted: str) -> None:
    assert found(filled, order_by=order) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "status > 'OK'",
        "timestamp_ms = 'x'",
        "timestamp_ms LIKE 'x'",
        "colour = 'red'",
        "params.x = '1'",
        "span.colour = 'x'",
        "span.attributes. = 'x'",
        "span.content = 'x'",
        "feedback.score > 'x'",
        "feedback.score = 4",
        "feedback.score IN ('x')",
        "tags.stage > 'x'",
        "metadata.user IN ('x')",
        "issue.name = 'x'",
        "issue.id != 'x'",
        "prompt = 'x'",
        "prompt != 'x/1'",
        "name RLIKE '(('",
        "name RLIKE '" + "a" * 1001 + "'",
        "status = 'OK' OR status = 'ERROR'",
        "status",
        "status = ",
        "AND",
    ],
)
def test_what_makes_no_sense_is_refused(filled: str, text: str) -> None:
    with pytest.raises(MlflowException) as caught:
        found(filled, text)
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"


@pytest.mark.parametrize("order", [["colour"], ["status SIDEWAYS"], ["feedback.score"], ["status", "status DESC"]])
def test_orders_that_make_no_sense_are_refused(filled: str, order: list[str]) -> None:
    with pytest.raises(MlflowException) as caught:
        found(filled, order_by=order)
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"


def test_pages_stay_right_while_traces_are_added(shared: tuple[Keep, str]) -> None:
    keep, address = shared
    number = keep.db.write(lambda conn: experiments.create(conn, uuid4().hex, T0, "", {}))

    def add(n: int, ms: int) -> None:
        told = traces.Told(trace_id=f"{number}-n{n}", experiment=number, start_ms=ms, duration_ms=n % 2)
        keep.db.write(lambda conn: traces.tell(conn, told))

    for n in range(10):
        add(n, T0 + n // 2)
    for order in ([], ["execution_time_ms"]):
        whole = mlflow.search_traces(
            locations=[str(number)], order_by=order, return_type="list", include_spans=False
        )
        first = [each.info.trace_id for each in whole]
        client, seen, token = mlflow.MlflowClient(), [], None
        for page in range(20):
            listed = client.search_traces(
                locations=[str(number)], order_by=order, max_results=3, page_token=token, include_spans=False
            )
            seen += [each.info.trace_id for each in listed]
            token = listed.token
            if not token:
                break
            add(100 + 50 * len(order) + page, T0 + 10_000)  # which comes before every page that was read
        assert [each for each in seen if each in first] == first
        assert len(seen) == len(set(seen))
    with httpx.Client(base_url=f"{address}/api/3.0/mlflow") as http:
        here = {"locations": [{"mlflow_experiment": {"experiment_id": str(number)}}]}
        token = http.post("traces/search", json={**here, "max_results": 1}).json()["next_page_token"]
        for wrong in (
            {"max_results": 501},
            {"max_results": 0},
            {"page_token": "x"},
            {"filter": "name = 'x'", "page_token": token},
        ):
            assert http.post("traces/search", json={**here, **wrong}).status_code == 400
        assert http.post("traces/search", json={}).status_code == 400


def test_a_filter_that_matches_few_of_many_leads_and_finds_the_same(
    shared: tuple[Keep, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from modelkeep.registry import traces_search

    keep, _ = shared
    number = keep.db.write(fill)

    def ids(text: str) -> list[str]:
        with keep.db.read() as conn:
            return [row.trace_id for row in traces_search.find(conn, [number], text, [], 10, "")[0]]

    text = "tags.stage = 'dev' AND metadata.user = 'u1' AND name = 'Chat_1'"
    led = ids(text)
    monkeypatch.setattr(traces_search, "FEW", -1)
    assert ids(text) == led == [f"{number}-t1"]
