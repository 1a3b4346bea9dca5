"""Commands over a real home: real database, real blobs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

from modelkeep.app.wiring import open_keep
from modelkeep.cli.main import cli
from modelkeep.lifecycle import rollout
from modelkeep.registry import captures, events, models
from modelkeep.registry.lineage import Code, Lineage
from modelkeep.store.blobs import put_tree

DECLARATION = "model: m\ndata: {source: rows.csv, target: y}\ntrain: {algorithm: ridge}\n"
CHANGED = "model: m\ndata: {source: rows.csv, target: y}\ntrain: {algorithm: ridge, params: {alpha: 2.0}}\n"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A declaration and a home with two versions; the second is champion."""
    monkeypatch.delenv("MODELKEEP_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "modelkeep.yaml").write_text(DECLARATION)
    keep = open_keep(tmp_path)
    lineage = Lineage(
        snapshot="5" * 64,
        declaration="d" * 64,
        declaration_text=DECLARATION,
        code=Code(commit="abc"),
        params={"alpha": 1.0},
    )
    for number, changed in ((1, lineage), (2, replace(lineage, declaration_text=CHANGED, params={"alpha": 2.0}))):
        package = put_tree(keep.blobs, {"model.bin": f"model {number}".encode()})
        now = 1000.0 * number

        def register(conn: Any, package: str = package, lineage: Lineage = changed, now: float = now) -> None:
            version = models.register(
                conn,
                "m",
                run_id="",
                package=package,
                lineage=lineage,
                evaluation={"metrics": {"rmse": {"value": 5.0 - now / 1000, "low": 1.0, "high": 9.0}}},
                runtime="onnx",
                note="",
                now=now,
            )
            rollout.begin(conn, version, endpoint="m", settings={}, steps=(), now=now, because="test")
            if now > 1000:
                rollout.roll_back(conn, "m", to=2, now=now, because="test")

        keep.db.write(register)
    keep.close()
    return tmp_path


def run(*words: str) -> Result:
    return CliRunner().invoke(cli, list(words))


def told(*words: str, code: int = 0) -> Any:
    found = run(*words, "--json")
    assert found.exit_code == code, found.output
    return json.loads(found.stdout)


def test_schema_is_the_json_schema() -> None:
    assert told("schema")["title"] == "Modelkeep declaration"


def test_a_missing_declaration_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = run("plan")
    assert found.exit_code == 3
    assert "modelkeep init" in found.stderr
    assert told("plan", code=3)["error"]["kind"] == "not_found"
    assert list(tmp_path.iterdir()) == []


def test_a_faulty_declaration_lists_every_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("modelkeep.yaml").write_text(
        "model: m\ndata: {source: a.csv, target: y}\ntrain: {algorithm: rigde}\ngate: []\n"
    )
    found = run("apply")
    assert found.exit_code == 2
    assert "modelkeep.yaml:3:20: train.algorithm: 'rigde' - did you mean 'ridge'?" in found.stderr
    assert "modelkeep.yaml:4:1: gate: 'gate' - did you mean 'gates'?" in found.stderr
    problems = told("apply", code=2)["error"]["problems"]
    assert [(item["path"], item["line"], item["column"]) for item in problems] == [
        ("train.algorithm", 3, 20),
        ("gate", 4, 1),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["modelkeep.yaml"]


def test_show(home: Path) -> None:
    found = told("show")
    assert found["models"][0] | {"latest": ""} == {
        "model": "m",
        "versions": 2,
        "champion": 2,
        "challenger": None,
        "latest": "",
    }
    assert found["endpoints"][0]["routes"][0]["version"] == 2
    assert [item["version"] for item in told("show", "m")["versions"]] == [1, 2]
    assert told("show", "m@champion")["version"]["metrics"] == {"rmse": 3.0}
    for words in (["show"], ["show", "m"], ["show", "m@1"]):
        printed = run(*words)
        assert printed.exit_code == 0, printed.output
        assert "m" in printed.output
    assert told("show", "nope", code=3)["error"]["message"] == "there is no model 'nope'"
    assert told("show", "m@9", code=3)["error"]["kind"] == "not_found"
    assert told("show", "m@", code=2)["error"]["kind"] == "invalid"


def test_show_what_was_live_then(home: Path) -> None:
    assert told("show", "--at", "1970-01-01T00:20")["live"][0]["version"] == 1
    assert told("show", "m", "--at", "1970-01-01T01:00+00:00")["live"][0]["version"] == 2
    assert told("show", "--at", "1970-01-01")["live"] == []
    assert told("show", "m", "--at", "1970-01-01", code=3)["error"]["kind"] == "not_found"
    assert told("show", "--at", "yesterday", code=2)["error"]["kind"] == "invalid"


def test_diff(home: Path) -> None:
    found = told("diff", "m@1", "2")
    assert found["declaration"] == {"train.params.alpha": [None, 2.0]}
    assert found["params"] == {"alpha": [1.0, 2.0]}
    assert found["metrics"] == {"rmse": [4.0, 3.0]}
    assert "train.params.alpha: unset → 2" in run("diff", "m@1", "m@2").output
    assert told("diff", "m", "2", code=2)["error"]["kind"] == "invalid"


def test_trace(home: Path) -> None:
    found = told("trace", "m@2")
    assert found["version"]["lineage"]["code"]["commit"] == "abc"
    assert [event["kind"] for event in found["events"]] == ["version.promoted", "version.rolled_back"]
    assert "abc" in run("trace", "m").output


def test_rollback(home: Path) -> None:
    assert told("rollback", "m@1", "--because", "a test")["version"]["version"] == 1
    assert told("show", "m@champion")["version"]["version"] == 1
    assert told("events", "list", "m@1")["events"][-1]["data"]["because"] == "a test"
    assert told("rollback", "m@7", code=3)["error"]["kind"] == "not_found"


def test_events_and_their_proof(home: Path) -> None:
    kinds = [event["kind"] for event in told("events", "list")["events"]]
    assert "version.promoted" in kinds
    assert told("events", "verify")["ok"] is True
    assert "whole" in run("events", "verify").output
    keep = open_keep(home)
    keep.db.write(lambda conn: conn.exec_driver_sql("update events set data = '{}' where seq = 1"))
    keep.close()
    found = told("events", "verify", code=5)
    assert found["ok"] is False
    assert "event 1: was changed" in found["faults"][0]
    assert run("events", "verify").exit_code == 5
    assert told("doctor", code=5)["ok"] is False


def test_labels(home: Path) -> None:
    assert told("labels", "post", "a=1", "b=spam", "x=y=2.5", "--at", "2020-01-01") == {"labels": 3}
    pq.write_table(pa.table({"prediction_id": ["c", "d", None], "label": [True, None, False]}), home / "l.parquet")
    assert told("labels", "import", "l.parquet") == {"labels": 1}
    (home / "l.csv").write_text("id,truth,time\ne,3,2020-01-02T00:00:00\n")
    assert told("labels", "import", "l.csv", "--id", "id", "--label", "truth") == {"labels": 1}
    keep = open_keep(home)
    with keep.db.read() as conn:
        assert captures.labels_for(conn, ["a", "b", "x=y", "c", "d", "e"]) == {
            "a": "1",
            "b": '"spam"',
            "x=y": "2.5",
            "c": "true",
            "e": "3",
        }
    keep.close()
    assert "has no column 'prediction_id'" in told("labels", "import", "l.csv", code=2)["error"]["message"]
    assert told("labels", "import", "no.csv", code=3)["error"]["kind"] == "not_found"
    assert told("labels", "post", "a", code=2)["error"]["kind"] == "invalid"
    (home / "l.txt").write_text("")
    assert "does not say the format" in told("labels", "import", "l.txt", code=2)["error"]["message"]


def test_doctor_finds_what_is_missing(home: Path) -> None:
    assert told("doctor")["ok"] is True
    assert "✓ store" in run("doctor").output
    keep = open_keep(home)
    with keep.db.read() as conn:
        package = models.version(conn, "m", 1).package
    keep.blobs.delete(package)
    keep.close()
    found = told("doctor", code=5)
    faults = {check["name"]: check["faults"] for check in found["checks"]}
    assert "m@1" in faults["store"][0]
    assert run("doctor").exit_code == 5


def test_an_empty_home_answers_kindly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODELKEEP_HOME", str(tmp_path / "home"))
    assert told("show") == {"models": [], "endpoints": []}
    assert told("data", "list") == {"snapshots": []}
    assert told("events", "list") == {"events": []}
    assert told("data", "list", "x", code=3)["error"]["kind"] == "not_found"
    for words in (["show"], ["data", "list"], ["events", "list"], ["doctor"]):
        assert run(*words).exit_code == 0
    assert (tmp_path / "home" / "modelkeep.db").is_file()


def test_events_of_kind(home: Path) -> None:
    keep = open_keep(home)
    keep.db.write(lambda conn: events.append(conn, "other", "x", {}, now=1.0))
    keep.close()
    assert {event["kind"] for event in told("events", "list", "--kind", "version.")["events"]} == {
        "version.promoted",
        "version.rolled_back",
    }
    assert len(told("events", "list", "--limit", "1")["events"]) == 1
