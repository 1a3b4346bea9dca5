"""Batch scoring over partitions: restartable, in bounded memory, on any engine.

Every file is a part. A part is finished once its output and then its record under ``_parts/`` are in place; the
record holds a digest of all that the output depends on: the version's package, the part's fingerprint, the format.
So whoever scores again into the same place goes on where a killed run stopped, and scores again only what changed.
``_modelkeep.json`` appears last.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from modelkeep.core.digests import of_value
from modelkeep.core.errors import Invalid
from modelkeep.core.ports import Engine, Progress
from modelkeep.data import sharing
from modelkeep.data.files import WILD
from modelkeep.data.places import Place, partitions, place
from modelkeep.data.writers import WRITERS
from modelkeep.lifecycle.scoring_part import Done, Job, Task, record_of, score_part

SUMMARY = "_modelkeep.json"
_WRITTEN_AS = {".pq": ".parquet", ".tsv": ".csv", ".json": ".jsonl", ".ipc": ".arrow"}


class Scored(Struct, frozen=True):
    """What came of it.

    Attributes:
        parts: Of the input.
        reused: Of them, finished before.
        rows: Predicted, in all parts.
        skipped: Rows put aside under ``_quarantine/``, in all parts.
    """

    version: str
    package: str
    parts: int
    reused: int
    rows: int
    skipped: int


class Scoring:
    """A table in parts, to be scored with one version.

    Args:
        source: A file, folder, glob or object store's URL.
        out: A folder or object store's URL.
        base: Where relative paths start.
        version: ``flights@7``.
        package: Its digest.
        trusted: What may run on loading it.
        suffix: Format of the output, such as ``.parquet``; empty for each part's own.
        on_error: Whether a row that the signature refuses ends the run or is put aside.

    Raises:
        NotFound: There are no parts.
        Invalid: The output is where the input is, or two parts would have the same output.
    """

    def __init__(
        self,
        source: str,
        out: str,
        base: Path,
        *,
        version: str,
        package: str,
        trusted: tuple[str, ...] = (),
        suffix: str = "",
        on_error: Literal["fail", "skip"] = "fail",
    ) -> None:
        if suffix and suffix not in WRITERS:
            raise Invalid(f"{suffix} is no format; expected {', '.join(WRITERS)}", path="format")
        where, self._marks = partitions(source, base)
        target = place(out, base)
        _apart(source, base, where, target)
        self.job = Job(version, package, trusted, 1, where, target, suffix, on_error)
        self._outputs = {name: self._output(name) for name in self._marks}
        by_output: dict[str, str] = {}
        for name, made in self._outputs.items():
            if by_output.setdefault(made, name) != name:
                raise Invalid(f"{by_output[made]!r} and {name!r} would both be written to {made!r}", path="--in")

    @property
    def parts(self) -> int:
        """How many parts there are."""
        return len(self._marks)

    def _output(self, name: str) -> str:
        found = Path(name)
        suffix = self.job.suffix or _WRITTEN_AS.get(found.suffix.lower(), found.suffix.lower())
        return found.with_suffix(suffix).as_posix()

    def _key(self, name: str) -> str:
        job = self.job
        return of_value([job.package, str(job.source), name, self._marks[name], self._outputs[name], job.on_error])

    def run(self, files: Mapping[str, bytes], engine: Engine, progress: Progress, threads: int = 1) -> Scored:
        """Score the parts that are not finished.

        Args:
            files: The package's.
            engine: Where to work.
            progress: Told parts and rows.
            threads: Of one prediction.

        Raises:
            Invalid: A part cannot be read, or holds rows that the signature refuses.
            Unavailable: A place does not answer; another try goes on from here.
            Refused: The input or output is a folder of this machine that a worker of the engine does not see.
        """
        job = msgspec.structs.replace(self.job, threads=threads)
        done = self._finished()
        reused = len(done)
        todo = self._todo(done, engine)
        rows = sum(one.rows for one in done.values())
        progress.step("score", reused, self.parts, f"{rows:,} rows")
        with self._seen(todo, engine) as mark:
            if todo:
                job.out.remove(SUMMARY)
            job = msgspec.structs.replace(job, mark=mark)
            work: Callable[[Task], Done] = partial(score_part, job, engine.put(dict(files)))
            for one in engine.map(work, todo):
                done[one.name] = one
                rows += one.rows
                progress.step("score", len(done), self.parts, f"{rows:,} rows")
        skipped = sum(one.skipped for one in done.values())
        scored = Scored(job.version, job.package, self.parts, reused, rows, skipped)
        with tempfile.TemporaryDirectory() as scratch:
            job.out.write(SUMMARY, msgspec.json.format(msgspec.json.encode(scored)), Path(scratch))
        return scored

    def _todo(self, done: Mapping[str, Done], engine: Engine) -> list[Task]:
        source = self.job.source
        told = source.local and sharing.elsewhere(engine)
        return [
            Task(
                name,
                self._outputs[name],
                self._key(name),
                sharing.Known.of("--in", source.path(name)) if told else None,
            )
            for name in self._marks
            if name not in done
        ]

    @contextmanager
    def _seen(self, todo: list[Task], engine: Engine) -> Iterator[sharing.Known | None]:
        """Ask the workers whether they see what is read and where is written, before they work."""
        if todo and todo[0].known is not None:
            sharing.ask(engine, todo[0].known)
        if not todo or not self.job.out.local:
            yield None
            return
        with sharing.marked(engine, "--out", Path(self.job.out.root)) as mark:
            yield mark

    def _finished(self) -> dict[str, Done]:
        """The parts whose records say that nothing they depend on has changed."""
        found = {}
        for name in self._marks:
            record = self.job.out.read(record_of(name))
            try:
                done = msgspec.json.decode(record, type=Done) if record else None
            except msgspec.MsgspecError:
                done = None
            if done is not None and done.key == self._key(name):
                found[name] = done
        return found


def _apart(address: str, base: Path, source: Place, out: Place) -> None:
    """Refuse to write where it is read: the next run would take it for input, or it would be overwritten."""
    if out.local and Path(out.root).is_file():
        raise Invalid(
            f"{out.root} is a file", path="--out", hint="name a folder: every part has a file of its own"
        )
    if source.local != out.local:
        return
    wild = WILD.search(address) is not None
    searched = place(address, base) == source or "**" in address or (wild and not source.local)
    if out.root == source.root or (searched and f"{out.root}/".startswith(f"{source.root}/")):
        raise Invalid(
            f"{out.root} lies inside {source.root}, so that answers would be read as rows",
            path="--out",
            hint="name a folder beside it",
        )
