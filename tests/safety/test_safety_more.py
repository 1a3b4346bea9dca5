"""The guard of serving's routes, of traces and datasets, on PostgreSQL, and at the command line."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from pathlib import Path
from typing import Any

from safety_site import site

from forks import Forks
from modelkeep.core.clock import SystemClock
from modelkeep.protocols.access.asgi import unguarded
from modelkeep.protocols.access.guard import Guard
from modelkeep.protocols.access.needs import CALLS, SERVING
from modelkeep.protocols.serving import ServingDoors
from modelkeep.registry.access import Accounts
from modelkeep.serve.dataplane import DataPlane
from modelkeep.serve.worker import Health
from small import Project, until


def test_every_route_and_call_of_serving_says_what_it_needs() -> None:
    from modelkeep.protocols.grpc.health import HealthService
    from modelkeep.protocols.oip_grpc import service as oip
    from modelkeep.protocols.tfserving import service as tfserving

    async def look() -> tuple[list[str], set[str]]:
        plane = DataPlane(asyncio.get_running_loop(), SystemClock())
        guard = Guard(Accounts, SystemClock())
        doors: Any = ServingDoors(plane, Health(), guard=guard)
        app = doors.app
        while not hasattr(app, "routes"):
            app = app._app
        assert len(app.routes) > 20
        missing = unguarded(app.routes, SERVING)
        services = (oip.InferenceService(plane), tfserving.PredictionService(plane), HealthService(plane, ()))
        calls = {path.decode().rpartition("/")[2] for service in services for path in service.methods()}
        await asyncio.to_thread(plane.close)
        guard.close()
        return missing, calls

    missing, calls = asyncio.run(look())
    assert missing == []
    assert set(CALLS) - calls == set(), "calls that are not there"
    # what is in no table needs to be known, and then what the endpoint it names needs; so nothing else may be left
    named = {
        *("ModelInfer", "ModelStreamInfer", "ModelReady", "ModelMetadata", "ModelConfig"),
        *("Predict", "Classify", "Regress", "MultiInference", "GetModelMetadata", "GetModelStatus"),
    }
    rest = {call for call in calls - set(CALLS) - named if "SharedMemory" not in call}
    assert rest <= {"TraceSetting", "LogSettings", "HandleReloadConfigRequest", "SessionRun"}, rest


def test_traces_and_datasets_go_with_their_experiments(tmp_path: Path) -> None:
    with site(tmp_path) as here:
        made = {
            name: here.mlflow("root", "POST", "experiments/create", name=name).json()
            for name in ("mine", "theirs")
        }
        mine, theirs = (made[name]["experiment_id"] for name in ("mine", "theirs"))
        here.add("writer", f"writer@experiment:{mine}")
        here.add("nobody")
        traces, datasets = {}, {}
        for number in (mine, theirs):
            body = {"experiment_id": number, "timestamp_ms": 1}
            traces[number] = here.mlflow("root", "POST", "traces", **body).json()["trace_info"]["request_id"]
            said = here.ask(
                "root", "POST", "/api/3.0/mlflow/datasets/create", json={"name": "d", "experiment_ids": [number]}
            )
            datasets[number] = said.json()["dataset"]["dataset_id"]
        here.ask("root", "POST", "/api/3.0/mlflow/datasets/create", json={"name": "loose", "experiment_ids": []})
        time.sleep(0.6)

        def status(who: str, method: str, path: str, **body: Any) -> int:
            options = {"params": body} if method == "GET" else {"json": body}
            return here.ask(who, method, f"/api/3.0/mlflow/{path}", **options).status_code

        for number, allowed in ((mine, 200), (theirs, 403)):
            trace, dataset = traces[number], datasets[number]
            tag = {"key": "k", "value": "v"}
            for method, path, body in (
                ("GET", f"traces/{trace}/info", {}),
                ("PATCH", f"traces/{trace}/tags", tag),
                ("POST", "traces", {"experiment_id": number, "timestamp_ms": 1}),
                ("POST", "traces/delete-traces", {"experiment_id": number, "request_ids": [trace + "x"]}),
                ("GET", f"datasets/{dataset}", {}),
                ("GET", f"datasets/{dataset}/records", {}),
                ("PATCH", f"datasets/{dataset}/tags", {"tags": '{"a": "b"}'}),
                ("POST", "datasets/create", {"name": "e", "experiment_ids": [number]}),
            ):
                assert status("writer", method, path, **body) == allowed, (method, path)
                assert status("nobody", method, path, **body) == 403, (method, path)
        assert (
            status("writer", "POST", f"datasets/{datasets[mine]}/add-experiments", experiment_ids=[theirs]) == 403
        )
        assert status("writer", "POST", "datasets/create", name="everywhere", experiment_ids=[]) == 403

        def seen(who: str, path: str, **body: Any) -> set[str]:
            answer = here.ask(who, "POST", f"/api/3.0/mlflow/{path}", json=body).json()
            found = answer.get("traces") or answer.get("datasets") or []
            return {each.get("trace_id") or each["dataset_id"] for each in found}

        both = {"locations": [{"mlflow_experiment": {"experiment_id": number}} for number in (mine, theirs)]}
        assert traces[theirs] not in seen("writer", "traces/search", **both)
        assert traces[mine] in seen("writer", "traces/search", **both)
        assert seen("nobody", "traces/search", **both) == set()
        assert datasets[theirs] not in seen("writer", "datasets/search")
        assert datasets[mine] in seen("writer", "datasets/search")
        assert seen("nobody", "datasets/search") == set()

        def spans(who: str, number: str, trace: str = "0" * 31 + "1") -> int:
            span = {
                "traceId": trace,
                "spanId": "1" * 16,
                "name": "s",
                "startTimeUnixNano": "1",
                "endTimeUnixNano": "2",
            }
            body = {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}
            headers = {"content-type": "application/json", "x-mlflow-experiment-id": number}
            return here.ask(who, "POST", "/v1/traces", json=body, headers=headers).status_code

        assert [spans("", mine), spans("nobody", mine), spans("writer", theirs)] == [401, 403, 403]
        assert spans("root", theirs) == 200
        assert spans("writer", mine) == 403, "a trace of theirs is not added to by way of mine"
        assert spans("writer", mine, "0" * 31 + "2") == 200


def test_the_same_on_postgresql(tmp_path: Path, postgres_url: str) -> None:
    with site(tmp_path, postgres_url) as here:
        made = [
            here.mlflow("root", "POST", "experiments/create", name=name).json()["experiment_id"] for name in "ab"
        ]
        for name in "ab":
            here.mlflow("root", "POST", "registered-models/create", name=name)
        runs = [
            here.mlflow("root", "POST", "runs/create", experiment_id=n).json()["run"]["info"]["run_id"]
            for n in made
        ]
        here.add("anna", f"writer@experiment:{made[0]}", "reader@model:a")
        time.sleep(0.6)
        metric = {"key": "m", "value": 1, "timestamp": 1}
        assert [
            here.mlflow("anna", "POST", "runs/log-metric", run_id=run, **metric).status_code for run in runs
        ] == [200, 403]
        found = here.mlflow("anna", "POST", "runs/search", experiment_ids=made).json()["runs"]
        assert [run["info"]["run_id"] for run in found] == [runs[0]]
        found = here.mlflow("anna", "POST", "experiments/search", max_results=1).json()
        assert [each["experiment_id"] for each in found["experiments"]] == [
            made[0]
        ] and "next_page_token" not in found
        assert [
            each["name"]
            for each in here.mlflow("anna", "GET", "registered-models/search").json()["registered_models"]
        ] == ["a"]
        assert here.mlflow("anna", "GET", "registered-models/get", name="b").status_code == 403
        assert {event.actor for event in here.history("user.")} == {"test"}


def test_the_command_line(project: Project, forks: Forks) -> None:
    def run(*words: str, code: int = 0) -> Any:
        found, said = forks.done([*words, "--json"], project.folder)
        assert found == code, said
        with contextlib.suppress(json.JSONDecodeError):
            return json.loads(said)
        return said

    assert run("users", "list") == {"users": []}
    assert run("users", "add", "anna", "--admin", "--no-password") == {"added": "anna"}
    run("users", "add", "anna", "--no-password", code=1)
    assert "password" in str(run("users", "add", "bob", code=2))
    run("users", "add", "bob", "--role", "king", "--no-password", code=2)
    assert [user["name"] for user in run("users", "list")["users"]] == ["anna"], "a wrong role undoes the user too"
    run("users", "remove", "anna", code=0)
    run("users", "add", "anna", "--admin", "--no-password")
    run("users", "add", "bob", "--role", "reader", "--no-password")
    run("users", "remove", "anna", code=1)
    run("users", "passwd", "nobody", "--password-stdin", code=3)
    run("roles", "grant", "bob", "writer", "--on", "experiment:nothing", code=3)
    run("roles", "grant", "bob", "writer", "--on", "moon", code=2)
    assert run("roles", "grant", "bob", "writer", "--on", "model:flights")["on"] == "model:flights"
    assert [row["role"] for row in run("roles", "list", "bob")["grants"]] == ["reader", "writer"]
    assert run("roles", "revoke", "bob", "writer", "--on", "model:flights")["revoked"] == "writer"
    run("roles", "revoke", "bob", "writer", "--on", "model:flights", code=3)
    first = run("tokens", "create", "bob", "ci", "--expires", "1d", "--scope", "predict@endpoint:x")["token"]
    run("tokens", "create", "bob", "ci", code=1)
    run("tokens", "create", "bob", "bad", "--scope", "fly", code=2)
    run("tokens", "create", "bob", "bad", "--expires", "soon", code=2)
    second = run("tokens", "rotate", "bob", "ci", "--grace", "1h")["token"]
    assert first != second
    rows = run("tokens", "list", "bob")["tokens"]
    assert sorted(row["kind"] for row in rows) == ["retired", "token"]
    assert first not in str(rows) and second not in str(rows)
    assert run("tokens", "revoke", "bob", "ci") == {"revoked": "ci", "user": "bob"}
    assert run("tokens", "list") == {"tokens": []}
    said = run("events", "list")["events"]
    assert {event["actor"].endswith("at the command line") for event in said} == {True}
    assert first not in str(said)


def test_accounts_survive_whatever_the_database_does(tmp_path: Path) -> None:
    """Neither a lost table nor a lost database lets anybody in, or keeps the known out."""
    from modelkeep.protocols.access.accounts import Followed, Read
    from modelkeep.store.database import Database

    copy = tmp_path / "accounts.json"
    with site(tmp_path / "home") as here:
        url = f"sqlite:///{here.keep.home / 'modelkeep.db'}"
        read = Read(here.keep.db)
        followed = Followed(lambda: Database.open(url), copy)
        assert list(read().users) == list(followed().users) == ["root"]
        here.keep.db.write(lambda conn: conn.exec_driver_sql("ALTER TABLE counters RENAME TO gone"))
        time.sleep(1.2)
        assert list(read().users) == list(followed().users) == ["root"]
        assert here.mlflow("root", "GET", "experiments/get", experiment_id="0").status_code == 200
        assert here.mlflow("", "GET", "experiments/get", experiment_id="0").status_code == 401
        here.keep.db.write(lambda conn: conn.exec_driver_sql("ALTER TABLE gone RENAME TO counters"))
        here.add("anna")
        until(lambda: "anna" in read().users and "anna" in followed().users)
        followed.close()

    def away() -> Database:
        raise RuntimeError("away")

    alone = Followed(away, copy)
    assert sorted(alone().users) == ["anna", "root"]
    alone.close()
    copy.write_text("{}}")
    lost = Followed(away, copy)
    guard = Guard(lost, SystemClock())
    assert guard.on, "what is not known lets nobody in"
    guard.close()
    lost.close()
