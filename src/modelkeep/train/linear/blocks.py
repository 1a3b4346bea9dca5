"""The rows to learn from: parts that give blocks, wherever they are read.

A part is a callable without arguments that can be pickled and gives an iterator of blocks ``(X, y)``: X dense or
CSR of shape (n, features), y (n,) float64 as ``losses.encoded`` makes it. It may be called again and again and
gives the same rows each time. So a table may be larger than memory, and any engine may read its parts.
"""

from __future__ import annotations

import itertools
import math
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from scipy import sparse

from modelkeep.core.errors import Invalid
from modelkeep.train.linear.losses import Array, encoded

Block = tuple[Any, Array]
Part = Callable[[], Iterator[Block]]
T = TypeVar("T")

ROWS = 65_536
"""Rows of a block where we cut them ourselves: a few dozen to a few hundred milliseconds of learning."""
AHEAD = 2
"""Blocks that are prepared while one is learnt from."""


@dataclass(frozen=True, slots=True)
class Split:
    """Which rows of a part are held out: a run of each block's rows until there are enough of them.

    Attributes:
        fraction: Of a block's rows.
        most: Rows of a part.
    """

    fraction: float = 0.0
    most: int = 0


@dataclass(frozen=True)
class MemoryPart:
    """Rows ``begin`` to ``end`` of a matrix in memory, without copying them."""

    x: Any
    y: Array
    begin: int
    end: int

    def __call__(self) -> Iterator[Block]:
        """The blocks."""
        for at in range(self.begin, self.end, ROWS):
            to = min(at + ROWS, self.end)
            yield _rows(self.x, at, to), self.y[at:to]


@dataclass(frozen=True)
class FilePart:
    """A block kept in files that every process maps into its memory, so that workers share one copy.

    Attributes:
        path: A folder made by ``keep``.
    """

    path: str

    def __call__(self) -> Iterator[Block]:
        """The blocks."""
        found = _opened(self.path)
        yield from MemoryPart(*found, 0, len(found[1]))()

    @classmethod
    def keep(cls, folder: str, x: Any, y: Array) -> FilePart:
        """Write a block to a new folder as NumPy arrays."""
        from pathlib import Path

        place = Path(folder)
        place.mkdir(parents=True)
        arrays = {"y": y}
        if sparse.issparse(x):
            arrays |= {"values": x.data, "indices": x.indices, "indptr": x.indptr, "shape": np.array(x.shape)}
        else:
            arrays["x"] = x
        for name, array in arrays.items():
            np.save(place / f"{name}.npy", array)
        return cls(folder)


@dataclass(frozen=True)
class TablePart:
    """Arrow tables on their way through fitted feature steps.

    Attributes:
        tables: Gives the tables, at least the inputs and the target.
        transformer: Fetches a fitted scikit-learn transformer of a DataFrame of the inputs.
        inputs: Columns, in the order the transformer was fitted on.
        target: The target's column.
        classes: Sorted labels; None for numbers.
    """

    tables: Callable[[], Iterator[pa.Table]]
    transformer: Callable[[], Any]
    inputs: tuple[str, ...]
    target: str
    classes: tuple[Any, ...] | None

    def __call__(self) -> Iterator[Block]:
        """The blocks, at most ``ROWS`` rows each."""
        from modelkeep.train.encoding import encoded as features_of

        transformer = self.transformer()
        for table in self.tables():
            for at in range(0, table.num_rows, ROWS):
                piece = table.slice(at, ROWS)
                y = self._target(piece)
                yield checked(features_of(transformer, piece, self.inputs)), y

    def _target(self, table: pa.Table) -> Array:
        if self.target not in table.column_names:
            raise Invalid(f"a part has no column {self.target!r}", path="data.target")
        column = table.column(self.target)
        if column.null_count:
            raise Invalid(
                f"{column.null_count} of {table.num_rows} rows of a part have no target {self.target!r}",
                path="data.target",
                hint=f"add '- drop_missing: {{columns: [{self.target}]}}' under data.clean",
            )
        if self.classes is None:
            return np.asarray(column.cast(pa.float64()).to_numpy())
        coded = column.combine_chunks()
        coded = coded if pa.types.is_dictionary(coded.type) else coded.dictionary_encode()
        if isinstance(coded, pa.ChunkedArray):
            coded = coded.unify_dictionaries().combine_chunks()
        found = np.array(coded.dictionary.to_pylist(), dtype=np.asarray(self.classes).dtype)
        try:
            codes = encoded(found, np.asarray(self.classes))
        except ValueError as error:
            raise Invalid(f"a part's target: {error}", path="data.target") from error
        return np.asarray(codes[coded.indices.to_numpy(zero_copy_only=False)])


_OPEN: dict[str, tuple[Any, Array]] = {}


