"""Importing the database of an MLflow server."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from same_mlflow import describe
from serving_mlflow import answering
from sqlalchemy import func, select

from modelkeep.app.settings import Settings
from modelkeep.app.wiring import connect
from modelkeep.core.errors import Conflict, Invalid, NotFound, Refused
from modelkeep.core.ports import Silent
from modelkeep.lifecycle.gc import collect
from modelkeep.lifecycle.keep import Keep
from modelkeep.protocols.mlflow.transfer import importing
from modelkeep.protocols.mlflow.transfer.choosing import open_source
from modelkeep.protocols.mlflow.transfer.importing import Options, Report
from modelkeep.registry import artifacts, catalog, holds, logged, runs, tracking, webhooks
from modelkeep.registry.verify import verify
from modelkeep.store.columns import metadata
from modelkeep.store.transfer_tables import imports


def bring(keep: Keep, address: str, artifacts: str = "", **options: Any) -> Report:
    """Import and compare everything."""
    source = open_source(address, artifacts=artifacts)
    try:
        return importing.run(keep, source, Options(**{"verify": None, **options}), Silent())
    finally:
        source.close()


def counts(keep: Keep) -> dict[str, int]:
    """Rows of each table."""
    with keep.db.read() as conn:
        return {
            table.name: conn.execute(select(func.count()).select_from(table)).scalar_one()
            for table in metadata.sorted_tables
        }


def test_everything_is_as_it_was(keep: Keep, sqlite_source: dict[str, Any]) -> None:
    report = bring(keep, sqlite_source["uri"])
    assert report.checked.faults == []
    assert report.left == []
    assert report.copied["points"] == 1507
    assert report.checked.points == 1507
    assert report.checked.files == report.copied["files"] == 6
    assert report.copied["traces"] == 1
    assert report.copied["evaluation records"] == report.checked.records == 3
    with answering(keep) as here:
        assert describe(here) == describe(sqlite_source["uri"])
    assert verify(keep.db, keep.blobs, Silent()) == []  # type: ignore[arg-type]


def test_everything_is_as_it_was_in_postgresql(home: Keep, postgres_source: dict[str, Any]) -> None:
    report = bring(home, postgres_source["uri"])
    assert report.checked.faults == []
    assert report.left == []
    with answering(home) as here:
        assert describe(here) == describe(postgres_source["uri"])


def test_again_copies_nothing_twice(home: Keep, sqlite_source: dict[str, Any]) -> None:
    bring(home, sqlite_source["uri"])
    before = counts(home)
    report = bring(home, sqlite_source["uri"])
    assert counts(home) == {**before, "events": 2}
    assert report.unchanged == {
        "runs": 2,
        "logged models": 1,
        "traces": 1,
        "evaluation datasets": 2,
        "webhooks": 2,
    }
    assert report.checked.faults == []
    assert bring(home, sqlite_source["uri"], again=True).copied["runs"] == 5
    assert counts(home) == {**before, "events": 3}


def _ask_later(uri: str, dataset: str) -> None:
    """Merge two records into an evaluation dataset, one of them new; datasets ask the server that is set."""
    import mlflow
    from mlflow.genai.datasets import get_dataset

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        get_dataset(dataset_id=dataset).merge_records(
            [{"inputs": {"question": "none"}, "tags": {"now": "tagged"}}, {"inputs": {"question": "late"}}]
        )
    finally:
        mlflow.set_tracking_uri(before)


def test_later_only_what_is_new_is_copied(home: Keep, sqlite_source: dict[str, Any], tmp_path: Path) -> None:
    from mlflow import MlflowClient

    copy = tmp_path / "copy.db"
    original = sqlite_source["uri"].removeprefix("sqlite:///")
    with sqlite3.connect(original) as there, sqlite3.connect(copy) as here:
        there.backup(here)
    there.close()
    here.close()
    bring(home, f"sqlite:///{copy}")
    client = MlflowClient(f"sqlite:///{copy}")
    client.set_tag(sqlite_source["run"], "later", "yes")
    client.log_metric(sqlite_source["child"], "late", 2.5, step=7, timestamp=70)
    client.set_experiment_tag(sqlite_source["work"], "team", "moved")
    client.set_registered_model_alias("flüge", "champion", "1")
    with sqlite3.connect(copy) as changed:
        changed.execute("UPDATE runs SET start_time = start_time + 5 WHERE run_uuid = ?", (sqlite_source["run"],))
    changed.close()
    _ask_later(f"sqlite:///{copy}", sqlite_source["dataset"])
    report = bring(home, f"sqlite:///{copy}")
    assert report.unchanged["runs"] == 0
    assert report.checked.records == 4
    assert report.checked.faults == []
    with answering(home) as address:
        assert describe(address) == describe(f"sqlite:///{copy}")
    query = "SELECT count(*) FROM {} v JOIN runs r ON r.id = v.run WHERE v.start_ms {} r.start_ms"
    with home.db.read() as conn:
        for table in ("params", "tags", "latest_metrics"):
            agreeing, others = (conn.exec_driver_sql(query.format(table, op)).scalar() for op in ("=", "<>"))
            assert agreeing and others == 0, table


def test_secrets_of_webhooks_come_when_they_can_be_read(
    home: Keep, sqlite_source: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the server's key one that signs comes switched off; with it the next import brings its secret."""

    def told() -> list[tuple[str, str, str, list[str]]]:
        with home.db.read() as conn:
            found = webhooks.listing(conn, limit=10)
        return sorted((each.name, each.status, each.secret, sorted(each.events)) for each in found)

    events = ["model_version_alias.deleted", "prompt_alias.deleted"]
    unsigned = ("unsigned", "DISABLED", "", ["model_version_tag.set"])
    for wrong in ("", "no key", "A" * 43 + "="):
        monkeypatch.setenv("MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY", wrong)
        report = bring(home, sqlite_source["uri"], again=True)
        assert report.checked.faults == []
        assert ["'told'" in line and "switched off" in line for line in report.left] == [True]
        assert told() == [("told", "DISABLED", "", events), unsigned]
    monkeypatch.undo()
    report = bring(home, sqlite_source["uri"])
    assert (report.left, report.copied["webhooks"], report.checked.webhooks) == ([], 1, 2)
    assert told() == [("told", "ACTIVE", "s3cret", events), unsigned]


