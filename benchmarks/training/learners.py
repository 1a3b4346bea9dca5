"""Out-of-core logistic regression: ours, scikit-learn's and Vowpal Wabbit's, one pass over the same batches."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.linear_model import SGDClassifier
from vowpalwabbit import Workspace

from benchmarks.training.clicks import BITS, Batch, log_loss, write_vw
from modelkeep.train.linear.blocks import MemoryPart, in_memory
from modelkeep.train.linear.estimator import OutOfCoreClassifier

CLASSES = np.array([-1, 1])
PARTS = 4
"""Of the table that workers share; each is learnt between two averagings."""


def compare(train: list[Batch], held: list[Batch], folder: Path, runs: int) -> list[dict[str, Any]]:
    """Rows per second of processor time (all threads), best of ``runs``, and the held-out log loss."""
    rows = sum(len(y) for _, y in train)
    cases: dict[str, Callable[[], tuple[float, float]]] = {
        "modelkeep linear_out_of_core": lambda: _ours(train, held),
        "modelkeep, penalty none": lambda: _ours(train, held, penalty="none"),
        "scikit-learn SGDClassifier": lambda: _sklearn(train, held, {}),
        "scikit-learn SGDClassifier, alpha 1e-6": lambda: _sklearn(train, held, {"alpha": 1e-6}),
        "Vowpal Wabbit": _vowpal_wabbit(train, held, folder),
    }
    _ours(train[:1], held[:1])  # compiles
    found = []
    for name, case in cases.items():
        print(f"{name} ...", file=sys.stderr, flush=True)
        timed = [case() for _ in range(runs)]
        seconds = min(seconds for seconds, _ in timed)
        found.append({"learner": name, "rows_per_core_second": rows / seconds, "held_out_log_loss": timed[0][1]})
    return found


def _ours(train: list[Batch], held: list[Batch], **params: Any) -> tuple[float, float]:
    parts = [MemoryPart(x, y, 0, len(y)) for x, y in train]
    model = OutOfCoreClassifier(passes=1, random_state=0, **params)
    begin = time.process_time()
    model.fit_parts(parts, 1 << BITS, CLASSES)
    return time.process_time() - begin, _loss(model, held)


def _sklearn(train: list[Batch], held: list[Batch], params: dict[str, float]) -> tuple[float, float]:
    model = SGDClassifier(loss="log_loss", random_state=0, **params)
    given = [(x.astype(np.float64), y) for x, y in train]  # as it computes: not part of what is timed
    begin = time.process_time()
    for x, y in given:
        model.partial_fit(x, y, classes=CLASSES)
    return time.process_time() - begin, _loss(model, held)


def _loss(model: Any, held: list[Batch]) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        margins = np.concatenate([model.decision_function(x.astype(np.float64)) for x, _ in held])
    return log_loss(margins, np.concatenate([y for _, y in held]))


def _vowpal_wabbit(train: list[Batch], held: list[Batch], folder: Path) -> Callable[[], tuple[float, float]]:
    """It reads its own binary cache, the fastest it takes rows; making the cache is not timed."""
    common = f"-b {BITS} --loss_function logistic --quiet"
    for name, made in (("train", train), ("held", held)):
        write_vw(folder / name, made)
    Workspace(f"--data {folder}/train --cache_file {folder}/cache --noop --quiet").finish()
    (folder / "train").write_text("")
    truth = np.concatenate([y for _, y in held])

    def run() -> tuple[float, float]:
        begin = time.process_time()
        model = Workspace(f"--data {folder}/train --cache_file {folder}/cache {common} -f {folder}/model")
        model.finish()
        seconds = time.process_time() - begin
        told = f"-t --data {folder}/held -i {folder}/model -r {folder}/margins --quiet"
        Workspace(told).finish()
        return seconds, log_loss(np.loadtxt(folder / "margins"), truth)

    return run


def workers(train: list[Batch], runs: int, counts: tuple[int, ...] = (1, 2)) -> dict[int, float]:
    """Rows per second, wall clock, of local SGD with so many workers; threads, for compiled loops free the GIL."""
    x, y = sparse.vstack([x for x, _ in train], format="csr"), np.concatenate([y for _, y in train])
    rows, best = len(y), dict.fromkeys(counts, 0.0)
    parts = in_memory(x, y, PARTS)
    for _ in range(runs):
        for count in counts:
            model = OutOfCoreClassifier(method="local_sgd", workers=count, passes=3, patience=3, random_state=0)
            begin = time.perf_counter()
            model.fit_parts(parts, 1 << BITS, CLASSES)
            best[count] = max(best[count], 3 * rows / (time.perf_counter() - begin))
    return best
