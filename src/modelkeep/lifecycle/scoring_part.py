"""Batch scoring of one part: read, check, predict and write in bounded memory. Runs wherever an engine works."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from msgspec import Struct

from modelkeep.core.errors import Invalid, Problem
from modelkeep.core.ports import Model
from modelkeep.core.scratch import temporary
from modelkeep.data import readers
from modelkeep.data.places import Place
from modelkeep.data.sharing import Known
from modelkeep.data.types import canonical
from modelkeep.data.writers import write_tables
from modelkeep.formats import runtimes
from modelkeep.formats.batch import Batch
from modelkeep.formats.signature import Signature
from modelkeep.formats.validate import Checker
from modelkeep.lifecycle.given import as_array, check_given

CHUNK = 65_536
"""Rows predicted at once."""

PIECE = 32 << 20
"""Bytes of CSV read at once."""

_SEPARATED = (".csv", ".tsv")
_SEARCHED = 1_000  # rows among which bad ones are looked for at once
_ROW = re.compile(r"inputs\..*\[(\d+)\]", re.DOTALL)
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$"


class Job(Struct, frozen=True):
    """What is the same for all parts.

    Attributes:
        version: ``flights@7``.
        package: Its digest.
        trusted: What may run on loading it.
        threads: Of one prediction.
        source, out: Where parts are read and written.
        suffix: Format of the output; empty for each part's own.
        on_error: What to do with rows that the signature refuses.
        mark: A file in ``out``, when that is a folder of the machine that asks and workers may be on others.
    """

    version: str
    package: str
    trusted: tuple[str, ...]
    threads: int
    source: Place
    out: Place
    suffix: str = ""
    on_error: Literal["fail", "skip"] = "fail"
    mark: Known | None = None


class Task(NamedTuple):
    """A part to be scored.

    Attributes:
        out: Name of the output.
        key: Digest of everything the output depends on.
        known: The part's file, when it is one of the machine that asks and workers may be on others.
    """

    name: str
    out: str
    key: str
    known: Known | None = None


class Done(Struct, frozen=True):
    """A finished part.

    Attributes:
        key: Digest of everything its output depends on.
        rows: Predicted.
        skipped: Rows put aside.
    """

    name: str
    out: str
    key: str
    rows: int
    skipped: int


def score_part(job: Job, files: Callable[[], Mapping[str, bytes]], task: Task) -> Done:
    """Score one part. Its output appears whole or not at all; after it, the record that it is finished.

    Args:
        files: Gives the package's files.

    Raises:
        Refused: This machine does not see what the one that asks sees at its paths.
        Invalid: The part cannot be read or holds rows that the signature refuses, with its name.
        Unavailable: It cannot be fetched or written.
    """
    name, out, key, known = task
    for one in (job.mark, known):
        if one is not None:
            one.must_be_seen()
    with temporary("score") as scratch:
        path = job.source.fetch(name, scratch)
        rejects = scratch / "aside"
        work = _Part(job, name, path, rejects, *_model(job.package, job.trusted, job.threads, files))
        if job.out.local:
            write_tables(work.tables(), job.out.room(out))
        else:
            target = scratch / f"out{Path(out).suffix}"
            write_tables(work.tables(), target)
            job.out.keep(target, out)
        aside = f"_quarantine/{name}.jsonl"
        if work.skipped:
            job.out.keep(rejects, aside)
        else:
            job.out.remove(aside)  # what an earlier version of the part or the model had put there
        done = Done(name, out, key, work.rows, work.skipped)
        job.out.write(record_of(name), msgspec.json.encode(done), scratch)
    return done


def record_of(name: str) -> str:
    """The name under which it is written that a part is finished."""
    return f"_parts/{name}.json"


@lru_cache(maxsize=1)
def _loaded(package: str, trusted: tuple[str, ...], threads: int) -> list[Any]:
    """Room for a model, once in each process."""
    return []


def _model(
    package: str, trusted: tuple[str, ...], threads: int, files: Callable[[], Mapping[str, bytes]]
) -> tuple[Model, Signature]:
    room = _loaded(package, trusted, threads)
    if not room:
        found = files()
        room += [runtimes.load(found, trusted=trusted, threads=threads), runtimes.signature(found)]
    return room[0], room[1]


class _Part:
    """A part being scored.

    Attributes:
        rows: Predicted so far.
        skipped: Rows put aside so far, as JSON lines: their values, ``row`` from 0 and ``reason``.
    """

    def __init__(self, job: Job, name: str, path: Path, rejects: Path, model: Model, signature: Signature) -> None:
        self.rows = self.skipped = 0
        self._rejects = rejects
        self._job = job
        self._name = name
        suffix = path.suffix.lower()
        # JSON types are guessed anew in each piece, those of CSV are known: so its pieces may be small
        piece = PIECE if suffix in _SEPARATED else 0
        self._file = readers.File(f"{job.source}/{name}", suffix, path=path, piece=piece)
        self._model = model
        self._signature = signature
        self._checker = Checker(signature)
        self._seen = 0
        self._numeric = [field.name for field in signature.inputs if field.type in ("float64", "int64", "bool")]

    def tables(self) -> Iterator[pa.Table]:
        """The part's columns with the answers beside them, chunk by chunk."""
        for piece in self._pieces():
            for start in range(0, max(piece.num_rows, 1), CHUNK):
                chunk = piece.slice(start, CHUNK)
                kept, batch = self._checked(chunk)
                self._seen += chunk.num_rows
                self.rows += kept.num_rows
                made = answers(self._model, self._signature, batch)
                yield _settled(beside(self._typed(kept), made))

    def _typed(self, kept: pa.Table) -> pa.Table:
        """Numeric inputs as floats, also when a piece happens to hold whole numbers only: the next may not."""
        for field in self._signature.inputs:
            if field.type == "float64" and field.name in kept.column_names:
                place = kept.column_names.index(field.name)
                if pa.types.is_integer(kept.schema.field(place).type) or pa.types.is_null(
                    kept.schema.field(place).type
                ):
                    kept = kept.set_column(
                        place, field.name, pc.cast(kept.column(place), pa.float64(), safe=False)
                    )
        return kept

    def _pieces(self) -> Iterator[pa.Table]:
        """The rows, in flat memory. Texts are read as texts, whatever they look like."""
        file = self._file
        if file.suffix in (".parquet", ".pq"):
            try:
                with pq.ParquetFile(file.open(), memory_map=True, pre_buffer=False) as parquet:
                    if parquet.metadata.num_rows == 0:
                        yield canonical(parquet.schema_arrow.empty_table(), file.fault)
                    for batch in parquet.iter_batches(CHUNK):
                        yield canonical(pa.Table.from_batches([batch]), file.fault)
            except pa.ArrowException as error:
                raise file.fault(f"cannot be read as Parquet: {str(error).splitlines()[0]}") from error
        elif file.path.stat().st_size:  # an engine's empty part has not even a header
            yield from readers.pieces(file, self._texts())

    def _texts(self) -> set[str]:
        """The columns of a CSV file that are read as they stand.

        What the model does not take must come out as it went in. What it takes as numbers is parsed while reading;
        unless single rows may be put aside, where one value that is no number must not end the whole file.
        """
        if self._file.suffix not in _SEPARATED:
            return set()
        parsed = {field.name for field in self._signature.inputs if field.type != "string"}
        if self._job.on_error == "skip":
            parsed -= set(self._numeric)
        return set(readers.header(self._file)) - parsed

    def _checked(self, chunk: pa.Table) -> tuple[pa.Table, Batch]:
        """The rows that the signature takes, and they as a batch."""
        reasons: dict[int, str] = {}
        read = chunk
        if self._job.on_error == "skip":
            read = self._as_numbers(chunk, reasons)
        columns = self._columns(read)
        try:
            if not reasons:
                return read, self._checker.check(columns, read.num_rows)
        except Invalid as error:
            if self._job.on_error == "fail" or not all(_ROW.fullmatch(p.path) for p in error.problems):
                raise self._named(error) from None
        for start in range(0, read.num_rows, _SEARCHED):
            self._search(columns, start, min(start + _SEARCHED, read.num_rows), reasons)
        bad = np.zeros(read.num_rows, np.bool_)
        bad[list(reasons)] = True
        where = sorted(reasons)
        lines = [
            {"row": self._seen + row, "reason": reasons[row], **values}
            for row, values in zip(where, chunk.take(where).to_pylist(), strict=True)
        ]
        with self._rejects.open("ab") as file:
            file.write(msgspec.json.Encoder().encode_lines(lines))
        self.skipped += len(lines)
        good = np.flatnonzero(~bad)
        batch = self._checker.check({name: values[good] for name, values in columns.items()}, len(good))
        return read.take(good), batch

    def _search(self, columns: Mapping[str, Any], start: int, stop: int, reasons: dict[int, str]) -> None:
        """Note the rows in [start, stop) that the signature refuses, each with why."""
        left = np.array([row for row in range(start, stop) if row not in reasons], np.intp)
        while len(left):
            try:
                self._checker.check({name: values[left] for name, values in columns.items()}, len(left))
                return
            except Invalid as error:
                found: dict[int, list[str]] = {}
                for problem in error.problems:
                    at = _ROW.fullmatch(problem.path)
                    if at is None:
                        raise self._named(error) from None
                    said = f"{problem.path.rpartition('[')[0]}: {problem.message}"
                    found.setdefault(int(left[int(at[1])]), []).append(said)
                reasons |= {row: "; ".join(said) for row, said in found.items()}
                left = np.array([row for row in left.tolist() if row not in reasons], np.intp)

    def _as_numbers(self, chunk: pa.Table, reasons: dict[int, str]) -> pa.Table:
        """Numeric inputs that were read as texts, as numbers; rows in which one is none get a reason."""
        for name in self._numeric:
            if name not in chunk.column_names or not pa.types.is_string(chunk.schema.field(name).type):
                continue
            column = chunk.column(name)
            values, wrong = _parsed(column)
            for row in wrong:
                reasons.setdefault(row, f"inputs.{name}: found {column[row].as_py()[:60]!r}, expected a number")
            chunk = chunk.set_column(chunk.column_names.index(name), name, values)
        return chunk

    def _columns(self, chunk: pa.Table) -> dict[str, Any]:
        check_given(self._signature, chunk.column_names)
        names = [field.name for field in self._signature.inputs if field.name in chunk.column_names]
        return {name: as_array(chunk.column(name)) for name in names}

    def _named(self, error: Invalid) -> Invalid:
        """The error with the part's name, and rows counted from the part's beginning."""
        problems = []
        for problem in error.problems:
            at = _ROW.fullmatch(problem.path)
            path = problem.path
            if at is not None:
                path = f"{path.rpartition('[')[0]}[{self._seen + int(at[1])}]"
            problems.append(Problem(path, problem.message, file=self._file.name))
        hint = "correct the rows, or put them aside with --on-error skip"
        return Invalid(problems, hint=hint)


