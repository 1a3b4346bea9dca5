"""One experiment, run, logged model or version made on an MLflow server over REST.

A server gives its own ids. What was made carries the id it has here as a tag, and a second tag once it is whole;
so a stopped export goes on, and nothing is made twice.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

from modelkeep.core.errors import NotFound
from modelkeep.core.ports import BlobStore
from modelkeep.protocols.mlflow.transfer.places import PROXIED
from modelkeep.protocols.mlflow.transfer.records import Experiment, LoggedModel, Model, Point, Run, some
from modelkeep.protocols.mlflow.transfer.rest import Client, file_path

EXPERIMENT, RUN, MODEL, LOGGED, VERSION = (
    f"modelkeep.{name}" for name in ("experiment", "run_id", "model", "model_id", "version")
)
WHOLE = "modelkeep.exported"
"""Tag of what has been exported whole: the digest of what it held."""
CREATED = "modelkeep.created"
"""Tag that says when something was made here, in milliseconds since 1970: the server takes no such time."""
GONE = "modelkeep.deleted."
"""Begins tags of experiments that say which logged model is deleted there: a server tells of none that is."""

METRICS, REST = 1000, 100
"""Metrics, and params or tags, in one request: the most that MLflow takes."""

_PARENT = "mlflow.parentRunId"

Files = Sequence[tuple[str, str, int]]
"""Path, digest and size in bytes."""


def mark(given: Experiment | Model) -> str:
    """What tells an experiment or model of this home from one of the same name that somebody else exported."""
    who = str(given.id) if isinstance(given, Experiment) else given.name
    return f"{who} made {given.created_ms}"


def renamed(name: str, attempt: int) -> str:
    """``name-exported``, ``name-exported-2``, ..."""
    return f"{name}-exported" if attempt == 1 else f"{name}-exported-{attempt}"


class Poster:
    """Makes things on one server."""

    def __init__(self, client: Client, blobs: BlobStore) -> None:
        self.client, self._blobs = client, blobs

    def experiment(self, name: str, mine: str, tags: Mapping[str, str]) -> str:
        """Make an experiment; its id there. Raises ``Conflict``."""
        said = _pairs({**tags, EXPERIMENT: mine})
        return str(
            self.client.post("experiments/create", {"name": name, "tags": said}, repeat=False)["experiment_id"]
        )

    def run(self, experiment: str, run: Run) -> tuple[str, str]:
        """Begin a run; its id and artifact URI there."""
        said = {
            "experiment_id": experiment,
            "run_name": run.name,
            "start_time": run.start_ms,
            "user_id": run.user_id,
            "tags": _pairs({RUN: run.run_id}),
        }
        info = self.client.post("runs/create", said, repeat=False)["run"]["info"]
        return str(info["run_id"]), str(info.get("artifact_uri", ""))

    def fill(self, there: str, run: Run, points: Iterable[Sequence[Point]]) -> int:
        """Log a run's params, tags, histories and datasets; how many points. Logging again changes nothing."""
        for params in some(list(run.params.items()), REST):
            self._batch(there, params=_pairs(dict(params)))
        tags = {key: value for key, value in run.tags.items() if key != _PARENT}
        for batch in some(list(tags.items()), REST):
            self._batch(there, tags=_pairs(dict(batch)))
        count = 0
        for piece in points:
            for batched in some(piece, METRICS):
                self._batch(there, metrics=[_metric(point) for point in batched])
            count += len(piece)
        if run.datasets:
            uses = [{"dataset": _described(use.dataset), "tags": _pairs(use.tags)} for use in run.datasets]
            self.client.post("runs/log-inputs", {"run_id": there, "datasets": uses})
        return count

    def end(self, there: str, run: Run, whole: str) -> None:
        """Give a run its end and mark it as whole."""
        said: dict[str, Any] = {"run_id": there, "status": run.status, "run_name": run.name}
        if run.end_ms is not None:
            said["end_time"] = run.end_ms
        self.client.post("runs/update", said)
        self.tag_run(there, WHOLE, whole)

    def tag_run(self, there: str, key: str, value: str) -> None:
        """Set one tag of a run."""
        self.client.post("runs/set-tag", {"run_id": there, "key": key, "value": value})

    def child(self, there: str, parent: str) -> None:
        """Say to which run a run belongs."""
        self.tag_run(there, _PARENT, parent)

    def upload(self, uri: str, files: Files) -> bool:
        """Put files below an artifact URI; False when only clients, and not the server, can write there."""
        if not uri.startswith(PROXIED):
            return False
        root = urlsplit(uri).path.strip("/")
        for path, digest, size in files:
            with self._blobs.open(digest) as stream:
                self.client.upload(file_path(f"{root}/{path}"), cast("BinaryIO", _Plain(stream)), size)
        return True

    def logged_model(self, experiment: str, given: LoggedModel, run: str) -> tuple[str, str]:
        """Begin a logged model; its id and artifact URI there."""
        said: dict[str, Any] = {
            "experiment_id": experiment,
            "name": given.name,
            "model_type": given.model_type,
            "params": _pairs(given.params),
            "tags": _pairs({**given.tags, LOGGED: given.model_id, CREATED: str(given.created_ms)}),
        }
        if run:
            said["source_run_id"] = run
        info = self.client.post("logged-models", said, repeat=False)["model"]["info"]
        return str(info["model_id"]), str(info["artifact_uri"])

    def finish_model(self, there: str, given: LoggedModel, runs: Mapping[str, str], whole: str) -> None:
        """Log a logged model's metrics, say whether it is ready, and mark it as whole."""
        by_run: dict[str, list[dict[str, Any]]] = {}
        for key, run_id, name, digest, ms, step, value in given.metrics:
            if run_id in runs:
                point = _metric((run_id, key, ms, step, value)) | {"model_id": there}
                point |= {"dataset_name": name, "dataset_digest": digest} if name else {}
                by_run.setdefault(runs[run_id], []).append(point)
        for run, points in by_run.items():
            for batch in some(points, METRICS):
                self._batch(run, metrics=batch)
        if given.status != "LOGGED_MODEL_PENDING":
            said = {"model_id": there, "status": given.status}
            self.client.post(f"logged-models/{there}", said, method="PATCH")
        self.client.post(f"logged-models/{there}/tags", {"tags": _pairs({WHOLE: whole})}, method="PATCH")

    def relate(self, there: Run, run: Run, models: Mapping[str, str]) -> None:
        """Attach the logged models that went into a run and came out of it, but none twice: that is refused."""
        known = {(kind, name) for kind, name, _ in there.models}
        new = [(kind, models[name], step) for kind, name, step in run.models if name in models]
        new = [each for each in new if each[:2] not in known]
        inputs = [{"model_id": name} for kind, name, _ in new if kind == "input"]
        outputs = [{"model_id": name, "step": step} for kind, name, step in new if kind == "output"]
        if inputs:
            self.client.post("runs/log-inputs", {"run_id": there.run_id, "models": inputs})
        if outputs:
            self.client.post("runs/outputs", {"run_id": there.run_id, "models": outputs})

    def model(self, name: str, mine: str, description: str, tags: Mapping[str, str]) -> None:
        """Register a model. Raises ``Conflict``."""
        said = {"name": name, "description": description, "tags": _pairs({**tags, MODEL: mine})}
        self.client.post("registered-models/create", said, repeat=False)

    def version(self, said: Mapping[str, Any], tags: Mapping[str, str]) -> int:
        """Make the next version of a model; its number there."""
        made = self.client.post("model-versions/create", {**said, "tags": _pairs(tags)}, repeat=False)
        return int(made["model_version"]["version"])

    def find(self, path: str, query: Mapping[str, Any], name: str) -> dict[str, Any] | None:
        """One thing by name, or None."""
        try:
            return dict(self.client.get(path, query)[name])
        except NotFound:
            return None

    def _batch(self, there: str, **said: Any) -> None:
        self.client.post("runs/log-batch", {"run_id": there, **said})


class _Plain:
    """Only ``read``: so that ``http.client`` streams it in blocks and asks for nothing else."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def read(self, size: int = -1) -> bytes:
        return self._stream.read(size)


def finite(value: float | None) -> float | None:
    """What a server keeps of a value: the largest number for an infinite one."""
    return value if value is None else max(-sys.float_info.max, min(value, sys.float_info.max))


def _metric(point: Point) -> dict[str, Any]:
    _, key, ms, step, value = point
    return {"key": key, "value": "NaN" if value is None else finite(value), "timestamp": ms, "step": step}


def _described(dataset: Any) -> dict[str, str]:
    names = ("name", "digest", "source_type", "source", "schema", "profile")
    return {name: getattr(dataset, name) for name in names if getattr(dataset, name)}


def _pairs(given: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in given.items()]
