"""An import that is killed again and again ends with everything there once."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from forks import Forked, Forks
from modelkeep.registry.verify import verify
from modelkeep.store import tables
from modelkeep.store.blobs import open_blobs
from modelkeep.store.database import Database

RUNS, KEYS, STEPS = 1200, 3, 20


@pytest.fixture
def large(sqlite_source: dict[str, Any], tmp_path: Path) -> str:
    """The filled database with many more runs, some with files."""
    copy = tmp_path / "large.db"
    original = sqlite_source["uri"].removeprefix("sqlite:///")
    copy.write_bytes(Path(original).read_bytes())
    files = tmp_path / "files" / "1"
    ids = [uuid.uuid4().hex for _ in range(RUNS)]
    for each in ids[::10]:
        (files / each / "artifacts").mkdir(parents=True)
        (files / each / "artifacts" / "note.txt").write_text(each)
    about = "run_uuid, name, source_type, user_id, status, start_time, end_time, lifecycle_stage, artifact_uri"
    with contextlib.closing(sqlite3.connect(copy)) as conn, conn:
        conn.executemany(
            f"INSERT INTO runs ({about}, experiment_id)"
            " VALUES (?, ?, 'LOCAL', 'u', 'FINISHED', ?, ?, 'active', ?, 1)",
            [(each, f"r{at}", at, at + 1, f"{files}/{each}/artifacts") for at, each in enumerate(ids)],
        )
        conn.executemany("INSERT INTO params VALUES ('p', ?, ?)", [(each, each) for each in ids])
        points = [
            (f"k{key}", step * 0.5, step, each, step)
            for each in ids
            for key in range(KEYS)
            for step in range(STEPS)
        ]
        conn.executemany(
            "INSERT INTO metrics (key, value, timestamp, run_uuid, step) VALUES (?, ?, ?, ?, ?)", points
        )
        last = [(f"k{key}", (STEPS - 1) * 0.5, STEPS - 1, STEPS - 1, each) for each in ids for key in range(KEYS)]
        conn.executemany("INSERT INTO latest_metrics VALUES (?, ?, ?, ?, 0, ?)", last)
    return f"sqlite:///{copy}"


def progress(home: Path) -> int:
    """Points that are here, seen from outside."""
    with (
        contextlib.suppress(sqlite3.OperationalError),
        contextlib.closing(sqlite3.connect(f"file:{home}/modelkeep.db?mode=ro", uri=True)) as conn,
    ):
        return int(conn.execute("SELECT count(*) FROM metrics").fetchone()[0])
    return 0


def killed_at(process: Forked, home: Path, points: int) -> bool:
    """Kill a process once so many points are there; False when it was done before."""
    while progress(home) < points:
        if process.ended.is_set():
            return False
        time.sleep(0.002)
    process.kill()
    return True


def test_killed_again_and_again_nothing_is_lost_or_twice(forks: Forks, large: str, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    home = folder / ".modelkeep"
    words = ["import", "mlflow", large, "--verify", "none", "--json"]
    whole = RUNS * KEYS * STEPS
    kills = 0
    for share in (0.0, 0.2, 0.6):
        kills += killed_at(forks.run(words, folder), home, max(1, int(whole * share)))
    assert kills >= 2
    code, told = forks.done([*words[:3], "--verify", "all", "--json"], folder)
    assert code == 0, told
    report = json.loads(told)
    assert report["checked"]["faults"] == []
    assert report["unchanged"]["runs"] > 0
    assert report["copied"]["runs"] + report["unchanged"]["runs"] == RUNS + 5
    db = Database.open(f"sqlite:///{home}/modelkeep.db")
    with db.read() as conn:
        rows = {
            table.name: conn.execute(select(func.count()).select_from(table)).scalar_one()
            for table in (tables.runs, tables.metrics, tables.params, tables.run_artifacts)
        }
    assert rows == {"runs": RUNS + 5, "metrics": whole + 1507, "params": RUNS + 4, "run_artifacts": RUNS // 10 + 4}
    assert verify(db, open_blobs(str(home / "blobs"))) == []
    db.close()
