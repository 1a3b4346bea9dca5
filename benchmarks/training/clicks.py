"""A made-up click log: rows of 30 categories, hashed; what is common is common as in real ones (Zipf)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import csv
from scipy import sparse

FIELDS, BITS = 30, 18
BATCH = 65_536

Batch = tuple[sparse.csr_matrix, npt.NDArray[np.float64]]


def batches(rows: int, seed: int) -> Iterator[Batch]:
    """Batches of ``(X, y)``: X of shape (n, 2**18), 30 ones a row; y of -1 and 1."""
    truth = np.random.default_rng(0).normal(scale=0.45, size=1 << BITS)
    rng = np.random.default_rng([1, seed])
    for begin in range(0, rows, BATCH):
        n = min(BATCH, rows - begin)
        values = rng.zipf(1.25, size=(n, FIELDS)) % 50_000
        codes = (values * 2_654_435_761 + np.arange(FIELDS) * 40_503_000_007) >> 7
        columns = np.sort(codes % (1 << BITS), axis=1).astype(np.int32)
        margins = truth[columns].sum(axis=1) - 1.0
        y = np.where(rng.random(n) < 1 / (1 + np.exp(-margins)), 1.0, -1.0)
        indptr = np.arange(0, n * FIELDS + 1, FIELDS, dtype=np.int32)
        yield sparse.csr_matrix((np.ones(n * FIELDS, np.float32), columns.ravel(), indptr), (n, 1 << BITS)), y


def write_vw(path: Path, made: list[Batch]) -> None:
    """The same rows as Vowpal Wabbit reads them: the hashes as feature numbers, which it takes as they are."""
    options = csv.WriteOptions(include_header=False, delimiter=" ", quoting_style="none")
    with path.open("wb") as file:
        for x, y in made:
            rows = x.indices.reshape(-1, FIELDS)
            columns = [
                pa.array(y.astype(np.int8)),
                pa.array(["|"] * len(y)),
                *(pa.array(c) for c in rows.T.copy()),
            ]
            csv.write_csv(pa.table(columns, names=[str(at) for at in range(FIELDS + 2)]), file, options)


def log_loss(margins: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> float:
    """Mean of ``log(1 + exp(-y m))``."""
    return float(np.logaddexp(0.0, -y * margins).mean())
