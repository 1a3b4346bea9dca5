"""Making one version: each stage's result is computed once, or recalled because it was computed before.

A result is remembered only after everything it refers to is durable. So a kill at any moment loses at most the
stage that was running, and running again ends in the same state.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec
import pyarrow as pa
from msgspec import Struct
from sqlalchemy import Connection

from modelkeep.core import memory
from modelkeep.core.errors import ModelkeepError, Refused
from modelkeep.data import pieces, sharing
from modelkeep.data import prepare as data_of
from modelkeep.data.prepare import prepare, prepare_parts
from modelkeep.data.snapshots import Snapshot, Snapshots
from modelkeep.data.streams import Lazy
from modelkeep.formats import skops_io
from modelkeep.formats.signature import Field, Task
from modelkeep.lifecycle import overparts
from modelkeep.lifecycle.keep import Keep
from modelkeep.lifecycle.progress import Teller
from modelkeep.lifecycle.runlog import RegistryLog
from modelkeep.lifecycle.stages import Keys
from modelkeep.lifecycle.tables import BlobParts, TablePart, keep_parts, open_table, parts_of, sampled
from modelkeep.registry import runs
from modelkeep.spec.declaration import Declaration
from modelkeep.store import stages as cache
from modelkeep.store import studies
from modelkeep.train.fit import Fitted, fit

S = TypeVar("S", bound=Struct)

SAMPLE_ROWS = 1_000_000
"""Rows of a sample of more than fit into memory."""


class Prepared(Struct, frozen=True, kw_only=True):
    """What the prepare stage remembers.

    Attributes:
        train: Digest of the training rows, or of the listing of their parts.
        test: The same of the frozen rows for evaluation.
        quarantine: The same of the rows set aside with the reason; empty when none were.
        quarantined: How many.
        inputs: Input columns, in order.
        transformer: Digest of the fitted feature steps.
        reports: What each cleaning step did.
        rows: Training and test rows.
    """

    train: str
    test: str
    quarantine: str
    quarantined: int
    inputs: tuple[str, ...]
    transformer: str
    reports: tuple[dict[str, Any], ...]
    rows: tuple[int, int]


class Trained(Struct, frozen=True, kw_only=True):
    """What the train stage remembers.

    Attributes:
        pipeline: Digest of the fitted pipeline.
        run_id: The run that trained it.
        algorithm: Short name or import path; what ``auto`` chose.
        params: As fitted.
        task: ``classification``, ``regression`` or ``anomaly``.
        classes: Sorted labels.
        metric: The metric looked at first.
        tried: What tuning or ``auto`` tried.
        notes: Warnings.
    """

    pipeline: str
    run_id: str
    algorithm: str
    params: dict[str, Any]
    task: Task
    classes: tuple[bool | int | str, ...] | None
    metric: str
    tried: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()


class Making:
    """One version on its way.

    Args:
        keep: The home.
        declaration: What is asked for.
        snapshot: The rows.
        keys: The stages' keys.
        teller: Told what runs and what is reused.
        because: Why, for the runs' tags.
    """

    def __init__(
        self, keep: Keep, declaration: Declaration, snapshot: Snapshot, keys: Keys, teller: Teller, because: str
    ) -> None:
        self.keep = keep
        self.declaration = declaration
        self.snapshot = snapshot
        self.keys = keys
        self.teller = teller
        self.because = because
        self._tables: dict[str, pa.Table] = {}
        self._transformer: Any = None
        self._pipeline: Any = None

    @cached_property
    def prepared(self) -> Prepared:
        """The prepare stage."""
        return self.stage("prepare", self.keys.prepare, Prepared, self._prepare)

    @cached_property
    def trained(self) -> Trained:
        """The train stage."""
        prepared = self.prepared
        return self.stage("train", self.keys.train, Trained, lambda: self._train(prepared))

    @property
    def train_table(self) -> pa.Table:
        """The training rows. Raises ``Refused`` when they do not fit into memory."""
        return self._table("train", self.prepared.train)

    @property
    def test_table(self) -> pa.Table:
        """The frozen rows for evaluation, or an even sample of more than fit into memory: the same for every
        version made from this preparation."""
        if "test" not in self._tables:
            self._tables["test"] = sampled(self.keep.blobs, self.test_parts, self._sample_rows(self.test_parts))
        return self._tables["test"]

    @property
    def watched_table(self) -> pa.Table:
        """The training rows, or an even sample of more than fit into memory."""
        if "train" in self._tables:
            return self._tables["train"]
        return sampled(self.keep.blobs, self.train_parts, self._sample_rows(self.train_parts))

    @cached_property
    def train_parts(self) -> list[TablePart]:
        """The training rows in parts."""
        return parts_of(self.keep.blobs, self.prepared.train)

    @cached_property
    def test_parts(self) -> list[TablePart]:
        """The frozen rows in parts."""
        return parts_of(self.keep.blobs, self.prepared.test)

    @property
    def sampled(self) -> bool:
        """Whether the rows are more than are held at once, so that some questions are asked of a sample."""
        return any(
            self._sample_rows(parts) < sum(part.rows for part in parts)
            for parts in (self.train_parts, self.test_parts)
        )

    def whole_metrics(self, names: Sequence[str]) -> tuple[dict[str, float], int]:
        """Metrics of all frozen rows, of those that can be summed; and how many rows there are."""
        trained = self.trained
        found = overparts.metrics(
            self.keep.blobs,
            self.test_parts,
            self.keep.engine(self.declaration),
            pipeline=self.pipeline,
            inputs=self.prepared.inputs,
            target=self.declaration.data.target,
            task=trained.task,
            classes=trained.classes,
            names=names,
        )
        return found, self.prepared.rows[1]

    def whole_fields(self, strict: Sequence[str]) -> tuple[Field, ...]:
        """The signature's inputs, by all training rows."""
        engine = self.keep.engine(self.declaration)
        return overparts.fields(self.keep.blobs, self.train_parts, engine, self.prepared.inputs, strict)

    @staticmethod
    def _sample_rows(parts: list[TablePart]) -> int:
        """All rows when they fit into a quarter of the budget; else at most a million, and as many as fit."""
        each = sum(part.bytes for part in parts) / max(sum(part.rows for part in parts), 1)
        room = int(memory.budget() / 4 / max(each, 1.0))
        rows = sum(part.rows for part in parts)
        return rows if rows <= room else max(min(room, SAMPLE_ROWS), 1000)

    @property
    def pipeline(self) -> Any:
        """The fitted scikit-learn pipeline."""
        if self._pipeline is None:
            self._pipeline = self._revived(self.trained.pipeline)
        return self._pipeline

    @property
    def fit_folder(self) -> Path:
        """Where a killed fit finds again what it had done."""
        return self.keep.home / "tuning" / self.keys.train

    def stage(self, name: str, key: str, kind: type[S], work: Callable[[], S]) -> S:
        """A stage's result: recalled, or computed and then remembered."""
        with self.keep.db.read() as conn:
            known = cache.recall(conn, key)
        if known is not None:
            self.teller.reuse(name, "done already, from exactly this")
            return msgspec.convert(known, kind, strict=False)
        with self.teller.stage(name, self.because):
            result = work()
            row = msgspec.to_builtins(result)
            now = self.keep.clock.now()

            def end(conn: Connection) -> None:
                cache.remember(conn, key, name, self.declaration.model, row, now)
                studies.forget(conn, key)

            self.keep.db.write(end)
        return result

    def _prepare(self) -> Prepared:
        keep, snapshot = self.keep, self.snapshot
        snapshots = Snapshots(keep.db, keep.blobs)
        checks = snapshots.checks(snapshot, self.declaration.data)
        each = pieces.row_bytes(keep.blobs, snapshot)
        keeper = BlobParts(keep.blobs)
        progress, now = self.teller.progress, keep.clock.now()
        if self.declaration.engine == "local" and pieces.fits(snapshot, each):
            table = snapshots.scan(snapshot)
            done = prepare(self.declaration, table, checks, progress, base=keep.base, now=now)
            self._tables = {"train": done.train, "test": done.test}
            kept = ([keeper.keep(done.train)], [keeper.keep(done.test)])
            aside = [keeper.keep(done.quarantine)] if done.quarantine.num_rows else []
            rows = (done.train.num_rows, done.test.num_rows, done.quarantine.num_rows)
            return self._prepared(done, kept, aside, rows)
        engine = keep.engine(self.declaration)
        sharing.pinned_seen(engine, snapshot.parts)
        stream = Lazy.of(pieces.cut(keep.blobs, snapshot, each, engine.slots()), engine)
        made = prepare_parts(
            self.declaration, stream, snapshot.rows, keeper, checks, progress, base=keep.base, now=now
        )
        return self._prepared(made, (made.train, made.test), made.quarantine, made.rows)

    def _prepared(
        self,
        done: data_of.Prepared | data_of.Parts,
        kept: tuple[list[TablePart], list[TablePart]],
        aside: list[TablePart],
        rows: tuple[int, int, int],
    ) -> Prepared:
        blobs = self.keep.blobs
        self._transformer = done.features.to_sklearn()
        return Prepared(
            train=keep_parts(blobs, kept[0]),
            test=keep_parts(blobs, kept[1]),
            quarantine=keep_parts(blobs, aside) if aside else "",
            quarantined=rows[2],
            inputs=tuple(done.inputs),
            transformer=blobs.put(skops_io.dumps(self._transformer)),
            reports=tuple(msgspec.to_builtins(report) for report in done.reports),
            rows=rows[:2],
        )

    def _train(self, prepared: Prepared) -> Trained:
        keep = self.keep
        log = self._run()
        if self._transformer is None:
            self._transformer = self._revived(prepared.transformer)
        try:
            fitted = self._fitted(prepared, log)
        except BaseException:
            with contextlib.suppress(ModelkeepError):  # on a full disk the next apply closes it
                log.end("FAILED")
            raise
        self._pipeline = fitted.pipeline
        log.flush()
        return _remembered(fitted, log.run_id, keep.blobs.put(skops_io.dumps(fitted.pipeline)))

    def _fitted(self, prepared: Prepared, log: RegistryLog) -> Fitted:
        declaration, keep = self.declaration, self.keep
        if len(self.train_parts) > 1 and overparts.learns(declaration):
            return overparts.fit(
                keep.blobs,
                self.train_parts,
                keep.engine(declaration),
                declaration,
                self._transformer,
                prepared.inputs,
                base=keep.base,
                log=log,
                progress=self.teller.progress,
                state=self.fit_folder,
            )
        return fit(
            declaration.train,
            self.train_table,
            declaration.data.target,
            prepared.inputs,
            self._transformer,
            base=keep.base,
            log=log,
            progress=self.teller.progress,
            state=self.fit_folder,
            study=studies.Study(keep.db, self.keys.train, keep.clock),
            engine=None if declaration.engine == "local" else lambda: keep.engine(declaration),
        )

    def _run(self) -> RegistryLog:
        """The run of this training. One that a kill left open under the same key is closed first."""
        keep, model, key = self.keep, self.declaration.model, self.keys.train
        now = keep.clock.now()
        tags = {
            "modelkeep.key": key,
            "modelkeep.snapshot": self.snapshot.digest,
            "modelkeep.because": self.because,
        }

        def begin(conn: Connection) -> int:
            experiment = runs.experiment(conn, model, now)
            for run in runs.recent(conn, experiment):
                if run.status == "RUNNING" and ("modelkeep.key" in run.tags or run.parent):
                    runs.end(conn, run.run_id, "KILLED", now)
            return experiment

        experiment = keep.db.write(begin)
        return RegistryLog(keep.db, keep.clock, experiment, f"{model}-{key[:8]}", tags=tags)

    def _table(self, name: str, digest: str) -> pa.Table:
        if name not in self._tables:
            size = sum(part.bytes for part in self.train_parts)
            if size * pieces.COPIES > memory.budget() and len(self.train_parts) > 1:
                raise Refused(
                    f"{self.declaration.train.algorithm} needs all {self.prepared.rows[0]:,} training rows in "
                    f"memory: {memory.shown(size)}, {pieces.COPIES} times over; the budget is "
                    f"{memory.shown(memory.budget())}",
                    hint="train.algorithm: linear_out_of_core learns part by part; or raise MODELKEEP_MEMORY, or "
                    "keep fewer rows with a filter under data.clean",
                )
            self._tables[name] = open_table(self.keep.blobs, digest)
        return self._tables[name]

    def _revived(self, digest: str) -> Any:
        with self.keep.blobs.open(digest) as stream:
            data = stream.read()
        # The bytes are this home's own, by digest: what they name was run here when they were written.
        return skops_io.loads(data, trusted=(*skops_io.untrusted(data), *self.declaration.trust))


def _remembered(fitted: Fitted, run_id: str, pipeline: str) -> Trained:
    return Trained(
        pipeline=pipeline,
        run_id=run_id,
        algorithm=fitted.algorithm,
        params=plain(fitted.params),
        task=cast(Task, fitted.task),
        classes=fitted.classes,
        metric=fitted.metric,
        tried=tuple(msgspec.to_builtins(attempt) for attempt in fitted.tried),
        notes=fitted.notes,
    )


def plain(value: Any) -> Any:
    """Parameters as JSON types: what has no such type becomes its text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
