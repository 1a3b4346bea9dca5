"""``modelkeep export mlflow``: copy what is kept here to an MLflow tracking server.

Its protocol gives every experiment, run and logged model an id of its own, and times of making; here they stay as
tags. Everything else arrives: names, start and end, histories, params, tags, datasets, files, models, version
numbers, aliases, stages. What is deleted here is made there and then deleted, as the last step: nothing can be
logged to a deleted run.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct
from sqlalchemy import select

from modelkeep.core.errors import Conflict
from modelkeep.core.ports import Progress
from modelkeep.lifecycle.keep import Keep
from modelkeep.protocols.mlflow.transfer import departing, posting
from modelkeep.protocols.mlflow.transfer.exporting_models import Registry
from modelkeep.protocols.mlflow.transfer.exporting_more import More
from modelkeep.protocols.mlflow.transfer.exporting_traces import Traces
from modelkeep.protocols.mlflow.transfer.posting import Files, Poster
from modelkeep.protocols.mlflow.transfer.records import Experiment, LoggedModel, Run, fingerprint
from modelkeep.protocols.mlflow.transfer.rest import Client
from modelkeep.protocols.mlflow.transfer.server import ServerSource
from modelkeep.registry import events
from modelkeep.store import tables
from modelkeep.store.logged_tables import logged_model_artifacts, logged_models

SENDERS = 8
SAMPLE = 50
LOST = (
    "ids of experiments, runs, logged models and evaluation datasets: the server gives its own; ours are the tags"
    " modelkeep.experiment, modelkeep.run_id, modelkeep.model_id and modelkeep.dataset_id",
    "when experiments, models, versions, evaluation datasets and webhooks were made, and who made them; of logged"
    " models, versions and evaluation datasets the tag modelkeep.created says when",
    "places of files: the server has its own",
    "infinite values of metrics: the server keeps the largest number instead",
    "which assessments others override, the status of versions, points of logged models whose run is gone",
    "what MLflow has no place for: declarations, snapshots, lineage, evaluations, endpoints, captures, events",
)


class Report(Struct):
    """What an export did.

    Attributes:
        target: The server.
        exported: How many of each kind were made or completed now.
        unchanged: How many had been exported before.
        renamed: Name here and there, of what got another one.
        left: What could not be exported, and why.
        lost: What the server's protocol cannot take.
        faults: What differs from here, of the runs that were compared.
        compared: How many runs were compared.
        seconds: How long it took.
    """

    target: str
    exported: dict[str, int]
    unchanged: dict[str, int]
    renamed: dict[str, str]
    left: list[str]
    lost: tuple[str, ...] = LOST
    faults: list[str] = []
    compared: int = 0
    seconds: float = 0.0


def run(keep: Keep, address: str, progress: Progress, *, prefix: str = "", rename: bool = False) -> Report:
    """Copy everything there.

    Args:
        address: ``http(s)://`` of the server.
        prefix: Goes before the names of all experiments and models.
        rename: What has a name that is taken there gets another one.

    Raises:
        Conflict: Names are taken there by others; nothing was made.
        Invalid, Unavailable, Refused: The server is no MLflow server, is away, or wants credentials.
    """
    source = ServerSource(address)
    try:
        return _Export(keep, Client(address), source, progress, prefix, rename).run()
    finally:
        source.close()


class _Place(NamedTuple):
    """An experiment there: its id (empty: to be made), name, stage and tags."""

    id: str
    name: str
    stage: str = ""
    tags: Mapping[str, str] = {}


class _Export:
    def __init__(
        self, keep: Keep, client: Client, source: ServerSource, progress: Progress, prefix: str, rename: bool
    ) -> None:
        self._keep, self._client, self._source, self._progress = keep, client, source, progress
        self._prefix, self._rename = prefix, rename
        self._poster = Poster(client, keep.blobs)
        self._report = Report(client.address, {}, {}, {}, [], faults=[])
        self._runs: dict[str, str] = {}
        self._there: dict[int, str] = {}
        self._models: dict[str, str] = {}
        self._sample: list[Run] = []
        self._asleep: set[str] = set()  # runs that are deleted there
        self._doomed: set[str] = set()  # those that are to be, by what is here
        self._ended: dict[int, str] = {}  # and experiments, by number here
        self._dying: dict[str, tuple[str, str]] = {}  # and logged models: experiment and id there, by id here

    def run(self) -> Report:
        began = time.monotonic()
        with self._keep.db.read() as conn:
            experiments = departing.all_experiments(conn)
        registry = Registry(self._keep, self._poster, self._prefix, self._rename, self._report)
        places = self._places(experiments)
        registry.look()
        with ThreadPoolExecutor(SENDERS, thread_name_prefix="modelkeep-export") as pool:
            for each in experiments:
                self._experiment(each, places, pool)
        registry.send(self._runs, self._models, self._there)
        more = More(self._keep, self._client, self._source, self._report)
        more.datasets(self._there)
        more.webhooks()
        Traces(self._keep, self._poster, self._source, self._report, self._runs, self._models).send(self._there)
        self._delete()
        self._compare()
        self._report.seconds = round(time.monotonic() - began, 3)
        said = {"exported": self._report.exported, "faults": self._report.faults[:100]}
        now = self._keep.clock.now()
        self._keep.db.write(
            lambda conn: events.append(conn, "mlflow.exported", self._client.address, said, now=now)
        )
        self._client.close()
        return self._report

    def _places(self, experiments: Sequence[Experiment]) -> dict[int, _Place]:
        """Where each is there, by number here. Raises ``Conflict``."""
        there = {each.name: each for each in self._source.experiments()}
        mine = {name: each.tags.get(posting.EXPERIMENT) for name, each in there.items()}
        found: dict[int, _Place] = {}
        problems = []
        for each in experiments:
            name = self._prefix + each.name
            attempt = 0
            while self._rename and name in there and mine[name] != posting.mark(each):
                attempt += 1
                name = posting.renamed(self._prefix + each.name, attempt)
            if name not in there:
                found[each.id] = _Place("", name)
            elif mine[name] == posting.mark(each) or (name == "Default" and each.id == there[name].id == 0):
                at = there[name]  # experiment 0 is everybody's first one
                found[each.id] = _Place(str(at.id), name, at.lifecycle_stage, at.tags)
            else:
                problems.append(f"experiment {name!r} is there already")
        if problems:
            raise Conflict(
                f"nothing was exported, as {len(problems)} names are taken:\n" + "\n".join(problems[:20]),
                hint="give other names with --rename, or put --prefix NAME- before all names",
            )
        self._report.renamed |= {
            f"experiment {each.name}": found[each.id].name
            for each in experiments
            if found[each.id].name != each.name
        }
        return found

    def _experiment(self, given: Experiment, places: dict[int, _Place], pool: ThreadPoolExecutor) -> None:
        there, name, stage, tags = places[given.id]
        if not there:
            there = self._poster.experiment(name, posting.mark(given), given.tags)
        else:
            if stage == "deleted":
                self._client.post("experiments/restore", {"experiment_id": there})
            for key, value in {**given.tags, posting.EXPERIMENT: posting.mark(given)}.items():
                said = {"experiment_id": there, "key": key, "value": value}
                self._client.post("experiments/set-experiment-tag", said)
        self._there[given.id] = there
        if given.lifecycle_stage == "deleted" and there != "0":  # that one belongs to everybody
            self._ended[given.id] = there
        self._count("experiments")
        runs = (run for page in self._source.runs(int(there)) for run in page)
        known = {run.tags[posting.RUN]: run for run in runs if posting.RUN in run.tags}
        self._asleep |= {run.run_id for run in known.values() if run.lifecycle_stage == "deleted"}
        parents: dict[str, str] = {}
        done = 0
        for page in self._pages(given.id):
            with self._keep.db.read() as conn:
                files = _files(conn, page)
            work = [(there, run, known.get(run.run_id), files.get(run.run_id, ())) for run in page]
            for run, new in zip(page, pool.map(lambda each: self._run(*each), work), strict=True):
                self._runs[run.run_id] = new
                if run.lifecycle_stage == "deleted":
                    self._doomed.add(new)
                if "mlflow.parentRunId" in run.tags:
                    parents[run.run_id] = run.tags["mlflow.parentRunId"]
            done += len(page)
            self._progress.step("runs", done, None, given.name)
        for child, parent in parents.items():
            before = known[child].tags.get("mlflow.parentRunId") if child in known else None
            if parent in self._runs and before != self._runs[parent]:
                self._wake(self._runs[child])
                self._poster.child(self._runs[child], self._runs[parent])
        self._logged(given, there, tags)

    def _pages(self, experiment: int) -> Iterator[list[Run]]:
        with self._keep.db.read() as conn:
            yield from departing.pages(conn, experiment)

    def _wake(self, there: str) -> None:
        """Restore a run there that is deleted, as something is to be logged to it."""
        if there in self._asleep:
            self._client.post("runs/restore", {"run_id": there})
            self._asleep.discard(there)

    def _delete(self) -> None:
        """Delete there what is deleted here."""
        for run in sorted(self._doomed - self._asleep):
            self._client.post("runs/delete", {"run_id": run})
        for model, (experiment, there) in self._dying.items():
            said = {"experiment_id": experiment, "key": posting.GONE + model, "value": there}
            self._client.post("experiments/set-experiment-tag", said)
            self._client.post(f"logged-models/{there}", {}, method="DELETE")
        for experiment in self._ended.values():
            self._client.post("experiments/delete", {"experiment_id": experiment})  # with all its runs

    def _run(self, experiment: str, run: Run, known: Run | None, files: Files) -> str:
        whole = fingerprint(run, files)
        if known is not None and known.tags.get(posting.WHOLE) == whole:
            self._count("runs", to=self._report.unchanged)
            return known.run_id
        if known is None:
            there, uri = self._poster.run(experiment, run)
        else:
            there, uri = known.run_id, known.artifact_uri
            self._wake(there)
        with self._keep.db.read() as conn:
            points = self._poster.fill(there, run, departing.points(conn, [run]))
        if files and not self._poster.upload(uri, files):
            self._leave(
                f"{len(files)} files of run {run.run_id}: the server does not take files, they go to {uri}"
            )
        elif files:
            self._count("files", len(files))
        self._poster.end(there, run, whole)
        self._count("runs")
        self._count("points", points)
        if len(self._sample) < SAMPLE:
            self._sample.append(run)
        return there

    def _logged(self, given: Experiment, there: str, gone: Mapping[str, str]) -> None:
        with self._keep.db.read() as conn:
            mine = [each for page in departing.model_pages(conn, given.id) for each in page]
        if not mine:
            return
        known: dict[str, LoggedModel] = {}
        for page in self._source.logged_models(int(there)):
            known |= {each.tags[posting.LOGGED]: each for each in page if posting.LOGGED in each.tags}
        for each in mine:
            before = gone.get(posting.GONE + each.model_id, "")
            if each.lifecycle_stage == "deleted" and before and each.model_id not in known:
                self._count("logged models", to=self._report.unchanged)
                self._models[each.model_id] = before
                continue
            self._models[each.model_id] = self._one(there, each, known.get(each.model_id))
            if each.lifecycle_stage == "deleted":
                self._dying[each.model_id] = there, self._models[each.model_id]
        for runs in self._pages(given.id):
            for run in runs:
                if run.models:
                    there_now = self._source.one(self._runs[run.run_id])
                    if len(there_now.models) < len(run.models):
                        self._wake(there_now.run_id)
                    self._poster.relate(there_now, run, self._models)

    def _one(self, experiment: str, given: LoggedModel, known: LoggedModel | None) -> str:
        with self._keep.db.read() as conn:
            table = logged_model_artifacts
            query = select(table.c.path, table.c.digest, table.c.size).join(
                logged_models, logged_models.c.id == table.c.model
            )
            query = query.where(logged_models.c.model_id == given.model_id).order_by(table.c.path)
            files = [(row.path, row.digest, row.size) for row in conn.execute(query)]
        whole = fingerprint(given, files)
        if known is not None and known.tags.get(posting.WHOLE) == whole:
            self._count("logged models", to=self._report.unchanged)
            return known.model_id
        if known is None:
            run = self._runs.get(given.source_run_id, "")
            there, uri = self._poster.logged_model(experiment, given, run)
        else:
            there, uri = known.model_id, known.artifact_uri
        if files and not self._poster.upload(uri, files):
            self._leave(f"{len(files)} files of logged model {given.model_id}: they go to {uri}")
        for _, run_id, *_ in given.metrics:
            self._wake(self._runs.get(run_id, ""))
        self._poster.finish_model(there, given, self._runs, whole)
        self._count("logged models")
        return there

    def _compare(self) -> None:
        """Read some of the runs back, and every point of their histories."""
        for run in self._sample:
            there = self._source.one(self._runs[run.run_id])
            latest = [(key, posting.finite(value), *rest) for key, value, *rest in run.latest]
            expected = msgspec.structs.replace(run, latest=latest)
            for name in ("name", "status", "start_ms", "end_ms", "params", "latest"):
                if getattr(expected, name) != getattr(there, name):
                    self._report.faults.append(f"run {run.run_id}: {name} differs there")
            stage = "deleted" if run.experiment in self._ended else run.lifecycle_stage
            if there.lifecycle_stage != stage:
                self._report.faults.append(f"run {run.run_id}: it is {there.lifecycle_stage} there, not {stage}")
            with self._keep.db.read() as conn:
                pieces = departing.points(conn, [run])
                mine = {(*point[1:4], posting.finite(point[4])) for piece in pieces for point in piece}
            found = {point[1:] for piece in self._source.points([there]) for point in piece}
            if mine != found:
                self._report.faults.append(f"run {run.run_id}: {len(mine ^ found)} points differ there")
            self._report.compared += 1

    def _count(self, kind: str, more: int = 1, to: dict[str, int] | None = None) -> None:
        counts = self._report.exported if to is None else to
        counts[kind] = counts.get(kind, 0) + more

    def _leave(self, line: str) -> None:
        if len(self._report.left) < 100:
            self._report.left.append(line)


def _files(conn: Any, page: Sequence[Run]) -> dict[str, list[tuple[str, str, int]]]:
    artifacts, runs = tables.run_artifacts, tables.runs
    query = select(runs.c.run_id, artifacts.c.path, artifacts.c.digest, artifacts.c.size)
    query = query.join(artifacts, artifacts.c.run == runs.c.id).where(
        runs.c.run_id.in_([run.run_id for run in page])
    )
    found: dict[str, list[tuple[str, str, int]]] = {}
    for run_id, path, digest, size in conn.execute(query.order_by(runs.c.run_id, artifacts.c.path)):
        found.setdefault(run_id, []).append((path, digest, size))
    return found
