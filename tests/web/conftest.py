"""A home as a year of keeping leaves it: real evaluations of real (small) models, written through the registry."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from sklearn.linear_model import LogisticRegression
from sqlalchemy import Connection
from starlette.applications import Starlette
from starlette.testclient import TestClient

from modelkeep.registry import endpoints, events, findings, models, snapshots
from modelkeep.registry.endpoints import Rollout, Route, Wanted
from modelkeep.registry.findings import Finding, Window
from modelkeep.registry.lineage import Code, Lineage
from modelkeep.registry.snapshots import Part, Record
from modelkeep.stats.outputs import Outputs
from modelkeep.store.database import Database
from modelkeep.train.compare import compare
from modelkeep.train.evaluate import evaluate
from modelkeep.web.pages import routes

DAY = 86_400.0
START = 1_359_676_800.0  # 2013-02-01
NASTY = "<script>alert('x')</script>&\""

DECLARATION = """\
model: flights
description: Will this flight arrive late?
data:
  source: data/*.parquet
  target: late
train:
  algorithm: logistic_regression
  metric: roc_auc
gates:
  - roc_auc >= 0.60
"""


def evaluation(seed: int, rows: int = 2000) -> dict[str, object]:
    """What training keeps of a model on its held-out rows."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, 3))
    y = (x[:, 0] + 0.3 * x[:, 1] + random.normal(scale=2, size=rows) > 0).astype(np.int64)
    fitted = LogisticRegression().fit(x[: rows // 2], y[: rows // 2])
    held, truth = x[rows // 2 :], y[rows // 2 :]
    outputs = Outputs(label=fitted.predict(held), probability=fitted.predict_proba(held), classes=fitted.classes_)
    airport = pa.table({"origin": random.choice(["EWR", "JFK", "LGA"], len(truth))})
    said = evaluate(truth, outputs, "classification", airport, ["origin"], metric="roc_auc", replicates=50)
    kept = msgspec.to_builtins(said)
    gate = {
        "gate": "roc_auc >= 0.60",
        "passed": True,
        "value": kept["metrics"]["roc_auc"]["value"],
        "needed": 0.60,
        "evidence": f"{len(truth)} held-out rows",
    }
    worse = np.clip(outputs.probability[:, 1] + random.normal(scale=0.2, size=len(truth)), 0, 1)
    other = Outputs(
        label=fitted.predict(held), probability=np.column_stack([1 - worse, worse]), classes=fitted.classes_
    )
    against = compare(truth, other, outputs, "classification", ["roc_auc", "log_loss"], replicates=50)
    return {"evaluation": kept, "comparison": msgspec.to_builtins(against), "gates": [gate], "metrics": {}}


def seed(conn: Connection) -> None:
    digest = "".join(f"{number:02x}" for number in range(32))
    for month in range(3):
        parts = {f"{name}.parquet": Part(fingerprint="1", digest=digest, rows=9000) for name in range(month + 1)}
        taken = digest.replace("00", f"{month:02x}", 1)
        record = Record(
            name="flights", digest=taken, manifest=digest, created=START + month * 28 * DAY,
            rows=27_000 * (month + 1), fingerprints=parts,
        )  # fmt: skip
        snapshots.record(conn, record)
    for number in (1, 2, 3):
        now = START + (number - 1) * 28 * DAY
        lineage = Lineage(
            snapshot=digest, declaration=digest, declaration_text=DECLARATION,
            code=Code(commit="a" * 40, dirty_diff=digest if number == 2 else ""), environment=digest,
            params={"C": 1.0}, parent=number - 1 or None,
        )  # fmt: skip
        made = models.register(
            conn, "flights", run_id=f"run{number}", package=digest, lineage=lineage,
            evaluation=evaluation(number), runtime="onnx", note="", now=now,
        )  # fmt: skip
        events.append(conn, "version.registered", made.name, {"package": digest}, now=now)
        if number < 3:
            models.set_alias(conn, "flights", "champion", number, now)
            told = {"endpoint": "flights", "because": "every gate passed", "before": number - 1 or None}
            events.append(conn, "version.promoted", made.name, told, now=now + DAY)
    models.set_alias(conn, "flights", "challenger", 3, START + 56 * DAY)
    now = START + 57 * DAY
    events.append(
        conn, "rollout.advanced", "flights@3", {"step": "canary 10% 1d", "because": "1 d passed"}, now=now
    )
    both = (
        Route(version=2, package=digest, weight=0.9, mode="stable"),
        Route(version=3, package=digest, weight=0.1, mode="canary"),
    )
    rollout = Rollout(version=3, step=1, since=now, started=now - DAY)
    endpoints.put(conn, Wanted(endpoint="flights", model="flights", routes=both, rollout=rollout))
    watched(conn)
    models.register(
        conn, NASTY, run_id="", package="", lineage=None, evaluation={}, runtime="", note=NASTY, now=START
    )
    events.append(conn, "model.noted", NASTY, {"text": NASTY}, now=now)


def watched(conn: Connection) -> None:
    random = np.random.default_rng(0)
    for day in range(58):
        version = 1 if day < 29 else 2
        auc = 0.71 - 0.0012 * day + (0.04 if version == 2 else 0) + random.normal(scale=0.012)
        told = {"value": auc, "low": auc - 0.025, "high": auc + 0.025, "rows": 800}
        name = "roc_auc" if day < 55 else "roc_auc_estimated"  # the last labels are not there yet
        live = {"verdict": {"value": auc, "error": 0.01, "labels": 800}, name: told}
        window = Window(
            endpoint="flights", model="flights", version=version, start=START + day * DAY,
            end=START + (day + 1) * DAY, rows=850, metrics=live, labels=800, latency={"p50": 0.4, "p99": 1.3},
        )  # fmt: skip
        number = findings.put_window(conn, window)
        if day in (8, 9, 23, 41, 52):
            columns = [{"column": "minute_of_day", "distance": 0.11}, {"column": "origin", "distance": 0.04}]
            evidence = {"text": "minute_of_day and origin differ from training", "columns": columns[: 1 + day % 2]}
            found = Finding(
                model="flights", endpoint="flights", version=version, kind="drift", at=window.end,
                window=number, evidence=evidence,
            )  # fmt: skip
            findings.add(conn, found)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    db = Database.open(f"sqlite:///{tmp_path_factory.mktemp('web') / 'modelkeep.db'}")
    db.write(seed)
    yield db
    db.close()


@pytest.fixture(scope="session")
def client(home: Database) -> TestClient:
    return TestClient(Starlette(routes=routes(home.read)))


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[TestClient]:
    db = Database.open(f"sqlite:///{tmp_path / 'modelkeep.db'}")
    yield TestClient(Starlette(routes=routes(db.read)))
    db.close()