def test_new_experiments_get_numbers_after_those_that_came(keep: Keep, sqlite_source: dict[str, Any]) -> None:
    bring(keep, sqlite_source["uri"])
    made = keep.db.write(lambda conn: runs.experiment(conn, "made here", 1.0))
    assert made > int(sqlite_source["gone"])


def test_what_is_in_the_way_is_said_and_nothing_is_copied(home: Keep, sqlite_source: dict[str, Any]) -> None:
    for name in ("mine", "Fünf Flüge", "other"):
        home.db.write(lambda conn, name=name: runs.experiment(conn, name, 1.0))
    before = counts(home)
    with pytest.raises(Conflict, match="number 1 belongs to 'mine'") as caught:
        bring(home, sqlite_source["uri"])
    assert "--rename" in caught.value.hint
    assert counts(home) == before


@pytest.mark.parametrize(
    ("options", "name"), [({"rename": True}, "Fünf Flüge-imported"), ({"prefix": "old "}, "old Fünf Flüge")]
)
def test_what_is_in_the_way_gets_another_name(
    home: Keep, sqlite_source: dict[str, Any], options: dict[str, Any], name: str
) -> None:
    for taken in ("mine", "Fünf Flüge", "other"):
        home.db.write(lambda conn, name=taken: runs.experiment(conn, name, 1.0))
    report = bring(home, sqlite_source["uri"], **options)
    assert report.renamed["experiment Fünf Flüge"] == name
    assert report.checked.faults == []
    before = counts(home)
    again = bring(home, sqlite_source["uri"], **options)
    assert counts(home) == {**before, "events": 2}
    assert again.renamed == report.renamed
    with answering(home) as here:
        found = describe(here)
        there = describe(sqlite_source["uri"])
    assert found[f"experiment {name}"]["runs"] == there["experiment Fünf Flüge"]["runs"]
    assert found["experiment mine"]["runs"] == []


