"""An ``mlruns`` folder: what MLflow keeps when it was given no server and no database.

Source: mlflow/store/tracking/file_store.py and mlflow/store/model_registry/file_store.py in MLflow's repository.
Files are read below the folder even where their absolute place has changed, as after a copy to another machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from modelkeep.core.errors import Damaged, NotFound, Refused
from modelkeep.protocols.mlflow.transfer.places import Places, below, opened
from modelkeep.protocols.mlflow.transfer.records import (
    EvaluationDataset,
    EvaluationRecord,
    Experiment,
    Hook,
    LoggedModel,
    Model,
    ModelPoint,
    Owned,
    Point,
    Run,
    Trace,
    Version,
    plain,
    some,
)
from modelkeep.registry.datasets import Dataset, DatasetInput

PAGE = 500
PIECE = 50_000
_STATUSES = {1: "RUNNING", 2: "SCHEDULED", 3: "FINISHED", 4: "FAILED", 5: "KILLED"}
_TYPES = {1: "NOTEBOOK", 2: "JOB", 3: "PROJECT", 4: "LOCAL"}
_READY = {1: "PENDING", 2: "READY", 3: "UPLOAD_FAILED"}
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class FolderSource:
    """The ``Source`` port on an ``mlruns`` folder."""

    untold: frozenset[str] = frozenset()
    note = "mlruns folder"

    def __init__(self, folder: Path, places: Places) -> None:
        """Look at the folder. Raises ``NotFound``, ``Refused``: it is not MLflow's."""
        self._root, self._places = folder.resolve(), places
        self.origin = str(self._root)
        if not self._root.is_dir():
            raise NotFound(f"there is no folder {folder}", hint="name the mlruns folder")
        self._experiments = {
            int(meta["experiment_id"]): (home, meta)
            for above in (self._root, self._root / ".trash")
            for home, meta in _described(above)
            if "experiment_id" in meta
        }
        if not self._experiments and not (self._root / "models").is_dir():
            raise Refused(f"{folder} holds no experiments of MLflow", hint="name the mlruns folder itself")

    def experiments(self) -> list[Experiment]:
        """All, those in the trash too."""
        return [
            Experiment(
                id=number,
                name=meta["name"],
                artifact_location=meta.get("artifact_location") or "",
                lifecycle_stage=meta.get("lifecycle_stage") or "active",
                created_ms=meta.get("creation_time") or 0,
                updated_ms=meta.get("last_update_time") or meta.get("creation_time") or 0,
                tags=_texts(home / "tags"),
            )
            for number, (home, meta) in sorted(self._experiments.items())
        ]

    def runs(self, experiment: int) -> Iterator[list[Run]]:
        """Pages of all runs, in order of their ids."""
        home, _ = self._experiments[experiment]
        found = ((where, meta) for where, meta in _described(home) if "run_id" in meta or "run_uuid" in meta)
        for page in some(found, PAGE):
            yield [self._run(experiment, home, where, meta) for where, meta in page]

    def points(self, runs: Sequence[Run]) -> Iterator[list[Point]]:
        """The whole histories of these runs."""
        for run in runs:
            folder = self._home(run) / "metrics"
            for key, file in _keys(folder):
                for lines in some(_lines(file), PIECE):
                    yield [(run.run_id, key, *_point(line, file)) for line in lines]

    def logged_models(self, experiment: int) -> Iterator[list[LoggedModel]]:
        """Pages of all logged models, in order of their ids."""
        home, _ = self._experiments[experiment]
        for page in some(_described(home / "models"), PAGE):
            yield [_logged(experiment, where, meta) for where, meta in page]

    def traces(self, experiment: int) -> Iterator[list[Trace]]:
        """None: they are counted, not copied."""
        del experiment
        yield from ()

    def models(self) -> Iterator[list[Model]]:
        """All registered models, by name."""
        found = []
        for home, meta in _described(self._root / "models"):
            aliases = {name: int(text) for name, text in _texts(home / "aliases").items()}
            versions = [_version(where, said) for where, said in _described(home)]
            found.append(
                Model(
                    name=meta["name"],
                    created_ms=meta.get("creation_timestamp") or 0,
                    updated_ms=meta.get("last_updated_timestamp") or 0,
                    description=meta.get("description") or "",
                    tags=_texts(home / "tags"),
                    aliases=aliases,
                    versions=sorted(
                        (each for each in versions if each.stage != "Deleted_Internal"),
                        key=lambda each: each.version,
                    ),
                )
            )
        yield found

    def evaluation_datasets(self) -> Iterator[list[EvaluationDataset]]:
        """None: MLflow keeps them in databases only."""
        yield from ()

    def evaluation_records(self, dataset_id: str) -> Iterator[list[EvaluationRecord]]:
        """None."""
        yield from ()

    def webhooks(self) -> list[Hook]:
        """None: MLflow keeps them in databases only."""
        return []

    def files(self, owner: Owned) -> list[tuple[str, int | None]]:
        """What is in its folder here, or at its artifact URI. Raises ``Invalid``."""
        here = self._home(owner) / "artifacts"
        return sorted(below(here)) if here.is_dir() else self._places.files(owner)

    def open(self, owner: Owned, path: str) -> AbstractContextManager[BinaryIO]:
        """One file's bytes. Raises ``NotFound``, ``Unavailable``."""
        here = self._home(owner) / "artifacts"
        return opened(here, path) if here.is_dir() else self._places.open(owner, path)

    def totals(self) -> dict[str, int]:
        """How many runs there are."""
        return {"runs": sum(1 for home, _ in self._experiments.values() for _ in home.glob("*/meta.yaml"))}

    def others(self) -> dict[str, int]:
        """The traces, which are not copied."""
        count = sum(1 for home, _ in self._experiments.values() for _ in home.glob("traces/*"))
        return {"traces": count} if count else {}

    def close(self) -> None:
        """Nothing is held."""

    def _home(self, owner: Owned) -> Path:
        home, _ = self._experiments[owner.experiment]
        return home / owner.run_id if isinstance(owner, Run) else home / "models" / owner.model_id

    def _run(self, experiment: int, home: Path, where: Path, meta: dict[str, Any]) -> Run:
        datasets, models = _uses(home, where)
        return Run(
            run_id=meta.get("run_id") or meta["run_uuid"],
            experiment=experiment,
            name=meta.get("run_name") or meta.get("name") or "",
            status=_STATUSES.get(meta.get("status") or 3, "FINISHED"),
            lifecycle_stage=meta.get("lifecycle_stage") or "active",
            artifact_uri=meta.get("artifact_uri") or "",
            start_ms=meta.get("start_time") or 0,
            end_ms=meta.get("end_time") or None,
            deleted_ms=meta.get("deleted_time"),
            user_id=meta.get("user_id") or "",
            source_type=_TYPES.get(meta.get("source_type") or 0, "UNKNOWN"),
            source_name=meta.get("source_name") or "",
            source_version=meta.get("source_version") or "",
            entry_point_name=meta.get("entry_point_name") or "",
            params=_texts(where / "params"),
            tags=_texts(where / "tags"),
            latest=[_latest(key, file) for key, file in _keys(where / "metrics")],
            datasets=datasets,
            models=sorted(models),
        )


