"""What the serving tests share: real models in real packages, a real registry, a real worker process."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pyarrow as pa
from msgspec.structs import replace
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_breast_cancer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from forks import Forked, shared
from modelkeep.formats import inference, manifest, package, runtimes
from modelkeep.registry import endpoints
from modelkeep.registry.endpoints import Route, Wanted
from modelkeep.serve.columns import Inputs, Loaded
from modelkeep.store.blobs import open_blobs, put_tree
from modelkeep.store.database import Database

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Made:
    """A trained model with the rows it can be asked about."""

    files: dict[str, bytes]
    frame: pd.DataFrame
    labels: list[Any]
    probability: np.ndarray | None

    def loaded(self) -> Loaded:
        return Loaded(
            runtimes.load(self.files), Inputs(runtimes.signature(self.files)), manifest.read(self.files).runtime
        )


def made_of(
    pipeline: Pipeline,
    frame: pd.DataFrame,
    y: Any,
    task: Any,
    classes: Sequence[Any],
    in_range: Sequence[str] = (),
) -> Made:
    """Fit and package it."""
    pipeline.fit(frame, y)
    table = pa.Table.from_pandas(frame, preserve_index=False)
    found = inference.infer(table, list(frame.columns), task, classes)
    found = replace(found, inputs=inference.bounded(found.inputs, dict.fromkeys(in_range, (None, None))))
    files = package.build(pipeline, found, table).files
    probability = pipeline.predict_proba(frame) if task == "classification" else None
    return Made(files, frame, pipeline.predict(frame).tolist(), probability)


def tumours(c: float = 1.0, rows: int = 569) -> Made:
    """Logistic regression on the 30 numeric features of the Wisconsin breast cancer set."""
    data = load_breast_cancer(as_frame=True)
    frame = data.data.astype(float)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000))
    return made_of(pipeline, frame[:rows], data.target[:rows], "classification", [0, 1])


def flights(seed: int = 0, in_range: Sequence[str] = ()) -> Made:
    """Text, numbers with gaps and whole numbers in; texts as labels out. Inputs ``in_range`` refuse others."""
    rng = np.random.default_rng(seed)
    n = 400
    frame = pd.DataFrame(
        {
            "carrier": rng.choice(["AA", "UA", "DL"], n),
            "distance": np.where(rng.random(n) < 0.1, np.nan, rng.uniform(100, 3000, n)),
            "hour": rng.integers(0, 24, n),
        }
    )
    y = np.where((frame.hour > 15) ^ (rng.random(n) < 0.2), "late", "on time")
    features = ColumnTransformer(
        [
            ("c", OneHotEncoder(handle_unknown="ignore"), ["carrier"]),
            ("n", make_pipeline(SimpleImputer(), StandardScaler()), ["distance", "hour"]),
        ]
    )
    return made_of(
        make_pipeline(features, LogisticRegression()), frame, y, "classification", ["late", "on time"], in_range
    )


def prices(in_range: Sequence[str] = ()) -> Made:
    """A regression on three numbers. Those ``in_range`` refuse other values than those of training."""
    rng = np.random.default_rng(3)
    frame = pd.DataFrame(rng.normal(size=(200, 3)), columns=["a", "b", "c"])
    y = frame @ [1.0, -2.0, 0.5] + rng.normal(scale=0.1, size=200)
    return made_of(make_pipeline(StandardScaler(), LinearRegression()), frame, y, "regression", (), in_range)


def tensor(made: Made, rows: Sequence[int], name: str = "rows") -> dict[str, Any]:
    """An Open Inference request with all inputs in one tensor."""
    block = made.frame.iloc[list(rows)].to_numpy(dtype=float)
    data = [None if value != value else value for value in block.reshape(-1).tolist()]
    return {"inputs": [{"name": name, "shape": list(block.shape), "datatype": "FP64", "data": data}]}


_TYPES = {"f": "FP64", "i": "INT64", "b": "BOOL"}


def named(made: Made, rows: Sequence[int]) -> dict[str, Any]:
    """An Open Inference request with one tensor per input."""
    part = made.frame.iloc[list(rows)]
    return {
        "inputs": [
            {
                "name": name,
                "shape": [len(part)],
                "datatype": _TYPES.get(column.dtype.kind, "BYTES"),
                "data": [None if value != value else value for value in column.tolist()],
            }
            for name, column in part.items()
        ]
    }


@dataclass
class Home:
    """A home folder with a registry that says what to serve."""

    path: Path
    db: Database = field(init=False)
    packages: dict[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        self.db = Database.open(self.url)
        self.blobs = open_blobs(self.blobs_url)

    @property
    def url(self) -> str:
        return f"sqlite:///{self.path / 'modelkeep.db'}"

    @property
    def blobs_url(self) -> str:
        return str(self.path / "blobs")

    def keep(self, made: Made) -> str:
        return put_tree(self.blobs, made.files)

    def serve(self, endpoint: str, *routes: tuple[int, str, float, str], **settings: Any) -> None:
        """Routes are (version, package, weight, mode)."""
        wanted = Wanted(
            endpoint=endpoint,
            model=f"{endpoint}-model",
            routes=tuple(Route(version=v, package=p, weight=w, mode=m) for v, p, w, m in routes),  # type: ignore[arg-type]
            settings=settings,
        )
        self.db.write(lambda conn: endpoints.put(conn, wanted))

    def captured(self) -> list[pa.Table]:
        found = []
        for path in sorted((self.path / "capture").glob("*.arrow")):
            with pa.ipc.open_file(path) as reader:
                found.append(reader.read_all())
        return found

    def captured_rows(self, endpoint: str, mode: str = "stable") -> pa.Table:
        tables = [t for t in self.captured() if (about(t)["endpoint"], about(t)["mode"]) == (endpoint, mode)]
        tables = [t for t in tables if t.num_rows]
        return pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({})


def about(table: pa.Table) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(table.schema.metadata[b"modelkeep"])
    return found


@dataclass
class Worker:
    """A serving process."""

    process: Forked
    url: str
    client: httpx.Client

    def infer(self, name: str, request: Any, **headers: str) -> httpx.Response:
        return self.client.post(f"/v2/models/{name}/infer", json=request, headers=headers)

    def health(self) -> dict[str, Any]:
        found: dict[str, Any] = self.client.get("/modelkeep/health").json()
        return found

    def until(self, said: Any, limit: float = 15.0) -> dict[str, Any]:
        """Wait until the health report satisfies ``said``."""
        end = time.monotonic() + limit
        while True:
            health = self.health()
            if said(health):
                return health
            assert time.monotonic() < end, health
            time.sleep(0.02)

    def stop(self) -> int:
        self.process.send(signal.SIGTERM)
        return self.process.wait(20)


def version_served(health: dict[str, Any], endpoint: str) -> int | None:
    for one in health["endpoints"]:
        if one["endpoint"] == endpoint:
            return next((r["version"] for r in one["routes"] if r["mode"] == "stable"), None)
    return None


@contextmanager
def worker(
    home: Home, *, ready: bool = True, url: str = "", memory: int = 0, drain: int = 10, machine: Path | None = None
) -> Iterator[Worker]:
    program = str(Path(__file__).with_name("serving_main.py"))
    words = [program, str(home.path), url or home.url, home.blobs_url]
    settings = {"MODELKEEP_MODELS_MEMORY": str(memory), "MODELKEEP_DRAIN": str(drain)}
    settings["MODELKEEP_TEST_MACHINE"] = str(machine or "/")
    process = shared().run(words, home.path, settings, "python")
    with ended(process):
        line = process.line()
        assert line.startswith("serving on http://"), process.told()
        address = line.removeprefix("serving on ").strip()
        with httpx.Client(base_url=address, timeout=20) as client:
            found = Worker(process, address, client)
            if ready:
                found.until(lambda health: health["ready"])
            yield found


@contextmanager
def ended(process: Forked) -> Iterator[None]:
    """The process ends with the block."""
    try:
        yield
    finally:
        process.send(signal.SIGTERM)
        if not process.ended.wait(15):
            process.kill()
