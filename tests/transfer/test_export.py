"""Exporting to a running MLflow server, and what is there afterwards."""

from __future__ import annotations

import math
from pathlib import Path
from sys import float_info
from typing import Any, cast

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType
from same_mlflow import describe
from serving_mlflow import answering
from sqlalchemy import select
from test_import_database import bring, counts

from modelkeep.core.errors import Conflict
from modelkeep.core.ports import Silent
from modelkeep.lifecycle.keep import Keep
from modelkeep.protocols.mlflow.transfer import exporting, traced
from modelkeep.protocols.mlflow.transfer.choosing import open_source
from modelkeep.protocols.mlflow.transfer.records import Trace
from modelkeep.protocols.mlflow.transfer.rest import Client
from modelkeep.registry import artifacts, runs, webhooks
from modelkeep.store.blobs import Blobs
from modelkeep.store.trace_tables import traces
from small import Project


@pytest.fixture
def target(server: dict[str, Any]) -> str:
    """A server on which others have worked."""
    address: str = server["uri"]
    return address


@pytest.fixture
def filled(home: Keep, sqlite_source: dict[str, Any]) -> Keep:
    """A home into which everything was imported."""
    assert bring(home, sqlite_source["uri"], verify=0).checked.faults == []
    return home


def returned(target: str) -> dict[str, Any]:
    """What was exported with a prefix, without it."""
    found = describe(target, ids=False)
    return {name.replace("back ", "", 1): what for name, what in found.items() if " back " in name}


def test_there_and_back(filled: Keep, target: str, server: dict[str, Any], sqlite_source: dict[str, Any]) -> None:
    made = ("made-here", "https://hooks.example.com/", ["model_version_alias.deleted"])
    filled.db.write(lambda conn: webhooks.add(conn, *made, 1, secret="told there"))
    report = exporting.run(filled, target, Silent(), prefix="back ")
    assert report.faults == []
    assert report.left == []
    assert (report.exported["evaluation datasets"], report.exported["webhooks"]) == (2, 1)
    assert report.compared == 5  # two of them deleted
    assert report.exported["points"] == 1507
    with answering(filled) as here:
        mine = describe(here, ids=False)
    assert [each for each in mine if "Default" not in each] == [
        "experiment Fünf Flüge",
        "model flüge",
        "model nothing yet",
    ]
    assert returned(target) == mine
    client = MlflowClient(target)
    number = client.get_experiment_by_name("back Fünf Flüge").experiment_id
    runs = {run.data.tags["modelkeep.run_id"]: run for run in client.search_runs([number])}
    child = next(run for run in runs.values() if run.info.run_name == "child")
    parent = runs[next(key for key, run in runs.items() if run.info.run_name == "training")]
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    model = client.search_logged_models([number])[0]
    assert model.source_run_id == parent.info.run_id
    assert (model.params, model.metrics[0].dataset_name) == ({"depth": "3"}, "rows")
    assert [each.model_id for each in client.get_run(parent.info.run_id).outputs.model_outputs] == [model.model_id]
    by_alias = client.get_model_version_by_alias("back flüge", "champion")
    assert (str(by_alias.version), by_alias.run_id) == ("3", parent.info.run_id)
    assert client.get_model_version("back flüge", "1").source == f"models:/{model.model_id}"
    _datasets_and_webhooks(client, server, sqlite_source["dataset"])
    restored = _deleted(client, number)
    _trace(client, sqlite_source, number, parent.info.run_id)
    before = counts(filled)
    again = exporting.run(filled, target, Silent(), prefix="back ")
    assert client.get_run(restored).info.lifecycle_stage == "deleted"
    assert again.unchanged == {"runs": 5, "logged models": 1, "evaluation datasets": 2, "webhooks": 3, "traces": 1}
    assert again.faults == again.left == []
    assert returned(target) == mine
    assert counts(filled) == {**before, "events": before["events"] + 1}