def test_old_schemas_are_refused(home: Keep, tmp_path: Path, sqlite_source: dict[str, Any]) -> None:
    """A real schema of before 2.0, made by MLflow's own migrations."""
    from alembic import command
    from mlflow.store.db.utils import _get_alembic_config

    old = f"sqlite:///{tmp_path}/old.db"
    with sqlite3.connect(tmp_path / "old.db") as conn:
        conn.executescript(_INITIAL)
    conn.close()
    command.upgrade(_get_alembic_config(old), "27a6a02d2cf1")
    with pytest.raises(Refused, match=r"27a6a02d2cf1.* older than MLflow 2.0") as caught:
        bring(home, old)
    assert "mlflow db upgrade" in caught.value.hint


_INITIAL = """
CREATE TABLE experiments (experiment_id INTEGER NOT NULL PRIMARY KEY, name VARCHAR(256) NOT NULL UNIQUE,
  artifact_location VARCHAR(256), lifecycle_stage VARCHAR(32));
CREATE TABLE runs (run_uuid VARCHAR(32) NOT NULL, name VARCHAR(250), source_type VARCHAR(20),
  source_name VARCHAR(500), entry_point_name VARCHAR(50), user_id VARCHAR(256), status VARCHAR(20),
  start_time BIGINT, end_time BIGINT, source_version VARCHAR(50), lifecycle_stage VARCHAR(20),
  artifact_uri VARCHAR(200), experiment_id INTEGER, CONSTRAINT run_pk PRIMARY KEY (run_uuid),
  CONSTRAINT source_type CHECK (source_type IN ('NOTEBOOK', 'JOB', 'LOCAL', 'UNKNOWN', 'PROJECT')),
  CONSTRAINT status CHECK (status IN ('SCHEDULED', 'FAILED', 'FINISHED', 'RUNNING')));
CREATE TABLE metrics (key VARCHAR(250) NOT NULL, value FLOAT NOT NULL, timestamp BIGINT NOT NULL,
  run_uuid VARCHAR(32) NOT NULL, CONSTRAINT metric_pk PRIMARY KEY (key, timestamp, run_uuid, value));
CREATE TABLE params (key VARCHAR(250) NOT NULL, value VARCHAR(250) NOT NULL, run_uuid VARCHAR(32) NOT NULL,
  CONSTRAINT param_pk PRIMARY KEY (key, run_uuid));
CREATE TABLE tags (key VARCHAR(250) NOT NULL, value VARCHAR(250), run_uuid VARCHAR(32) NOT NULL,
  CONSTRAINT tag_pk PRIMARY KEY (key, run_uuid));
"""
"""The tables of MLflow 0.9, which its migrations begin with."""