def _described(above: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The folders that hold a ``meta.yaml``, by name, and what it says. Raises ``Damaged``."""
    for home in sorted(above.iterdir()) if above.is_dir() else ():
        file = home / "meta.yaml"
        if file.is_file():
            yield home, _meta(file)


def _meta(file: Path) -> dict[str, Any]:
    try:
        found = yaml.load(file.read_text("utf-8"), Loader=_LOADER)  # noqa: S506 - one of the safe loaders
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Damaged(f"{file} cannot be read: {str(error).splitlines()[0]}", hint="mend or remove it") from None
    return found if isinstance(found, dict) else {}


def _keys(folder: Path) -> list[tuple[str, Path]]:
    """Key and file, in order; a key with a slash is a file in a folder."""
    if not folder.is_dir():
        return []
    return sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*") if path.is_file())


def _texts(folder: Path) -> dict[str, str]:
    return {key: plain(file.read_text("utf-8")) for key, file in _keys(folder)}


def _lines(file: Path) -> Iterator[str]:
    with file.open(encoding="utf-8") as lines:
        yield from (line for line in lines if line.strip())


def _point(line: str, file: Path) -> tuple[int, int, float | None]:
    """Timestamp, step, value of ``<timestamp> <value> [<step> ...]``. Raises ``Damaged``."""
    parts = line.split()
    try:
        value = float(parts[1])
        return int(parts[0]), int(parts[2]) if len(parts) > 2 else 0, None if math.isnan(value) else value
    except (IndexError, ValueError):
        raise Damaged(f"{file}: {line[:100]!r} is no point of a metric", hint="mend or remove it") from None


def _latest(key: str, file: Path) -> tuple[str, float | None, int, int]:
    best = max((_point(line, file) for line in _lines(file)), key=lambda each: (each[1], each[0], each[2] or 0.0))
    return key, best[2], best[0], best[1]


def _uses(home: Path, where: Path) -> tuple[list[DatasetInput], list[tuple[str, str, int]]]:
    datasets, models = [], []
    for _, said in _described(where / "inputs"):
        if said.get("source_type") == "DATASET":
            file = home / "datasets" / str(said["source_id"]) / "meta.yaml"
            about = _meta(file) if file.is_file() else {}
            described = Dataset(**{name: about.get(name) or "" for name in Dataset.__struct_fields__})
            datasets.append(DatasetInput(described, {str(k): str(v) for k, v in (said.get("tags") or {}).items()}))
        else:
            models.append(("input", str(said["destination_id"]), 0))
    for _, said in _described(where / "outputs"):
        models.append(("output", str(said["destination_id"]), int(said.get("step") or 0)))
    return datasets, models


def _logged(experiment: int, where: Path, meta: dict[str, Any]) -> LoggedModel:
    metrics: list[ModelPoint] = []
    for key, file in _keys(where / "metrics"):
        for line in _lines(file):
            ms, step, value = _point(line, file)
            rest = line.split()[3:]
            run = rest[0] if rest else meta.get("source_run_id") or ""
            name, digest = (rest[1], rest[2]) if len(rest) > 2 else ("", "")
            metrics.append((key, run, name, digest, ms, step, value))
    return LoggedModel(
        model_id=meta["model_id"],
        experiment=experiment,
        name=meta.get("name") or "",
        status=f"LOGGED_MODEL_{_READY.get(meta.get('status') or 0, 'UNSPECIFIED')}",
        lifecycle_stage=meta.get("lifecycle_stage") or "active",
        artifact_uri=meta.get("artifact_location") or "",
        created_ms=meta.get("creation_timestamp") or 0,
        updated_ms=meta.get("last_updated_timestamp") or 0,
        model_type=meta.get("model_type") or "",
        source_run_id=meta.get("source_run_id") or "",
        status_message=meta.get("status_message") or "",
        params=_texts(where / "params"),
        tags=_texts(where / "tags"),
        metrics=metrics,
    )


def _version(where: Path, meta: dict[str, Any]) -> Version:
    return Version(
        version=int(meta["version"]),
        created_ms=meta.get("creation_timestamp") or 0,
        updated_ms=meta.get("last_updated_timestamp") or 0,
        source=meta.get("source") or "",
        location=meta.get("storage_location") or "",
        run_id=meta.get("run_id") or "",
        run_link=meta.get("run_link") or "",
        description=meta.get("description") or "",
        user_id=meta.get("user_id") or "",
        stage=str(meta.get("current_stage") or "None"),
        status=meta.get("status") or "READY",
        status_message=meta.get("status_message") or "",
        tags=_texts(where / "tags"),
    )