def _trace(client: MlflowClient, source: dict[str, Any], number: str, run: str) -> None:
    """The trace under its own id, with spans, tags, metadata and assessments; the client reads it there."""
    mine = MlflowClient(source["uri"]).get_trace(source["trace"])
    there = client.get_trace(source["trace"])
    assert there.info.experiment_id == number
    for name in ("state", "request_time", "execution_duration", "request_preview", "response_preview"):
        assert getattr(there.info, name) == getattr(mine.info, name), name
    assert (there.info.tags["colour"], there.info.tags["later"]) == ("grün", "yes")
    assert there.info.trace_metadata["build"] == "7"
    assert there.info.trace_metadata.get("mlflow.sourceRun") in (None, run)

    def told(trace: Any) -> list[Any]:
        return sorted(
            (
                each.name,
                each.span_id,
                each.parent_id,
                str(each.status),
                each.inputs,
                each.outputs,
                len(each.events),
            )
            for each in trace.data.spans
        )

    assert told(there) == told(mine)
    assert [_assessment(each) for each in _ordered(there)] == [_assessment(each) for each in _ordered(mine)]


def _ordered(trace: Any) -> list[Any]:
    return sorted(trace.info.assessments, key=lambda each: str(each.assessment_id))


def _assessment(each: Any) -> tuple[Any, ...]:
    return each.assessment_id, each.name, each.value, each.rationale, each.create_time_ms


def _deleted(client: MlflowClient, number: str) -> str:
    """What was deleted here is deleted there, whole, and can be restored; the id of the run that was."""
    [run] = client.search_runs([number], run_view_type=ViewType.DELETED_ONLY)
    assert run.data.params == {"kept": "yes"}
    client.restore_run(run.info.run_id)
    [gone] = [
        each
        for each in client.search_experiments(view_type=ViewType.DELETED_ONLY)
        if "modelkeep.experiment" in each.tags
    ]
    [within] = client.search_runs([gone.experiment_id], run_view_type=ViewType.DELETED_ONLY)
    assert "modelkeep.run_id" in within.data.tags
    return str(run.info.run_id)


def _datasets_and_webhooks(client: MlflowClient, server: dict[str, Any], dataset_id: str) -> None:
    """Records as the client reads them there; the secret as the server's database holds it."""
    work = client.get_experiment_by_name("back Fünf Flüge").experiment_id
    default = client.get_experiment_by_name("back Default").experiment_id
    sets = [each for each in client.search_datasets() if each.tags.get("modelkeep.dataset_id") == dataset_id]
    assert [(each.name, each.tags["kind"]) for each in sets] == [("Fragen", "grün")]
    found = client.get_dataset(sets[0].dataset_id)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(client.tracking_uri)  # where the records are fetched from, once they are asked for
    try:
        records = {each.inputs["question"]: each for each in found.records}
    finally:
        mlflow.set_tracking_uri(before)
    assert sorted(records) == ["none", "traced", "wieviel ü?"]
    full = records["wieviel ü?"]
    assert (full.outputs, full.expectations, full.tags) == (
        {"answer": 3},
        {"expected": [1, None]},
        {"hard": "yes", **{key: value for key, value in full.tags.items() if key.startswith("mlflow.")}},
    )
    assert records["traced"].source.source_type == "TRACE"
    source = open_source(f"sqlite:///{server['folder']}/mlflow.db")
    hooks = {each.name: each for each in source.webhooks()}
    within = {each.dataset_id: each.experiments for page in source.evaluation_datasets() for each in page}
    source.close()
    assert within[found.dataset_id] == [int(default), int(work)]
    assert (hooks["made-here"].secret, hooks["made-here"].status) == ("told there", "ACTIVE")
    assert hooks["made-here"].events == ["model_version_alias.deleted"]