def _parsed(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, list[int]]:
    """Texts as float64, and the places of those that are no number, which become gaps."""
    texts = pc.utf8_trim_whitespace(column)
    try:
        return pc.cast(texts, pa.float64()), []
    except pa.ArrowInvalid:
        texts = pc.utf8_lower(texts)
        for word, number in (("true", "1"), ("false", "0")):
            texts = pc.if_else(pc.equal(texts, word), number, texts)
        good = pc.fill_null(pc.match_substring_regex(texts, _NUMBER), True)
        numbers = pc.cast(pc.if_else(good, texts, None), pa.float64())
        return numbers, pc.indices_nonzero(pc.invert(good)).to_pylist()


def answers(model: Model, signature: Signature, batch: Batch) -> dict[str, np.ndarray[Any, Any]]:
    """Outputs by name; a probability for each class by its own name."""
    found: dict[str, Any] = {}
    if batch.rows == 0:
        return _nothing(signature)
    for name, values in model.predict(batch).items():
        if values.ndim == 2 and len(signature.classes) == values.shape[1]:
            found |= {f"{name}_{label}": values[:, place] for place, label in enumerate(signature.classes)}
        else:
            found[name] = values if values.ndim == 1 else list(values) if values.ndim == 2 else values.tolist()
    return found


