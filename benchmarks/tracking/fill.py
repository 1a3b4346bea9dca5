"""Many runs, put straight into the two databases: the same values in both, in the way each keeps them."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from modelkeep.registry import runs as registry
from modelkeep.store import tables
from modelkeep.store.bulk import insert_rows
from modelkeep.store.database import Database

CHUNK = 20_000
START = 1_700_000_000_000


@dataclass(frozen=True)
class Run:
    """One run: metrics by key, params by key."""

    run_id: str
    number: int
    metrics: dict[str, float]
    params: dict[str, str]


def made(count: int, values: int, prefix: str) -> Iterator[Run]:
    """Runs with so many metrics and params each; equal for equal arguments.

    ``m0`` is uniform in 0..1 with six digits, ``p0`` one of a thousand values.
    """
    chance = random.Random(count)
    for number in range(count):
        metrics = {f"m{at}": round(chance.random(), 6) for at in range(values)}
        params = {f"p{at}": str(chance.randrange(1000)) for at in range(values)}
        yield Run(f"{prefix}{number:030x}", number, metrics, params)


def ours(url: str, experiment: str, given: Iterator[Run]) -> int:
    """Put runs into our database, through the registry's tables; the experiment's number."""
    db = Database.open(url)
    number = db.write(lambda conn: registry.experiment(conn, experiment, START / 1000))
    while part := list(islice(given, CHUNK)):
        db.write(partial(_ours, experiment=number, given=part))
    if db.dialect == "postgresql":
        db.write(lambda conn: conn.exec_driver_sql("ANALYZE"))
    db.close()
    return number


def _ours(conn: Connection, experiment: int, given: list[Run]) -> None:
    columns = ("run_id", "experiment", "name", "status", "user_id", "start_ms", "end_ms")
    rows: list[tuple[Any, ...]] = [
        (
            run.run_id,
            experiment,
            f"run {run.number}",
            "FINISHED",
            "ann",
            START + run.number,
            START + run.number + 5,
        )
        for run in given
    ]
    insert_rows(conn, tables.runs, columns, rows)
    first = conn.exec_driver_sql("SELECT max(id) FROM runs").scalar_one() - len(given) + 1
    numbered = list(enumerate(given, first))
    points = [
        (number, key, START + run.number, 0, value, 0)
        for number, run in numbered
        for key, value in run.metrics.items()
    ]
    insert_rows(conn, tables.metrics, ("run", "key", "timestamp_ms", "step", "value", "is_nan"), points)
    last = [(number, key, experiment, ms, value, ms, step) for number, key, ms, step, value, _ in points]
    of_last = ("run", "key", "experiment", "start_ms", "value", "timestamp_ms", "step")
    insert_rows(conn, tables.latest_metrics, of_last, last)
    texts = ("run", "key", "value", "experiment", "start_ms")
    params = [
        (number, key, value, experiment, START + run.number)
        for number, run in numbered
        for key, value in run.params.items()
    ]
    insert_rows(conn, tables.params, texts, params)
    placed = [(number, experiment, START + run.number) for number, run in numbered]
    tags = [(number, "mlflow.runName", f"run {ms - START}", experiment, ms) for number, experiment, ms in placed]
    tags += [(number, "mlflow.user", "ann", experiment, ms) for number, experiment, ms in placed]
    insert_rows(conn, tables.tags, texts, tags)


def their_tables(database: Path) -> None:
    """Let MLflow make its own tables."""
    code = "import sys; from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as S; S(*sys.argv[1:])"
    subprocess.run([sys.executable, "-c", code, f"sqlite:///{database}", "mlflow-artifacts:/"], check=True)


def theirs(database: Path, experiment: str, given: Iterator[Run]) -> int:
    """Put runs into MLflow's SQLite database; the experiment's number."""
    with sqlite3.connect(database) as db:
        columns = "name, artifact_location, lifecycle_stage, creation_time, last_update_time, workspace"
        known = {row[1] for row in db.execute("PRAGMA table_info(experiments)")}
        values: list[Any] = [experiment, "mlflow-artifacts:/x", "active", START, START, "default"]
        kept = [name for name in columns.split(", ") if name in known]
        marks = ", ".join("?" * len(kept))
        db.execute(f"INSERT INTO experiments ({', '.join(kept)}) VALUES ({marks})", values[: len(kept)])
        number = int(db.execute("SELECT max(experiment_id) FROM experiments").fetchone()[0])
        while part := list(islice(given, CHUNK)):
            _theirs(db, number, part)
        db.execute("ANALYZE")
    db.close()
    return number


def _theirs(db: sqlite3.Connection, experiment: int, given: list[Run]) -> None:
    columns = "run_uuid, experiment_id, name, status, user_id, start_time, end_time, lifecycle_stage, artifact_uri"
    db.executemany(
        f"INSERT INTO runs ({columns}, source_type, source_name, entry_point_name, source_version)"
        " VALUES (?, ?, ?, 'FINISHED', 'ann', ?, ?, 'active', 'mlflow-artifacts:/x', 'LOCAL', '', '', '')",
        [
            (run.run_id, experiment, f"run {run.number}", START + run.number, START + run.number + 5)
            for run in given
        ],
    )
    points = [(run.run_id, key, value, START + run.number) for run in given for key, value in run.metrics.items()]
    for table in ("metrics", "latest_metrics"):
        sql = f"INSERT INTO {table} (run_uuid, key, value, timestamp, step, is_nan) VALUES (?, ?, ?, ?, 0, 0)"
        db.executemany(sql, points)
    params = [(run.run_id, key, value) for run in given for key, value in run.params.items()]
    db.executemany("INSERT INTO params (run_uuid, key, value) VALUES (?, ?, ?)", params)
    tags = [(run.run_id, "mlflow.runName", f"run {run.number}") for run in given]
    tags += [(run.run_id, "mlflow.user", "ann") for run in given]
    db.executemany("INSERT INTO tags (run_uuid, key, value) VALUES (?, ?, ?)", tags)


def our_history(url: str, run_id: str, count: int) -> None:
    """Give a run of ours a metric ``long`` with so many points."""
    db = Database.open(url)
    for first in range(0, count, CHUNK):
        points = [("long", at / 7, START + at, at) for at in range(first, min(first + CHUNK, count))]
        db.write(partial(registry.log, run_id=run_id, metrics=points))
    db.close()


def their_history(database: Path, run_id: str, count: int) -> None:
    """The same for MLflow."""
    with sqlite3.connect(database) as db:
        columns = "run_uuid, key, value, timestamp, step, is_nan"
        rows = [(run_id, "long", at / 7, START + at, at) for at in range(count)]
        db.executemany(f"INSERT INTO metrics ({columns}) VALUES (?, ?, ?, ?, ?, 0)", rows)
        db.execute(f"INSERT INTO latest_metrics ({columns}) VALUES (?, ?, ?, ?, ?, 0)", rows[-1])
    db.close()