@pytest.mark.parametrize(
    ("address", "error", "words"),
    [
        ("sqlite:////nowhere/at/all.db", NotFound, "no file"),
        ("postgresql://nobody@127.0.0.1:1/none", Exception, "cannot be read"),
        ("gopher://x", Invalid, "SOURCE"),
    ],
)
def test_addresses_that_lead_nowhere(home: Keep, address: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        bring(home, address)


def test_a_database_of_something_else_is_refused(home: Keep, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "else.db") as conn:
        conn.execute("CREATE TABLE t (x)")
    conn.close()
    with pytest.raises(Refused, match="none of MLflow's tables"):
        bring(home, f"sqlite:///{tmp_path}/else.db")


def test_files_below_a_server_need_their_place(home: Keep, sqlite_source: dict[str, Any], tmp_path: Path) -> None:
    """A database whose server keeps files itself, and a run whose location was set to be stolen from."""
    copy = tmp_path / "proxied.db"
    original = Path(sqlite_source["uri"].removeprefix("sqlite:///"))
    copy.write_bytes(original.read_bytes())
    root = str(original.parent / "mlruns")
    with sqlite3.connect(copy) as conn:
        for table, column in (("runs", "artifact_uri"), ("logged_models", "artifact_location")):
            conn.execute(f"UPDATE {table} SET {column} = replace({column}, ?, 'mlflow-artifacts:')", (root,))
        conn.execute("UPDATE runs SET artifact_uri = 'file:///etc' WHERE name = 'still going'")
    conn.close()
    with pytest.raises(Invalid, match="only the server knows") as caught:
        bring(home, f"sqlite:///{copy}")
    assert "--artifacts" in str(caught.value)
    report = bring(home, f"sqlite:///{copy}", artifacts=root)
    assert report.copied["files"] == 6
    assert report.checked.faults == []
    assert len(report.left) == 1
    assert "file:///etc" in report.left[0]


def test_versions_without_a_run_keep_the_files_they_have(
    keep: Keep, sqlite_source: dict[str, Any], tmp_path: Path
) -> None:
    """Older releases of MLflow registered such; what clients read stays empty."""
    copy = tmp_path / "without.db"
    copy.write_bytes(Path(sqlite_source["uri"].removeprefix("sqlite:///")).read_bytes())
    with sqlite3.connect(copy) as conn:
        conn.execute("UPDATE model_versions SET run_id = NULL")
    conn.close()
    bring(keep, f"sqlite:///{copy}")
    with keep.db.read() as conn:
        rows = [catalog.find_version(conn, "flüge", number) for number in (1, 3)]
    assert [(row.run_id, row.files_of) for row in rows] == [
        ("", sqlite_source["model_id"]),
        ("", sqlite_source["run"]),
    ]
    keep.db.write(lambda conn: tracking.set_stage(conn, sqlite_source["run"], "deleted", 1))
    keep.db.write(lambda conn: logged.delete_one(conn, sqlite_source["model_id"], 1))
    collect(keep, Silent(), dry_run=False, older_than=0, grace=-1)
    with keep.db.read() as conn:
        for row in rows:
            owner, folder = artifacts.of_uri(conn, row.source)
            found = [each.path for each in artifacts.listing(conn, keep.blobs, owner, folder)]
            assert f"{folder}/MLmodel".removeprefix("/") in found
    keep.db.write(lambda conn: tracking.set_stage(conn, sqlite_source["run"], "active", 1))
    keep.db.write(lambda conn: holds.add(conn, "version", "flüge@3", "", now=1.0))
    with pytest.raises(Refused, match="legal hold"):
        keep.db.write(lambda conn: tracking.set_stage(conn, sqlite_source["run"], "deleted", 2))


def test_marks_name_no_passwords(home: Keep, postgres_source: dict[str, Any]) -> None:
    address = postgres_source["uri"].replace("postgres@", "postgres:secret@")
    report = bring(home, address, verify=0)
    with home.db.read() as conn:
        origins = set(conn.execute(select(imports.c.origin)).scalars())
    assert origins == {report.origin}
    assert "secret" not in report.origin


def test_a_file_that_cannot_be_read_is_a_fault_and_comes_later(
    home: Keep, sqlite_source: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It vanishes between the look and the reading; the run is not whole then, so the next import brings it."""
    from modelkeep.protocols.mlflow.transfer.places import Places

    real = Places.open

    def gone(self: Places, owner: Any, path: str) -> Any:
        if path == "model/MLmodel":
            raise NotFound("it is gone")
        return real(self, owner, path)

    monkeypatch.setattr(Places, "open", gone)
    report = bring(home, sqlite_source["uri"])
    assert [fault for fault in report.checked.faults if "cannot be read: it is gone" in fault]
    assert report.copied["files"] == 5
    monkeypatch.undo()
    report = bring(home, sqlite_source["uri"])
    assert report.checked.faults == []
    with answering(home) as here:
        assert describe(here) == describe(sqlite_source["uri"])


def test_one_workspace_of_several(home: Keep, sqlite_source: dict[str, Any], tmp_path: Path) -> None:
    copy = tmp_path / "several.db"
    copy.write_bytes(Path(sqlite_source["uri"].removeprefix("sqlite:///")).read_bytes())
    with sqlite3.connect(copy) as conn:
        conn.execute("UPDATE experiments SET workspace = 'team' WHERE experiment_id = 1")
    conn.close()
    report = bring(home, f"sqlite:///{copy}")
    assert report.copied["experiments"] == 2
    assert report.others == {"experiments and models of other workspaces": 1}
    source = open_source(f"sqlite:///{copy}", workspace="team")
    report = importing.run(home, source, Options(), Silent())
    source.close()
    assert report.checked.faults == []
    assert (report.copied["experiments"], report.copied["runs"]) == (1, 3)


def test_from_one_home_to_another(keep: Keep, sqlite_source: dict[str, Any], tmp_path: Path) -> None:
    """Modelkeep's own server is a source too: the way from SQLite to PostgreSQL."""
    first = tmp_path / "first"
    other = connect(Settings(first, f"sqlite:///{first}/modelkeep.db", str(first / "blobs")), tmp_path)
    bring(other, sqlite_source["uri"], verify=0)
    with answering(other) as there:
        report = bring(keep, there)
        assert report.checked.faults == []
        with answering(keep) as here:
            assert describe(here) == describe(there)
    other.close()


def test_files_in_an_object_store(home: Keep, sqlite_source: dict[str, Any], tmp_path: Path, s3: str) -> None:
    """Runs name the bucket, or a server did and ``--artifacts`` does; names with blanks and umlauts too."""
    import obstore
    from obstore.store import from_url

    original = Path(sqlite_source["uri"].removeprefix("sqlite:///"))
    root = original.parent / "mlruns"
    place = f"{s3.rstrip('/')}/mlflow"
    bucket, _, prefix = place.removeprefix("s3://").partition("/")
    store = from_url(f"s3://{bucket}")
    for path in root.rglob("*"):
        if path.is_file():
            obstore.put(store, f"{prefix}/{path.relative_to(root).as_posix()}", path.read_bytes())
    for name, files in ((place, ""), ("mlflow-artifacts:", place)):
        copy = tmp_path / f"{len(files)}.db"
        copy.write_bytes(original.read_bytes())
        with sqlite3.connect(copy) as conn:
            for table, column in (("runs", "artifact_uri"), ("logged_models", "artifact_location")):
                conn.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (str(root), name))
        conn.close()
        report = bring(home, f"sqlite:///{copy}", artifacts=files)
        assert report.checked.faults == []
        assert report.checked.files == 6
    with answering(home) as here:
        assert describe(here) == describe(sqlite_source["uri"])


def test_files_may_stay_where_they_are(home: Keep, sqlite_source: dict[str, Any]) -> None:
    from mlflow import MlflowClient

    report = bring(home, sqlite_source["uri"], files=False)
    assert report.checked.faults == []
    assert report.copied.get("files") == 0
    there = MlflowClient(sqlite_source["uri"])
    with answering(home) as address:
        here = MlflowClient(address)
        for client in (here, there):
            assert [entry.path for entry in client.list_artifacts(sqlite_source["run"])] == ["model"]
        of_run = [client.get_run(sqlite_source["run"]).info.artifact_uri for client in (here, there)]
        of_model = [
            client.get_logged_model(sqlite_source["model_id"]).artifact_location for client in (here, there)
        ]
    assert of_run[0] == of_run[1]
    assert of_model[0] == of_model[1]
    assert bring(home, sqlite_source["uri"]).copied["files"] == 6  # now they come
    with answering(home) as address:
        here = MlflowClient(address)
        assert here.get_run(sqlite_source["run"]).info.artifact_uri.startswith("mlflow-artifacts:")
        assert here.get_logged_model(sqlite_source["model_id"]).artifact_location.startswith("mlflow-artifacts:")
        assert describe(address) == describe(sqlite_source["uri"])