@pytest.mark.parametrize(("trace_id", "path"), [("an-id-of-its-own", "v1/traces"), (f"tr-{7:032x}", "v1/none")])
def test_spans_that_a_server_does_not_take(
    home: Keep, target: str, monkeypatch: pytest.MonkeyPatch, trace_id: str, path: str
) -> None:
    """The trace goes without them, and every export says so."""
    post = Client.post
    monkeypatch.setattr(
        Client,
        "post",
        lambda self, to, *args, **more: post(self, path if to == "v1/traces" else to, *args, **more),
    )
    span = {"trace_id": f"{7:032x}", "span_id": f"{8:016x}", "name": "only", "start_time_unix_nano": 1}
    number = home.db.write(lambda conn: runs.experiment(conn, f"of {trace_id}", 1.0))
    given = Trace(trace_id, number, 1_000, 5, "OK", tags={"colour": "red"}, spans=[span])
    assert home.db.write(lambda conn: traced.write(conn, given, number, 1)) == ""
    for _ in range(2):
        report = exporting.run(home, target, Silent())
        assert (report.exported["traces"], report.faults) == (1, [])
        [left] = report.left
        assert left.startswith(f"1 spans of trace {trace_id}: ")
    client = MlflowClient(target)
    place = client.get_experiment_by_name(f"of {trace_id}").experiment_id
    [there] = client.search_traces(locations=[place], include_spans=False)
    assert (there.info.trace_id, there.info.tags["colour"]) == (trace_id, "red")
    client.delete_traces(place, trace_ids=[trace_id])  # others read this server too


def test_prompts_deleted_models_infinities_and_attachments(home: Keep, target: str, tmp_path: Path) -> None:
    """What others than this server refuse, change or do not list."""
    with answering(home) as here:
        _fill(MlflowClient(here, registry_uri=here), tmp_path)
    number = home.db.write(lambda conn: runs.experiment(conn, "work", 1.0))
    given = Trace(f"tr-{9:032x}", number, 1_000, 5, "OK")
    home.db.write(lambda conn: traced.write(conn, given, number, 1))
    with home.db.read() as conn:
        [trace] = conn.execute(select(traces.c.id)).scalars()
    [(digest, size)] = cast("Blobs", home.blobs).put_many({"x": b"picture"}).values()
    home.db.write(artifacts.Put(artifacts.Owner("trace", trace), "attachments/x", digest, size))
    report = exporting.run(home, target, Silent(), prefix="odd-")
    assert (report.left, report.faults, report.exported["logged models"]) == ([], [], 1)
    client = MlflowClient(target, registry_uri=target)
    work = client.get_experiment_by_name("odd-work")
    [run] = client.search_runs([work.experiment_id])
    assert (run.data.tags["empty"], run.data.params["empty"]) == ("", "")
    points = client.get_metric_history(run.info.run_id, "odd")
    assert [(point.step, point.value) for point in points] == [(1, float_info.max), (2, -float_info.max)]
    _gone(client, work, run.info.run_id, tmp_path)
    prompt = client.get_prompt_version_by_alias("odd-asker", "prod")
    assert (prompt.version, prompt.template) == (2, "Say {{x}} twice")
    [listed] = client.search_prompts("name = 'odd-asker'")
    assert listed.tags["_mlflow_experiment_ids"] == f",{work.experiment_id},"
    [there] = client.search_traces(locations=[work.experiment_id], include_spans=False)
    place = f"{there.info.tags['mlflow.artifactLocation']}/attachments/x"
    found = Path(mlflow.artifacts.download_artifacts(place, dst_path=str(tmp_path / "t"), tracking_uri=target))
    assert found.read_bytes() == b"picture"
    again = exporting.run(home, target, Silent(), prefix="odd-")
    assert (again.left, again.faults, again.unchanged["logged models"]) == ([], [], 1)
    assert {run.data.tags["empty"] for run in client.search_runs([work.experiment_id])} == {""}