_TYPES = {"float64": np.float64, "int64": np.int64, "bool": np.bool_, "string": object, "timestamp": object}


def _nothing(signature: Signature) -> dict[str, Any]:
    """The answers to no rows; runtimes need not take none."""
    found: dict[str, Any] = {}
    for field in signature.outputs:
        empty: Any = np.empty(0, _TYPES[field.type])
        if field.shape and len(signature.classes) == field.shape[0]:
            found |= {f"{field.name}_{label}": empty for label in signature.classes}
        else:
            found[field.name] = empty
    return found


def beside(given: pa.Table, found: Mapping[str, Any]) -> pa.Table:
    """The rows with their answers; an answer called like a column of theirs is ``predicted_...``."""
    joined = given
    for name, values in found.items():
        text = isinstance(values, np.ndarray) and values.dtype.kind == "O" and not len(values)
        made = pa.array(values, pa.string() if text else None)
        joined = joined.append_column(f"predicted_{name}" if name in given.column_names else name, made)
    return joined


def _settled(table: pa.Table) -> pa.Table:
    """Columns that hold nothing yet count as texts, so that later ones may hold some."""
    places: Sequence[int] = [place for place, field in enumerate(table.schema) if pa.types.is_null(field.type)]
    for place in places:
        table = table.set_column(place, table.column_names[place], table.column(place).cast(pa.string()))
    return table
