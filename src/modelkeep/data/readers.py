"""Files to Arrow tables: Parquet, CSV, JSON lines and Arrow IPC, each fault named with its file and line."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.ipc as paipc
import pyarrow.json as pajson
import pyarrow.parquet as pq

from modelkeep.core.errors import Invalid, NotFound, Problem, Unavailable
from modelkeep.data.types import canonical

PIECE_ROWS = 1_000_000
"""Rows of a Parquet file held in memory at once."""

PIECE_BYTES = 256 << 20
"""Bytes of a text file held in memory at once, unless told otherwise."""

_ICONV = "convert the file, for example: iconv -f latin1 -t utf-8"
_NUMBERS = r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$"


@dataclass(frozen=True)
class File:
    """One file of this machine.

    Attributes:
        name: For errors: as the user would write it.
        suffix: Lower case, with the dot.
        path: Where it is.
        piece: Bytes of text held in memory at once; 0 for ``PIECE_BYTES``.
    """

    name: str
    suffix: str
    path: Path
    piece: int = 0

    def open(self) -> pa.NativeFile:
        """For reading, memory-mapped. Raises ``NotFound``, ``Unavailable``."""
        try:
            return pa.memory_map(str(self.path), "r")
        except FileNotFoundError:
            raise NotFound(f"data.source: {self.name} is gone: there is no file {self.path}") from None
        except OSError as error:
            raise Unavailable(f"data.source: {self.name} cannot be read: {error}") from error

    def fault(self, message: str, line: int = 0, hint: str = "") -> Invalid:
        """The error naming this file."""
        return Invalid(
            [Problem("data.source", message, file=self.name, line=line, column=int(line > 0))], hint=hint
        )


def pieces(file: File, as_text: Collection[str] = ()) -> Iterator[pa.Table]:
    """The rows of a file, in order, as tables that fit in memory; types may widen from piece to piece.

    Args:
        file: What to read.
        as_text: Columns of a CSV file that are declared to be cast, so mixed values in them are read as strings.

    Raises:
        Invalid: Empty, of an unknown kind, not UTF-8, ragged, mixed types, without rows; with file and line.
    """
    if file.suffix not in READERS:
        raise file.fault(f"unknown kind of file {file.suffix!r}; expected one of {', '.join(READERS)}")
    with file.open() as stream:
        if stream.size() == 0:
            raise file.fault("the file is empty", hint="check what writes it, or remove it from the source")
    rows = 0
    try:
        for table in READERS[file.suffix](file, as_text):
            rows += table.num_rows
            yield canonical(table, file.fault)
    except pa.ArrowException as error:
        raise file.fault(f"cannot be read as {file.suffix[1:]}: {str(error).splitlines()[0]}") from error
    if not rows:
        raise file.fault("there is a header but no row", hint="check what writes it, or remove it from the source")


def schema(file: File) -> pa.Schema:
    """Column names and types, from the file's footer or its first piece."""
    if file.suffix in (".parquet", ".pq"):
        with file.open() as stream:
            return canonical(pq.read_schema(stream).empty_table(), file.fault).schema
    return next(pieces(file)).schema


def header(file: File) -> list[str]:
    """The names of a CSV file's columns. Raises ``Invalid``."""
    _, block = next(_text_blocks(file))
    return _header(file, block, ()).names


def _parquet(file: File, _: Collection[str]) -> Iterator[pa.Table]:
    with pq.ParquetFile(file.open(), memory_map=True, pre_buffer=False) as parquet:
        if parquet.metadata.num_rows <= PIECE_ROWS:
            yield parquet.read()
            return
        groups: list[int] = []
        rows = 0
        for index in range(parquet.metadata.num_row_groups):
            size = parquet.metadata.row_group(index).num_rows
            if groups and rows + size > PIECE_ROWS:
                yield parquet.read_row_groups(groups)
                groups, rows = [], 0
            groups.append(index)
            rows += size
        yield parquet.read_row_groups(groups)


def _arrow(file: File, _: Collection[str]) -> Iterator[pa.Table]:
    try:
        yield paipc.open_file(file.open()).read_all()
    except pa.ArrowInvalid:
        yield paipc.open_stream(file.open()).read_all()


def _jsonl(file: File, _: Collection[str]) -> Iterator[pa.Table]:
    for first_line, block in _text_blocks(file):
        try:
            yield pajson.read_json(pa.BufferReader(block), pajson.ReadOptions(block_size=_block_size(block)))
        except pa.ArrowInvalid as error:
            row = re.search(r"in row (\d+)", str(error))
            changed = re.search(r"Column\(/?(.*?)\) changed from (\w+) to (\w+)", str(error))
            line = first_line + int(row.group(1)) if row else 0
            if changed:
                name, was, now = changed.groups()
                raise file.fault(
                    f"column {name!r} is {was} before and {now} here", line, "give it one type"
                ) from error
            raise file.fault(f"not JSON lines: {str(error).splitlines()[0]}", line) from error


def _csv(file: File, as_text: Collection[str]) -> Iterator[pa.Table]:
    layout: Layout | None = None
    for first_line, block in _text_blocks(file):
        if layout is None:
            layout = _header(file, block, as_text)
        yield _csv_block(file, block, first_line, layout)


@dataclass(frozen=True)
class Layout:
    """What the header says, and which columns are read as strings whatever they hold."""

    delimiter: str
    names: list[str]
    as_text: frozenset[str]