def _opened(path: str) -> tuple[Any, Array]:
    if path not in _OPEN:
        from pathlib import Path

        place = Path(path)
        read = {file.stem: np.load(file, mmap_mode="r") for file in place.glob("*.npy")}
        x = read.get("x")
        if x is None:
            x = _csr(read["values"], read["indices"], read["indptr"], tuple(read["shape"].tolist()))
        _OPEN[path] = (x, read["y"])
    return _OPEN[path]


def checked(x: Any) -> Any:
    """A matrix as the loops take it: C-ordered or CSR, float32 or float64, finite.

    Raises:
        Invalid: Missing or infinite values.
    """
    if sparse.issparse(x):
        x = x.tocsr()
        if x.data.dtype not in (np.float32, np.float64):
            x = x.astype(np.float64)
        if x.nnz and not 0 <= int(x.indices.min()) <= int(x.indices.max()) < x.shape[1]:
            raise Invalid(f"a sparse matrix of {x.shape[1]} columns names others", path="features")
        values = x.data
    else:
        x = np.asarray(x)
        x = np.ascontiguousarray(x, x.dtype if x.dtype in (np.float32, np.float64) else np.float64)
        values = x
    # The sum is finite unless something in it is not, or it overflows; only then is each value looked at.
    if not math.isfinite(float(values.sum(dtype=np.float64))) and not np.isfinite(values).all():
        raise Invalid(
            "linear_out_of_core does not take missing or infinite values, and there are some",
            path="features",
            hint="add an impute step, or use hist_gradient_boosting, which takes missing values",
        )
    return x


def learnt_from(part: Part, split: Split) -> Iterator[Block]:
    """A part's rows to learn from, prepared in a thread beside the learning one where there is work in that."""
    rows = kept(part(), split)
    return rows if isinstance(part, MemoryPart | FilePart) else ahead(rows)


def kept(blocks: Iterator[Block], split: Split) -> Iterator[Block]:
    """The rows to learn from."""
    for x, y, begin, end in _divided(blocks, split):
        if begin > 0:
            yield _rows(x, 0, begin), y[:begin]
        if end < len(y):
            yield (x, y) if end == 0 else (_rows(x, end, len(y)), y[end:])


def held_out(blocks: Iterator[Block], split: Split) -> Iterator[Block]:
    """The rows that are only looked at."""
    left = split.most
    for x, y, begin, end in _divided(blocks, split):
        left -= end - begin
        if begin < end:
            yield _rows(x, begin, end), y[begin:end]
        if left <= 0:
            return


def _divided(blocks: Iterator[Block], split: Split) -> Iterator[tuple[Any, Array, int, int]]:
    """Each block with the run of its rows that is held out, the same one each time."""
    left = split.most
    for number, (x, y) in enumerate(blocks):
        count = min(left, round(len(y) * split.fraction))
        left -= count
        # Elsewhere in each block, so that no order within blocks decides who is held out.
        begin = int((len(y) - count) * ((number + 1) * 0.618033988749895 % 1.0)) if count else 0
        yield x, y, begin, begin + count


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, made in a thread while the last one is worked on (the loops release the GIL)."""
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(AHEAD)
    stopped = threading.Event()

    def work() -> None:
        try:
            for item in items:
                if not _put(ready, ("item", item), stopped):
                    return
            _put(ready, ("end", None), stopped)
        except BaseException as error:
            _put(ready, ("error", error), stopped)

    threading.Thread(target=work, name="blocks", daemon=True).start()
    try:
        while True:
            kind, item = ready.get()
            if kind == "end":
                return
            if kind == "error":
                raise item
            yield item
    finally:
        stopped.set()


def _put(ready: queue.Queue[tuple[str, Any]], item: tuple[str, Any], stopped: threading.Event) -> bool:
    while not stopped.is_set():
        try:
            ready.put(item, timeout=0.1)
            return True
        except queue.Full:
            continue
    return False


def in_memory(x: Any, y: Array, parts: int) -> list[Part]:
    """A matrix as so many parts of equal size, sharing its memory."""
    edges = np.linspace(0, len(y), max(1, min(parts, len(y))) + 1).astype(int).tolist()
    return [MemoryPart(x, y, a, b) for a, b in itertools.pairwise(edges)]


def _rows(x: Any, begin: int, end: int) -> Any:
    """Some neighbouring rows, without copying them."""
    if begin == 0 and end == x.shape[0]:
        return x
    if not sparse.issparse(x):
        return x[begin:end]
    first, last = int(x.indptr[begin]), int(x.indptr[end])
    indptr = x.indptr[begin : end + 1] - x.indptr[begin]
    return _csr(x.data[first:last], x.indices[first:last], indptr, (end - begin, x.shape[1]))


def _csr(values: Any, indices: Any, indptr: Any, shape: tuple[int, ...]) -> Any:
    """A CSR matrix around arrays as they are; SciPy's constructor would read them all to check them."""
    made = sparse.csr_matrix(shape, dtype=values.dtype)
    made.data, made.indices, made.indptr = values, indices, indptr
    return made
