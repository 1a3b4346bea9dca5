"""What an import finds at its end when something is lost or changed between the copy and the look."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from test_import_database import bring

from modelkeep.app.settings import Settings
from modelkeep.app.wiring import connect
from modelkeep.lifecycle.keep import Keep
from modelkeep.protocols.mlflow.transfer import checking

FLIGHTS = "(SELECT id FROM models WHERE name = 'flüge')"
WORK = "(SELECT id FROM experiments WHERE name = 'Fünf Flüge')"
WORKED = "experiment 1 'Fünf Flüge'"

CASES: dict[str, tuple[str, str]] = {
    "an alias moved": (
        f"UPDATE aliases SET version = 1 WHERE alias = 'champion' AND model = {FLIGHTS}",
        "model 'flüge': alias 'champion' is '1' here, '3' there",
    ),
    "an alias lost": ("DELETE FROM aliases WHERE alias = 'first'", "model 'flüge': alias 'first' is not here"),
    "a version lost": (
        f"DELETE FROM versions WHERE version = 3 AND model = {FLIGHTS}",
        "version flüge@3: is not here",
    ),
    "a version's stage": (
        f"UPDATE versions SET stage = 'Archived' WHERE version = 1 AND model = {FLIGHTS}",
        "version flüge@1: stage is 'Archived' here, 'Production' there",
    ),
    "a version's files": (
        "UPDATE versions SET source = 's3://else' WHERE version = 3",
        "version flüge@3: source is 's3://else' here, expected 'mlflow-artifacts:/1/{run}/artifacts/model'",
    ),
    "a version's tag": (
        "UPDATE version_tags SET value = 'x' WHERE version = 3",
        "version flüge@3: tag 'n' is 'x' here, '2' there",
    ),
    "a model lost": ("DELETE FROM models WHERE name = 'nothing yet'", "model 'nothing yet': is not here"),
    "a model's text": (
        "UPDATE models SET description = '' WHERE name = 'flüge'",
        "model 'flüge': description is '' here, 'late or not' there",
    ),
    "a model's tag": ("DELETE FROM model_tags", "model 'flüge': tag 'owner' is not here"),
    "an experiment lost": (
        "DELETE FROM experiments WHERE name = 'deleted one'",
        "experiment 2 'deleted one': is not here",
    ),
    "an experiment's name": (
        "UPDATE experiments SET name = 'else' WHERE name = 'Fünf Flüge'",
        f"{WORKED}: name is 'else' here",
    ),
    "an experiment's stage": (
        "UPDATE experiments SET lifecycle_stage = 'active' WHERE name = 'deleted one'",
        "experiment 2 'deleted one': lifecycle_stage is 'active' here, 'deleted' there",
    ),
    "an experiment's tag": (
        "DELETE FROM experiment_tags WHERE key = 'team'",
        f"{WORKED}: tag 'team' is not here",
    ),
    "a logged model lost": ("DELETE FROM logged_models", "logged model {model_id}: is not here"),
    "a logged model's status": (
        "UPDATE logged_models SET status = 'LOGGED_MODEL_PENDING'",
        "logged model {model_id}: status is 'LOGGED_MODEL_PENDING' here, 'LOGGED_MODEL_READY' there",
    ),
    "a logged model's param": (
        "UPDATE logged_model_params SET value = '4'",
        "logged model {model_id}: param 'depth' is '4' here, '3' there",
    ),
    "a logged model's tag": (
        "DELETE FROM logged_model_tags WHERE key = 'kind'",
        "logged model {model_id}: tag 'kind' is not here",
    ),
    "a logged model's metric": (
        "DELETE FROM logged_model_metrics",
        "logged model {model_id}: points of metric 'accuracy' are not here",
    ),
    "a trace lost": ("DELETE FROM traces", "trace {trace}: is not here"),
    "a trace's state": (
        "UPDATE traces SET status = 'ERROR'",
        "trace {trace}: status is 'ERROR' here, 'OK' there",
    ),
    "a trace's preview": (
        "UPDATE traces SET request_preview = 'x'",
        """trace {trace}: request_preview is 'x' here, '{{"question": "wieviel ü?"}}' there""",
    ),
    "a trace's tag": (
        "UPDATE trace_tags SET value = 'no' WHERE key = 'later'",
        "trace {trace}: tag 'later' is 'no' here, 'yes' there",
    ),
    "a trace's metadata": (
        "DELETE FROM trace_metadata WHERE key = 'build'",
        "trace {trace}: metadata 'build' is not here",
    ),
    "a trace's span": (
        "DELETE FROM trace_spans WHERE name = 'inner'",
        "trace {trace}: 1 of 2 spans are not here, the first ",
    ),
    "a trace's assessment": ("DELETE FROM trace_assessments WHERE name = 'score'", "trace {trace}: assessment a-"),
}


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory, sqlite_source: dict[str, Any]) -> Path:
    """A database that everything was copied to, to be copied itself."""
    home = tmp_path_factory.mktemp("copied")
    keep = connect(Settings(home, f"sqlite:///{home}/modelkeep.db", str(home / "blobs")), home)
    report = bring(keep, sqlite_source["uri"])
    assert report.checked.faults == []
    checked = report.checked
    assert (checked.experiments, checked.models, checked.versions) == (3, 2, 2)
    assert (checked.logged_models, checked.traces) == (1, 1)
    keep.close()
    return home


@pytest.mark.parametrize("name", CASES)
def test_what_differs_at_the_end_is_named(
    name: str, copied: Path, sqlite_source: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    statement, said = CASES[name]
    for file in copied.glob("modelkeep.db*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    keep = connect(Settings(tmp_path, f"sqlite:///{tmp_path}/modelkeep.db", str(copied / "blobs")), tmp_path)
    real = checking.check

    def late(keep: Keep, *words: Any, **options: Any) -> checking.Checked:
        changed = keep.db.write(lambda conn: conn.execute(text(statement)).rowcount)
        assert changed > 0
        return real(keep, *words, **options)

    monkeypatch.setattr(checking, "check", late)
    try:
        faults = bring(keep, sqlite_source["uri"], again=True).checked.faults
    finally:
        keep.close()
    wanted = said.format(**sqlite_source)
    assert any(fault.startswith(wanted) for fault in faults), faults
