"""Statistics of traces through MLflow's own client, against figures worked out by hand and by NumPy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import mlflow
import numpy as np
import pytest
from mlflow.entities.trace_metrics import AggregationType, MetricAggregation, MetricViewType
from mlflow.exceptions import MlflowException
from mlflow.tracing.client import TracingClient

from modelkeep.lifecycle.keep import Keep
from modelkeep.registry import experiments, traces, traces_assessments, traces_spans
from modelkeep.registry.traces_assessments import Assessment
from modelkeep.registry.traces_spans import Span, Spans

HOUR = 3_600_000
T0 = 1_700_000 * 1_000_000 // HOUR * HOUR
LATENCIES = [5, 100, 30, 12, 77, 41, 8, 300]
P = AggregationType


def fill(conn: Any) -> int:
    number = experiments.create(conn, uuid4().hex, T0, "", {})
    for n, latency in enumerate(LATENCIES):
        told = traces.Told(
            trace_id=f"{number}-m{n}",
            experiment=number,
            start_ms=T0 + n * HOUR // 2,
            duration_ms=latency,
            status="ERROR" if n == 3 else "OK",
            metadata={
                traces.SESSION: f"s{n % 3}",
                traces.TOKENS: f'{{"input_tokens": {n}, "output_tokens": 1, "total_tokens": {n + 1}}}',
            },
            tags={traces.NAME: "even" if n % 2 == 0 else "odd", "k": str(n)},
            final=True,
        )
        row = traces.tell(conn, told)
        at = told.start_ms * 10**6
        one = Span(
            "a" * 16,
            None,
            "call",
            "LLM",
            "OK",
            at,
            at + latency * 10**6,
            "{}",
            "gpt",
            "acme",
            None,
            {"total_cost": n / 4},
        )
        traces_spans.log(conn, number, [Spans(told.trace_id, {"a": one})])
        value = bool(n % 2) if n < 4 else n
        said = Assessment(f"a-{n}", "feedback", "score" if n >= 4 else "good", value, {"assessment_name": "x"})
        traces_assessments.put(conn, row, said)
    return number


@pytest.fixture(scope="module")
def filled(shared: tuple[Keep, str]) -> Iterator[tuple[str, str]]:
    """The address of a server, and an experiment with eight traces."""
    keep, address = shared
    mlflow.set_tracking_uri(address)
    yield address, str(keep.db.write(fill))
    mlflow.set_tracking_uri(None)


def asked(
    experiment: str, view: str, metric: str, *made: Any, **more: Any
) -> list[tuple[dict[str, str], dict[str, float]]]:
    aggregations = [
        MetricAggregation(*each) if isinstance(each, tuple) else MetricAggregation(each) for each in made
    ]
    store = mlflow.tracking._tracking_service.utils._get_store()
    found = store.query_trace_metrics([experiment], MetricViewType(view), metric, aggregations, **more)
    return [(each.dimensions, each.values) for each in found]


def test_counts_by_name_status_and_session(filled: tuple[str, str]) -> None:
    _, where = filled
    assert asked(where, "TRACES", "trace_count", P.COUNT) == [({}, {"COUNT": 8})]
    by_name = asked(where, "TRACES", "trace_count", P.COUNT, dimensions=["trace_name", "trace_status"])
    assert by_name == [
        ({"trace_name": "even", "trace_status": "OK"}, {"COUNT": 4}),
        ({"trace_name": "odd", "trace_status": "ERROR"}, {"COUNT": 1}),
        ({"trace_name": "odd", "trace_status": "OK"}, {"COUNT": 3}),
    ]
    assert asked(where, "TRACES", "session_count", P.COUNT) == [({}, {"COUNT": 3})]
    for text, count in (
        ("trace.status = 'ERROR'", 1),
        ("trace.tag.k = '5'", 1),
        ('trace.tag.`mlflow.traceName` = "even"', 4),
        ("trace.metadata.`mlflow.trace.session` = 's0'", 3),
    ):
        assert asked(where, "TRACES", "trace_count", P.COUNT, filters=[text]) == [({}, {"COUNT": count})]


def test_quantiles_are_those_of_numpy(filled: tuple[str, str]) -> None:
    _, where = filled
    shares = (0.0, 10.0, 50.0, 90.0, 99.5, 100.0)
    made = [(P.PERCENTILE, share) for share in shares]
    [(_, values)] = asked(where, "TRACES", "latency", P.AVG, P.MIN, P.MAX, *made)
    assert [values[f"P{share}"] for share in shares] == pytest.approx(np.percentile(LATENCIES, shares).tolist())
    assert (values["AVG"], values["MIN"], values["MAX"]) == (pytest.approx(np.mean(LATENCIES)), 5, 300)
    grouped = asked(where, "TRACES", "latency", (P.PERCENTILE, 75.0), dimensions=["trace_name"])
    for (groups, found), part in zip(grouped, (LATENCIES[::2], LATENCIES[1::2]), strict=True):
        assert found["P75.0"] == pytest.approx(np.percentile(part, 75)), groups
    assert asked(where, "SPANS", "latency", (P.PERCENTILE, 50.0))[0][1]["P50.0"] == np.median(LATENCIES)


def test_tokens_costs_and_assessments_add_up(filled: tuple[str, str]) -> None:
    _, where = filled
    assert asked(where, "TRACES", "total_tokens", P.SUM, P.MAX)[0][1] == {"SUM": 36, "MAX": 8}
    [(groups, values)] = asked(where, "SPANS", "total_cost", P.SUM, dimensions=["span_model_name"])
    assert (groups, values) == ({"span_model_name": "gpt"}, {"SUM": 7.0})
    assert asked(where, "SPANS", "span_count", P.COUNT, filters=["span.type = 'LLM'", "trace.status = 'OK'"])[0][
        1
    ] == {"COUNT": 7}
    found = asked(where, "ASSESSMENTS", "assessment_value", P.AVG, dimensions=["assessment_name"])
    assert found == [({"assessment_name": "good"}, {"AVG": 0.5}), ({"assessment_name": "score"}, {"AVG": 5.5})]
    found = asked(
        where, "ASSESSMENTS", "assessment_count", P.COUNT, dimensions=["assessment_value"],
        filters=["assessment.name = 'good'"],
    )  # fmt: skip
    assert found == [({"assessment_value": "false"}, {"COUNT": 2}), ({"assessment_value": "true"}, {"COUNT": 2})]


def test_time_buckets_ranges_and_pages(filled: tuple[str, str]) -> None:
    address, where = filled
    buckets = asked(where, "TRACES", "trace_count", P.COUNT, time_interval_seconds=3600)
    assert [values["COUNT"] for _, values in buckets] == [2, 2, 2, 2]
    assert buckets[0][0]["time_bucket"].endswith("+00:00") and sorted(b["time_bucket"] for b, _ in buckets)
    span_buckets = asked(where, "SPANS", "span_count", P.COUNT, time_interval_seconds=3600)
    assert [b for b, _ in span_buckets] == [b for b, _ in buckets]
    inside = {"start_time_ms": T0 + HOUR // 2, "end_time_ms": T0 + HOUR}
    assert asked(where, "TRACES", "trace_count", P.COUNT, **inside)[0][1] == {"COUNT": 2}
    assert asked(where, "SPANS", "total_cost", P.SUM, **inside)[0][1] == {"SUM": 0.75}
    body = {
        "experiment_ids": [where],
        "view_type": "TRACES",
        "metric_name": "trace_count",
        "aggregations": [{"aggregation_type": "COUNT"}],
        "time_interval_seconds": "1800",
        "max_results": 3,
    }
    seen: list[Any] = []
    token = ""
    with httpx.Client(base_url=f"{address}/api/3.0/mlflow/traces") as http:
        for _ in range(3):
            answer = http.post("metrics", json={**body, "page_token": token}).json()
            seen += answer["data_points"]
            token = answer.get("next_page_token", "")
        assert len(seen) == 8 and not token
        for wrong in (
            {"time_interval_seconds": 0},
            {"view_type": "MOONS"},
            {"aggregations": [{"aggregation_type": "PERCENTILE"}]},
            {"aggregations": [{"aggregation_type": "COUNT", "percentile_value": 1}]},
            {"aggregations": []},
            {"page_token": "x"},
            {"experiment_ids": []},
            {"start_time_ms": 2**63},
        ):
            assert http.post("metrics", json={**body, **wrong}).status_code == 400, wrong


@pytest.mark.parametrize(
    ("view", "metric", "made", "more"),
    [
        ("TRACES", "colour", P.COUNT, {}),
        ("TRACES", "latency", P.COUNT, {}),
        ("TRACES", "latency", P.AVG, {"dimensions": ["trace_status"]}),
        ("TRACES", "trace_count", P.COUNT, {"filters": ["span.name = 'x'"]}),
        ("SPANS", "span_count", P.COUNT, {"filters": ["assessment.name = 'x'"]}),
        ("TRACES", "trace_count", P.COUNT, {"filters": ["trace.status != 'x'"]}),
        ("TRACES", "trace_count", P.COUNT, {"filters": ["trace.tag = 'x'"]}),
        ("TRACES", "trace_count", P.COUNT, {"filters": ["trace.status.x = 'x'"]}),
        ("TRACES", "trace_count", P.COUNT, {"filters": ["trace.moon = 'x'"]}),
        ("TRACES", "trace_count", P.COUNT, {"filters": ["status = 'x'"]}),
    ],
)
def test_what_makes_no_sense_is_refused(
    filled: tuple[str, str], view: str, metric: str, made: Any, more: dict[str, Any]
) -> None:
    with pytest.raises(MlflowException) as caught:
        asked(filled[1], view, metric, made, **more)
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"


def test_how_far_two_filters_go_together(filled: tuple[str, str]) -> None:
    _, where = filled
    client = TracingClient()
    found = client.calculate_trace_filter_correlation([where], "name = 'odd'", "tags.k = '1'")
    assert (found.filter1_count, found.filter2_count, found.joint_count, found.total_count) == (4, 1, 1, 8)
    assert found.npmi == pytest.approx(math.log(1 * 8 / (4 * 1)) / math.log(8))
    assert 0 < (found.npmi_smoothed or 0) < found.npmi
    apart = client.calculate_trace_filter_correlation([where], "name = 'odd'", "name = 'even'")
    assert apart.npmi == -1 and apart.joint_count == 0
    based = client.calculate_trace_filter_correlation(
        [where], "name = 'odd'", "status = 'ERROR'", "feedback.good IS NOT NULL"
    )
    assert (based.total_count, based.filter1_count, based.filter2_count) == (4, 2, 1)
    none = client.calculate_trace_filter_correlation([where], "name = 'odd'", "name = 'none'")
    assert math.isnan(none.npmi) and none.npmi_smoothed is None
    same = client.calculate_trace_filter_correlation([where], "timestamp_ms > 0", "status != 'x'")
    assert same.npmi == 1
