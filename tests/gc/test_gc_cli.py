"""The commands gc and hold, as people call them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from modelkeep.app.wiring import open_keep
from modelkeep.cli.main import cli
from modelkeep.registry import runs, tracking


def said(*words: str, code: int = 0) -> Any:
    """The JSON that a command prints."""
    found = CliRunner().invoke(cli, [*words, "--json"])
    assert found.exit_code == code, found.output
    return json.loads(found.stdout)


@pytest.fixture
def run_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run that was deleted at the beginning of time, with a file."""
    monkeypatch.chdir(tmp_path)
    keep = open_keep(tmp_path)
    number = keep.db.write(lambda conn: runs.experiment(conn, "work", 1.0))
    made = keep.db.write(lambda conn: runs.create(conn, number, "r", 1.0))
    digest = keep.blobs.put(b"bytes of a run")
    keep.db.write(lambda conn: runs.set_artifacts(conn, made, {"f": (digest, 14)}))
    keep.db.write(lambda conn: tracking.set_stage(conn, made, "deleted", 1))
    keep.close()
    return made


def lines(found: dict[str, Any]) -> dict[str, Any]:
    return {line["kind"]: line for line in found["lines"]}


def test_gc_says_what_would_go_and_a_hold_keeps_it(run_id: str) -> None:
    told = said("gc", "--dry-run", "--grace", "0s")
    assert told["dry_run"] is True
    assert lines(told)["runs"] | {"why": ""} == {
        "kind": "runs",
        "why": "",
        "count": 1,
        "bytes": 14,
        "kept": None,
        "young": 0,
        "examples": [run_id],
    }
    held = said("hold", "add", "run", run_id, "--reason", "case 1")
    assert (held["kind"], held["name"], held["reason"]) == ("run", run_id, "case 1")
    assert [each["name"] for each in said("hold", "list")["holds"]] == [run_id]
    assert lines(said("gc", "--grace", "0s"))["runs"]["count"] == 0
    assert said("hold", "remove", "run", run_id, "--reason", "over")["held"] is False
    done = said("gc", "--grace", "0s")
    assert lines(done)["runs"]["count"] == 1
    assert lines(done)["blobs"]["count"] == 1
    assert done["freed"] == 15


def test_gc_and_holds_speak_to_people(run_id: str) -> None:
    told = CliRunner().invoke(cli, ["gc", "--dry-run", "--grace", "0s"])
    assert "would free 15 B" in told.output
    assert "deleted long enough ago" in told.output
    CliRunner().invoke(cli, ["hold", "add", "run", run_id, "--reason", "case 1"])
    assert "case 1" in CliRunner().invoke(cli, ["hold", "list"]).output
    assert (
        "is no longer held" in CliRunner().invoke(cli, ["hold", "remove", "run", run_id, "--reason", "x"]).output
    )


@pytest.mark.usefixtures("run_id")
@pytest.mark.parametrize(
    ("words", "code", "kind"),
    [
        (("gc", "--older-than", "soon"), 2, "invalid"),
        (("gc", "--grace", "-1d"), 2, "invalid"),
        (("hold", "add", "run", "nobody", "--reason", "x"), 3, "not_found"),
        (("hold", "remove", "run", "nobody", "--reason", "x"), 3, "not_found"),
        (("import", "mlflow", "/nowhere"), 3, "not_found"),
        (("import", "mlflow", "ftp://x/y"), 2, "invalid"),
        (("import", "mlflow", "http://127.0.0.1:1"), 4, "unavailable"),
        (("export", "mlflow", "http://127.0.0.1:1"), 4, "unavailable"),
        (("export", "mlflow", "file:///x"), 2, "invalid"),
    ],
)
def test_mistakes_end_with_a_code_and_words(words: tuple[str, ...], code: int, kind: str) -> None:
    assert said(*words, code=code)["error"]["kind"] == kind
