"""``modelkeep import mlflow``: copy an MLflow store here, keeping ids and times.

A group of runs is read, its files are kept, its rows are written, and then it is marked as copied with the digest
of what it held. So a killed import goes on where it stopped, a repeated one copies what is new or changed, and
nothing is there twice: runs and logged models are known by their ids.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any, BinaryIO, TypeVar

from msgspec import Struct
from sqlalchemy import Connection

from modelkeep.core.errors import Invalid, NotFound, Refused
from modelkeep.core.ports import Progress
from modelkeep.lifecycle.keep import Keep
from modelkeep.protocols.mlflow.transfer import (
    arrive,
    checking,
    comparing,
    evaluated,
    hooked,
    naming,
    sources_here,
    traced,
)
from modelkeep.protocols.mlflow.transfer.comparing import Copied
from modelkeep.protocols.mlflow.transfer.naming import Place
from modelkeep.protocols.mlflow.transfer.records import (
    Experiment,
    LoggedModel,
    Model,
    Owned,
    Run,
    Source,
    Trace,
    fingerprint,
    id_of,
    is_over,
    some,
)
from modelkeep.registry import events
from modelkeep.registry.artifacts import segments

T = TypeVar("T", Run, LoggedModel)
READERS = 8
"""Runs whose files are read at once."""

TRACES = 100
"""Traces written at once."""

GROUP = 256 << 20
"""Bytes of files after which what was read is written and marked."""


class Options(Struct, frozen=True):
    """How to import.

    Attributes:
        prefix: Goes before the names of all experiments and models.
        rename: Experiments and models whose number or name is taken get another one.
        files: Copy files; otherwise they stay where they are.
        again: Copy also what was copied before and is unchanged.
        verify: How many runs, and how many traces, to compare at the end; None for all.
    """

    prefix: str = ""
    rename: bool = False
    files: bool = True
    again: bool = False
    verify: int | None = checking.SAMPLE


class Report(Struct):
    """What an import did.

    Attributes:
        origin: The source.
        note: What kind of source it is.
        copied: How many of each kind were copied now.
        unchanged: How many runs and logged models had been copied before.
        renamed: Name or number there, and here, of what could not keep it.
        left: What was left where it is, and why; at most a hundred lines.
        others: How many there are of kinds that are not copied.
        checked: What was compared at the end.
        seconds: How long it took.
    """

    origin: str
    note: str
    copied: dict[str, int]
    unchanged: dict[str, int]
    renamed: dict[str, str]
    left: list[str]
    others: dict[str, int]
    checked: checking.Checked
    seconds: float = 0.0


def run(keep: Keep, source: Source, options: Options, progress: Progress) -> Report:
    """Copy everything, then compare.

    Raises:
        Conflict: Numbers or names are taken; nothing was copied.
        Invalid: The place of the files is not known.
        Unavailable: The source, the database or the disk gave up; running it again goes on.
    """
    return _Import(keep, source, options, progress).run()


class _Import:
    def __init__(self, keep: Keep, source: Source, options: Options, progress: Progress) -> None:
        self._keep, self._source, self._options, self._progress = keep, source, options, progress
        self._report = Report(source.origin, source.note, {}, {}, {}, [], {}, checking.Checked(faults=[]))
        most = 1 << 62 if options.verify is None else options.verify
        self._sample, self._traced = checking.Sample(most), checking.Sample(most)
        self._copied = Copied(experiments=[], models=[])
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="modelkeep-import")
        self._broken: dict[str, list[str]] = {}
        self._done = 0
        self._total: int | None = None

    def run(self) -> Report:
        began = time.monotonic()
        with self._pool:
            models = [model for page in self._source.models() for model in page]
            experiments = self._source.experiments()
            places, names = self._places(experiments, models)
            self._total = self._source.totals().get("runs")
            for each in experiments:
                self._experiment(each, places[each.id])
            for number, model in enumerate(models, start=1):
                self._model(model, names[model.name])
                self._progress.step("models", number, len(models), model.name)
            self._evaluations()
            self._webhooks()
            self._report.others = self._source.others()
            self._check()
        self._report.seconds = round(time.monotonic() - began, 3)
        said = {"copied": self._report.copied, "faults": self._report.checked.faults[:100]}
        now = self._keep.clock.now()
        self._keep.db.write(
            lambda conn: events.append(conn, "mlflow.imported", self._source.origin, said, now=now)
        )
        return self._report

    def _check(self) -> None:
        self._copied.traces = self._traced.traces()
        found = self._report.checked = checking.check(
            self._keep,
            self._source,
            self._sample,
            self._copied,
            files=self._options.files,
            progress=self._progress,
        )
        unread = [fault for faults in self._broken.values() for fault in faults]
        found.faults = [*unread, *found.faults]

    def _places(
        self, experiments: Sequence[Experiment], models: Sequence[Model]
    ) -> tuple[dict[int, Place], dict[str, str]]:
        said: Any = {"prefix": self._options.prefix, "rename": self._options.rename}
        with self._keep.db.read() as conn:
            places = naming.experiments(conn, self._source.origin, experiments, **said)
            made = [(model.name, model.created_ms) for model in models]
            names = naming.models(conn, self._source.origin, made, **said)
        for each in experiments:
            if places[each.id].name != each.name:
                self._report.renamed[f"experiment {each.name}"] = places[each.id].name
        self._report.renamed |= {f"model {was}": now for was, now in names.items() if was != now}
        return places, names

    def _experiment(self, given: Experiment, place: Place) -> None:
        location = "" if self._options.files else sources_here.outside(given.artifact_location)

        def write(conn: Connection) -> int:
            target = arrive.experiment(conn, given, place.number, place.name, location)
            arrive.mark(conn, self._source.origin, "experiment", [(str(given.id), str(target), "")])
            return target

        target = self._keep.db.write(write)
        if target != given.id:
            self._report.renamed[f"experiment number {given.id}"] = str(target)
        self._count("experiments", 1)
        self._copied.experiments.append((given, target, place.name))
        for page in self._source.runs(given.id):
            for group, files in self._fresh("run", page):
                self._runs(group, files, target)
            self._done += len(page)
            self._progress.step("runs", self._done, self._total, given.name)
        for models in self._source.logged_models(given.id):
            for made, files in self._fresh("logged_model", models):
                self._logged(made, files, target)

        if given.lifecycle_stage == "active":
            for traces in self._source.traces(given.id):
                self._traces(traces, target)

    def _evaluations(self) -> None:
        for page in self._source.evaluation_datasets():
            for each in page:
                records = evaluated.bring(self._keep, self._source, each, again=self._options.again)
                self._count("evaluation datasets", 1, self._report.unchanged if records is None else None)
                self._count("evaluation records", records or 0)

    def _webhooks(self) -> None:
        for each in self._source.webhooks():
            new, said = hooked.bring(self._keep, self._source, each, again=self._options.again)
            if new or not said:
                self._count("webhooks", 1, None if new else self._report.unchanged)
            if said:
                self._leave(said)

    def _traces(self, page: list[Trace], target: int) -> None:
        with self._keep.db.read() as conn:
            marks = arrive.marked(conn, self._source.origin, "trace", [each.trace_id for each in page])
        prints = {each.trace_id: fingerprint(each) for each in page}
        wanted = [
            each
            for each in page
            if self._options.again
            or each.trace_id not in marks
            or marks[each.trace_id].fingerprint != prints[each.trace_id]
        ]
        self._count("traces", len(page) - len(wanted), self._report.unchanged)
        self._count("traces", len(wanted))
        now_ms = round(self._keep.clock.now() * 1000)

        def write(conn: Connection, group: list[Trace]) -> list[str]:
            left = [traced.write(conn, each, target, now_ms) for each in group]
            done = [(each.trace_id, each.trace_id, prints[each.trace_id]) for each in group]
            arrive.mark(conn, self._source.origin, "trace", done)
            return left

        for group in some(wanted, TRACES):
            for each, line in zip(group, self._keep.db.write(partial(write, group=group)), strict=True):
                if line:
                    self._leave(line)
                self._traced.see([comparing.shortened(each, whole=not line)])

    def _fresh(
        self, kind: str, page: Sequence[T]
    ) -> Iterator[tuple[list[T], dict[str, dict[str, tuple[str, int]]]]]:
        """Those that are new, changed or going on, in groups, and their files, kept."""
        with self._keep.db.read() as conn:
            marks = arrive.marked(conn, self._source.origin, kind, [id_of(each) for each in page])
        wanted = [
            each
            for each in page
            if self._options.again
            or id_of(each) not in marks
            or not is_over(each)
            or marks[id_of(each)].fingerprint != self._fingerprint(each)
        ]
        called = f"{kind.replace('_', ' ')}s"
        self._count(called, len(page) - len(wanted), self._report.unchanged)
        self._count(called, len(wanted))
        self._sample.see(wanted)
        listed = list(self._pool.map(self._listing, wanted)) if self._options.files else [[] for _ in wanted]
        group: list[T] = []
        chosen: list[list[str]] = []
        size = 0
        for each, files in zip(wanted, listed, strict=True):
            group.append(each)
            chosen.append([path for path, _ in files])
            size += sum(count or 0 for _, count in files)
            if size > GROUP:
                yield group, self._keep_files(group, chosen)
                group, chosen, size = [], [], 0
        if group:
            yield group, self._keep_files(group, chosen)

    def _fingerprint(self, record: Owned) -> str:
        return "" if id_of(record) in self._broken else fingerprint(record, self._options.files)

    def _listing(self, owner: Owned) -> list[tuple[str, int | None]]:
        try:
            found = self._source.files(owner)
        except Invalid as error:
            if error.problems[0].path == "--artifacts":  # true of all: better said before much is copied
                raise
            self._leave(str(error.problems[0].message))
            return []
        return [(path, size) for path, size in found if self._plain(owner, path)]

    def _plain(self, owner: Owned, path: str) -> bool:
        try:
            segments(path)
        except Invalid as error:
            self._leave(f"a file of {owner.artifact_uri}: {error.problems[0].message}")
            return False
        return True

    def _keep_files(
        self, group: Sequence[T], chosen: Sequence[list[str]]
    ) -> dict[str, dict[str, tuple[str, int]]]:
        # The composition root always opens the chunked store, which can keep many files with one flush.
        blobs: Any = self._keep.blobs
        given = [_Opened(self._source, owner, paths) for owner, paths in zip(group, chosen, strict=True)]
        kept = self._pool.map(lambda files: blobs.put_many(files) if len(files) else {}, given)
        found = {id_of(each): files for each, files in zip(group, kept, strict=True)}
        self._broken |= {
            id_of(owner): files.faults for owner, files in zip(group, given, strict=True) if files.faults
        }
        self._count("files", sum(map(len, found.values())))
        self._count("bytes", sum(size for files in found.values() for _, size in files.values()))
        return found

    def _runs(self, group: list[Run], files: arrive.Files, target: int) -> None:
        locations = (
            {} if self._options.files else {run.run_id: sources_here.outside(run.artifact_uri) for run in group}
        )

        now_ms = round(self._keep.clock.now() * 1000)

        def write(conn: Connection) -> dict[str, int]:
            arrive.runs(conn, group, target, files, locations, now_ms)
            return arrive.numbers(conn, group)

        ids = self._keep.db.write(write)
        for piece in self._source.points(group):
            self._keep.db.write(lambda conn, piece=piece: arrive.points(conn, piece, ids))  # type: ignore[misc]
            self._count("points", len(piece))
        marks = [(run.run_id, run.run_id, self._fingerprint(run)) for run in group]
        self._keep.db.write(lambda conn: arrive.mark(conn, self._source.origin, "run", marks))

    def _logged(self, group: list[LoggedModel], files: arrive.Files, target: int) -> None:
        locations = {}
        for each in group:
            mine = f"mlflow-artifacts:/{target}/models/{each.model_id}/artifacts"
            there = "" if self._options.files else sources_here.outside(each.artifact_uri)
            locations[each.model_id] = there or mine
        marks = [(each.model_id, each.model_id, self._fingerprint(each)) for each in group]

        def write(conn: Connection) -> None:
            arrive.models(conn, group, target, files, locations, moved=self._options.files)
            arrive.mark(conn, self._source.origin, "logged_model", marks)

        self._keep.db.write(write)

    def _model(self, given: Model, name: str) -> None:
        def write(conn: Connection) -> list[str]:
            left, mine = sources_here.versions(conn, given, name)
            arrive.registered(conn, mine.model, name, mine.sources)
            arrive.mark(conn, self._source.origin, "model", [(given.name, name, "")])
            return left

        for line in self._keep.db.write(write):
            self._leave(line)
        self._copied.models.append((given, name))
        self._count("models", 1)
        self._count("versions", len(given.versions))

    def _count(self, kind: str, more: int, to: dict[str, int] | None = None) -> None:
        counts = self._report.copied if to is None else to
        counts[kind] = counts.get(kind, 0) + more

    def _leave(self, line: str) -> None:
        if len(self._report.left) < 100 and line not in self._report.left:
            self._report.left.append(line)


class _Opened(Mapping[str, BinaryIO]):
    """An owner's files by path, each opened when it is reached; ``faults`` of those that cannot be."""

    def __init__(self, source: Source, owner: Owned, paths: Iterable[str]) -> None:
        self._source, self._owner, self._paths = source, owner, list(paths)
        self.faults: list[str] = []

    def items(self) -> Iterator[tuple[str, BinaryIO]]:  # type: ignore[override]
        for path in self._paths:
            with ExitStack() as stack:
                try:
                    stream = stack.enter_context(self._source.open(self._owner, path))
                except (NotFound, Invalid, Refused) as error:
                    self.faults.append(f"{id_of(self._owner)}: {path} cannot be read: {error.message}")
                    continue
                yield path, stream

    def __getitem__(self, path: str) -> BinaryIO:
        raise KeyError(path)

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)
