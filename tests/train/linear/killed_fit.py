"""Fits by several methods that stop for ever, in their passes or full-batch steps; run to be killed.

The parameter server's one worker takes the steps in the same order each time; several do not.
"""

from __future__ import annotations

import sys
import threading
import warnings
from pathlib import Path

from linear_kit import ALPHA, rows

from modelkeep.train.linear.estimator import OutOfCoreClassifier
from modelkeep.train.log import Unlogged

PARAMS = {
    "passes": {"method": "sgd", "passes": 9, "patience": 9},
    "steps": {"method": "all_reduce", "passes": 9, "tolerance": 1e-12, "workers": 2},
    "rounds": {"method": "local_sgd", "passes": 9, "patience": 9, "workers": 2},
    "shards": {"method": "parameter_server", "passes": 9, "patience": 9, "workers": 1, "batch_size": 30},
}
STOP = 4


class Stopping(Unlogged):
    """Lets three measurements pass."""

    def __init__(self, told: threading.Semaphore) -> None:
        self.told = told

    def metric(self, key: str, value: float, step: int = 0) -> None:
        if step == STOP:
            self.told.release()
            threading.Event().wait()


def model(name: str) -> OutOfCoreClassifier:
    return OutOfCoreClassifier(alpha=ALPHA, random_state=3, **PARAMS[name])


def main() -> None:
    warnings.simplefilter("ignore")
    told = threading.Semaphore(0)
    for name in PARAMS:
        work = (*rows(2), Stopping(told))
        keywords = {"state": Path(sys.argv[1]) / name}
        threading.Thread(target=model(name).fit_watched, args=work, kwargs=keywords, daemon=True).start()
    for _ in PARAMS:
        told.acquire()
    print("stopped", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