def _header(file: File, block: pa.Buffer, as_text: Collection[str]) -> Layout:
    first = block.to_pybytes()[: 1 << 20] if block.size <= 1 << 20 else block.slice(0, 1 << 20).to_pybytes()
    line = first.split(b"\n", 1)[0].removeprefix(b"\xef\xbb\xbf")
    delimiter = "\t" if file.suffix == ".tsv" else max(",;\t|", key=lambda mark: line.count(mark.encode()))
    options = pacsv.ParseOptions(delimiter=delimiter)
    try:
        read = pacsv.read_csv(
            pa.BufferReader(line + b"\n"),
            parse_options=options,
            read_options=pacsv.ReadOptions(autogenerate_column_names=True),
            convert_options=pacsv.ConvertOptions(default_column_type=pa.string()),
        )
    except pa.ArrowInvalid as error:
        if "UTF8" in str(error):
            raise file.fault("the header is not UTF-8", 1, _ICONV) from error
        raise file.fault(f"the header cannot be read: {error}", 1) from error
    names = [str(column[0].as_py()) for column in read.columns]
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise file.fault(f"two columns are called {name!r}", 1, "rename one in the file")
        seen.add(name)
    return Layout(delimiter, names, frozenset(as_text) & seen)


def _csv_block(file: File, block: pa.Buffer, first_line: int, layout: Layout) -> pa.Table:
    bad: list[pacsv.InvalidRow] = []

    def note(row: pacsv.InvalidRow) -> str:
        bad.append(row)
        return "error"

    def read(*, threads: bool, quoted_lines: bool) -> pa.Table:
        bad.clear()
        return pacsv.read_csv(
            pa.BufferReader(block),
            read_options=pacsv.ReadOptions(
                use_threads=threads,
                column_names=layout.names,
                skip_rows=int(first_line == 1),
                block_size=_block_size(block),
            ),
            parse_options=pacsv.ParseOptions(
                delimiter=layout.delimiter, newlines_in_values=quoted_lines, invalid_row_handler=note
            ),
            convert_options=pacsv.ConvertOptions(
                strings_can_be_null=True, column_types=dict.fromkeys(layout.as_text, pa.string())
            ),
        )

    try:
        table = read(threads=True, quoted_lines=False)
    except pa.ArrowInvalid:
        try:  # a line break inside quotes looks ragged to the fast parser
            table = read(threads=False, quoted_lines=True)
        except pa.ArrowInvalid as error:
            if bad:
                row = bad[0]
                line = first_line + (row.number or 1) - 1
                fields = f"{row.actual_columns} fields, the header {row.expected_columns}"
                message = f"the row has {fields}: {row.text[:80]!r}"
                raise file.fault(message, line, "quote fields that hold the delimiter") from error
            raise file.fault(f"not CSV: {error}", _line_of_bad_byte(block, first_line)) from error
    return _checked(file, table, block, first_line, layout)


def _checked(file: File, table: pa.Table, block: pa.Buffer, first_line: int, layout: Layout) -> pa.Table:
    """Refuse what type inference would hide: bytes that are not UTF-8, and numbers among other strings."""
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_binary(column.type):
            raise file.fault(
                f"column {name!r} is not UTF-8",
                _line_of_bad_byte(block, first_line),
                _ICONV,
            )
        if not pa.types.is_string(column.type) or name in layout.as_text or column.null_count == len(column):
            continue
        # Only a majority of numbers is refused, so a random thousand without one settles it.
        some = column.take(np.random.default_rng(0).integers(0, len(column), 1000))
        if not pc.any(pc.match_substring_regex(some, _NUMBERS)).as_py() and len(column) > 2000:
            continue
        number = pc.fill_null(pc.match_substring_regex(column, _NUMBERS), True)
        found = pc.sum(pc.and_(number, column.is_valid())).as_py() or 0
        others = len(column) - column.null_count - found
        if 0 < others < found:
            row = pc.index(number, False).as_py()
            raise file.fault(
                f"column {name!r} mixes numbers and text: {column[row].as_py()!r} here, {found} numbers elsewhere",
                first_line + row + int(first_line == 1),
                f"correct the file, or say what it is under data.clean: '- cast: {{columns: {{{name}: string}}}}'",
            )
    return table


def _text_blocks(file: File) -> Iterator[tuple[int, pa.Buffer]]:
    """The file cut at ends of lines, each piece with the 1-based number of its first line."""
    with file.open() as stream:
        start = stream.read(4)
        if start[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in start:
            raise file.fault(
                "the file is not UTF-8 (it looks like UTF-16)", 1, "convert it: iconv -f utf-16 -t utf-8"
            )
        size, at, line = stream.size(), 0, 1
        while at < size:
            stream.seek(at)
            block = stream.read_buffer(min(file.piece or PIECE_BYTES, size - at))
            if at + block.size < size:
                last = block.to_pybytes().rfind(b"\n")
                block = block.slice(0, last + 1) if last >= 0 else block
            yield line, block
            at += block.size
            if at < size:
                line += block.to_pybytes().count(b"\n")


def _line_of_bad_byte(block: pa.Buffer, first_line: int) -> int:
    data: bytes = block.to_pybytes()
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return first_line + data.count(b"\n", 0, error.start)
    return 0


def _block_size(block: pa.Buffer) -> int:
    """Large enough that no row, however wide, spans three blocks, which the parsers refuse."""
    longest = max(
        (len(line) for line in block.slice(0, min(block.size, 1 << 22)).to_pybytes().split(b"\n")), default=0
    )
    return max(1 << 20, 4 * longest)


READERS: dict[str, Callable[[File, Collection[str]], Iterator[Any]]] = {
    ".parquet": _parquet,
    ".pq": _parquet,
    ".csv": _csv,
    ".tsv": _csv,
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _jsonl,
    ".arrow": _arrow,
    ".feather": _arrow,
    ".ipc": _arrow,
}
