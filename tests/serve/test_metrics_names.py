"""What Prometheus is told: read by its own parser, under our names and those of the servers people come from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from serving_kit import ROOT, Home, Made, Worker, tensor, worker

from modelkeep.cli.main import cli
from modelkeep.core.errors import Invalid
from modelkeep.protocols import metrics

ROWS = 7
FAILED = 3


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory, first: Made, second: Made) -> Iterator[Worker]:
    """A worker that uses every set of names; it answered seven rows in three requests and refused three."""
    home = Home(tmp_path_factory.mktemp("metrics"))
    package, other = home.keep(first), home.keep(second)
    name = 'tu"m\\ours'
    home.serve(name, (1, package, 1.0, "stable"), (2, other, 1.0, "shadow"))
    before = os.environ.get("MODELKEEP_METRICS")
    os.environ["MODELKEEP_METRICS"] = "triton, mlserver,tfserving"
    try:
        with worker(home) as found:
            path = "/v2/models/tu%22m%5Cours/infer"
            for rows in (1, 2, 4):
                assert found.client.post(path, json=tensor(first, range(rows))).status_code == 200
            for _ in range(FAILED):
                wrong = tensor(first, [0])
                wrong["inputs"][0]["data"][3] = None
                assert found.client.post(path, json=wrong).status_code == 400
            yield found
    finally:
        if before is None:
            del os.environ["MODELKEEP_METRICS"]
        else:
            os.environ["MODELKEEP_METRICS"] = before


@pytest.fixture(scope="module")
def families(busy: Worker) -> dict[str, Metric]:
    response = busy.client.get("/metrics")
    assert response.headers["content-type"] == metrics.CONTENT_TYPE
    assert busy.client.get("/monitoring/prometheus/metrics").status_code == 200
    found = list(text_string_to_metric_families(response.text))
    assert len({family.name for family in found}) == len(found)
    return {family.name: family for family in found}


def value(family: Metric, suffix: str = "", **labels: str) -> float:
    """The one sample with these labels."""
    if family.type == "counter":
        suffix = "_total"  # the parser adds it to counters that lack it
    found = [
        sample.value
        for sample in family.samples
        if sample.name == family.name + suffix and labels.items() <= sample.labels.items()
    ]
    assert len(found) == 1, (family, labels)
    return found[0]


def test_our_own_names(families: dict[str, Metric]) -> None:
    stable = {"endpoint": 'tu"m\\ours', "model": 'tu"m\\ours-model', "version": "1", "mode": "stable"}
    assert value(families["modelkeep_requests"], "_total", **stable) == 3
    assert value(families["modelkeep_predictions"], "_total", **stable) == ROWS
    assert value(families["modelkeep_errors"], "_total", **stable) == FAILED
    assert value(families["modelkeep_batches"], "_total", **stable) == 3
    assert value(families["modelkeep_generation"]) >= 1
    latency = families["modelkeep_request_seconds"]
    assert latency.type == "histogram"
    assert value(latency, "_count", **stable) == value(latency, "_bucket", le="+Inf", **stable) == 3
    total = value(latency, "_sum", **stable)
    assert 0 < value(families["modelkeep_infer_seconds"], "_total", **stable) < total
    buckets = [s.value for s in latency.samples if s.name.endswith("_bucket") and s.labels["mode"] == "stable"]
    assert buckets == sorted(buckets)


def test_tritons_names(families: dict[str, Metric]) -> None:
    labels = {"model": 'tu"m\\ours', "version": "1"}

    def counted(name: str, **more: str) -> float:
        assert families[f"nv_inference_{name}"].type == "counter"
        return value(families[f"nv_inference_{name}"], **labels, **more)

    assert counted("request_success") == counted("exec_count") == 3
    assert counted("count") == ROWS
    assert counted("request_failure", reason="OTHER") == FAILED
    assert counted("request_failure", reason="REJECTED") == 0
    parts = ("queue", "compute_input", "compute_infer", "compute_output")
    times = [counted(f"{part}_duration_us") for part in parts]
    assert all(time >= 0 for time in times)
    assert counted("compute_infer_duration_us") > 0
    assert sum(times) == pytest.approx(counted("request_duration_us"), abs=5)
    assert value(families["nv_inference_pending_request_count"], **labels) == 0


def test_tensorflow_servings_names(families: dict[str, Metric]) -> None:
    model = {"model_name": 'tu"m\\ours'}
    count = families[":tensorflow:serving:request_count"]
    assert value(count, status="OK", **model) == 3
    assert value(count, status="INVALID_ARGUMENT", **model) == FAILED
    latency = families[":tensorflow:serving:request_latency"]
    assert value(latency, "_count", API="Predict", entrypoint="REST", **model) == 3
    seconds = value(families["modelkeep_request_seconds"], "_sum", mode="stable")
    assert value(latency, "_sum", **model) == pytest.approx(seconds * 1e6)
    assert value(latency, "_bucket", le="1000", **model) <= 3


def test_mlservers_names(families: dict[str, Metric]) -> None:
    labels = {"model": 'tu"m\\ours', "version": "1"}
    assert value(families["model_infer_request_success"], "_total", **labels) == 3
    assert value(families["model_infer_request_failure"], "_total", **labels) == FAILED
    duration = families["model_infer_request_duration"]
    assert duration.type == "summary"
    assert value(duration, "_count", **labels) == 3
    seconds = value(families["modelkeep_request_seconds"], "_sum", mode="stable")
    assert value(duration, "_sum", **labels) == pytest.approx(seconds)


def test_names_are_written_as_dashboards_query_them(busy: Worker) -> None:
    lines = busy.client.get("/metrics").text.splitlines()
    model = r'model="tu\"m\\ours",version="1"'
    assert f"nv_inference_count{{{model}}} {ROWS}" in lines
    assert f"model_infer_request_success_total{{{model}}} 3" in lines
    assert r':tensorflow:serving:request_count{model_name="tu\"m\\ours",status="OK"} 3' in lines


def test_a_shadow_answers_nobody(families: dict[str, Metric]) -> None:
    versions = {sample.labels["version"] for sample in families["nv_inference_count"].samples}
    assert versions == {"1"}
    assert {sample.labels["mode"] for sample in families["modelkeep_requests"].samples} == {"stable", "shadow"}


def test_only_ours_unless_others_are_asked_for() -> None:
    text = metrics.Exporter(lambda: (), lambda: 4).render().decode()
    assert "modelkeep_generation 4\n" in text
    assert {family.name for family in text_string_to_metric_families(text)} >= {"modelkeep_requests"}
    assert all(line.split("modelkeep_")[0] in ("# HELP ", "# TYPE ", "") for line in text.splitlines())


def test_a_set_nobody_knows_keeps_the_process_from_starting(home: Home) -> None:
    with pytest.raises(Invalid, match="no set of metric names"):
        metrics.names("triton,datadog")
    assert metrics.names(" Triton,,triton ") == ("triton",)
    script = Path(__file__).with_name("serving_main.py")
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "MODELKEEP_METRICS": "datadog"}
    command = [sys.executable, str(script), str(home.path), home.url, home.blobs_url]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "'datadog' is no set of metric names; expected some of triton, tfserving, mlserver" in done.stderr


def test_up_refuses_it_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELKEEP_METRICS", "datadog")
    monkeypatch.setenv("MODELKEEP_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    found = CliRunner().invoke(cli, ["up", "--port", "0", "--serve-port", "0", "--json"])
    assert found.exit_code == 2
    assert json.loads(found.stdout)["error"]["problems"][0]["path"] == "MODELKEEP_METRICS"