def _fill(client: MlflowClient, folder: Path) -> None:
    experiment = client.create_experiment("work")
    run = client.create_run(experiment, tags={"empty": ""}).info.run_id
    client.log_param(run, "empty", "")
    client.log_metric(run, "odd", math.inf, timestamp=1, step=1)
    client.log_metric(run, "odd", -math.inf, timestamp=2, step=2)
    model = client.create_logged_model(experiment, name="gone", source_run_id=run, params={"a": "b"})
    (folder / "files").mkdir()
    (folder / "files" / "MLmodel").write_text("flavors: {}\n")
    client.log_model_artifacts(model.model_id, str(folder / "files"))
    client.finalize_logged_model(model.model_id, "READY")
    client.create_registered_model("of the gone")
    client.create_model_version("of the gone", f"models:/{model.model_id}", run, model_id=model.model_id)
    client.delete_logged_model(model.model_id)
    for text in ("Say {{x}}", "Say {{x}} twice"):
        client.register_prompt("asker", text)
    client.set_prompt_tag("asker", "_mlflow_experiment_ids", f",{experiment},")
    client.set_prompt_alias("asker", "prod", 2)


def _gone(client: MlflowClient, work: Any, run: str, folder: Path) -> None:
    """A deleted logged model is deleted there too, and the version that has its files can be read."""
    assert client.search_logged_models([work.experiment_id]) == []
    version = client.get_model_version("odd-of the gone", "1")
    assert version.run_id == run
    assert int(version.tags["modelkeep.created"]) > 0
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(client.tracking_uri)
    try:
        place = client.get_model_version_download_uri("odd-of the gone", "1")
        found = mlflow.artifacts.download_artifacts(f"{place}/MLmodel", dst_path=str(folder / "back"))
        assert Path(found).read_text() == "flavors: {}\n"
    finally:
        mlflow.set_tracking_uri(before)


def test_names_that_are_taken_there(home: Keep, target: str, sqlite_source: dict[str, Any]) -> None:
    client = MlflowClient(target)
    name = "taken there"
    client.create_experiment(name)
    bring(home, sqlite_source["uri"], verify=0, prefix="other ")
    home.db.write(lambda conn: runs.experiment(conn, name, 1.0))
    seen = len(client.search_experiments())
    with pytest.raises(Conflict, match="'taken there' is there already") as caught:
        exporting.run(home, target, Silent())
    assert "--rename" in caught.value.hint
    assert len(client.search_experiments()) == seen
    report = exporting.run(home, target, Silent(), rename=True)
    assert report.renamed == {"experiment taken there": "taken there-exported"}
    assert len(client.search_experiments()) == seen + 3
    assert exporting.run(home, target, Silent(), rename=True).exported.get("runs") is None
    assert len(client.search_experiments()) == seen + 3
    assert report.faults == []
    assert client.get_experiment_by_name("taken there-exported") is not None
    assert client.get_registered_model("other flüge").aliases == {"champion": "3", "first": "1"}


def test_what_apply_made_can_be_loaded_from_there(project: Project, target: str, tmp_path: Path) -> None:
    """A version made here, exported, and its files read back through MLflow."""
    project.apply()
    with project.opened() as keep:
        with answering(keep) as here:
            MlflowClient(here, registry_uri=here).copy_model_version("models:/late/1", "copied")
        report = exporting.run(keep, target, Silent())
    assert report.faults == []
    assert report.left == []
    client = MlflowClient(target)
    version = client.get_model_version_by_alias("late", "champion")
    folder = Path(mlflow.artifacts.download_artifacts(version.source, dst_path=str(tmp_path), tracking_uri=target))
    assert (folder / "MLmodel").is_file()
    assert (folder / "model.onnx").is_file()
    source = client.get_model_version("copied", "1").source
    copy = mlflow.artifacts.download_artifacts(f"{source}/model.onnx", dst_path=str(tmp_path), tracking_uri=target)
    assert Path(copy).read_bytes() == (folder / "model.onnx").read_bytes()
