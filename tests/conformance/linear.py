"""Linear models learnt data-parallel on an engine are those that are learnt here, also when a worker is lost."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse
from sklearn.metrics import log_loss

from modelkeep.train.linear.blocks import MemoryPart
from modelkeep.train.linear.estimator import OutOfCoreClassifier

ROWS, FEATURES, PARTS = 2_000, 300, 4
CLASSES = np.array([0, 1])
METHODS = {
    "local_sgd": {"passes": 3, "patience": 3, "learning_rate": 0.3},
    "all_reduce": {"passes": 3, "patience": 3},
    "parameter_server": {"passes": 4, "patience": 4, "learning_rate": 0.3, "shards": 2, "batch_size": 10},
}


def table():
    """Ten of 300 columns in each row, as hashing gives them; y of -1 and 1."""
    random = np.random.default_rng(4)
    columns = np.sort(random.integers(0, FEATURES, (ROWS, 10)), axis=1).astype(np.int32)
    indptr = np.arange(0, ROWS * 10 + 1, 10, dtype=np.int32)
    x = sparse.csr_matrix((np.ones(ROWS * 10), columns.ravel(), indptr), (ROWS, FEATURES))
    margins = x @ random.normal(size=FEATURES)
    return x, np.where(margins + random.logistic(size=ROWS) > 0, 1.0, -1.0)


def parts():
    x, y = table()
    edges = np.linspace(0, ROWS, PARTS + 1).astype(int)
    return [MemoryPart(x[begin:end], y[begin:end], 0, int(end - begin)) for begin, end in pairwise(edges)]


@dataclass(frozen=True)
class Deadly:
    """A part whose first reader dies in the middle of it; it says which it was."""

    part: MemoryPart
    died: str

    def __call__(self):
        (x, y), *_ = self.part()
        yield x[:100], y[:100]
        try:
            with Path(self.died).open("x") as file:
                file.write(str(os.getpid()))
        except FileExistsError:
            pass
        else:
            os.kill(os.getpid(), signal.SIGKILL)
        yield x[100:], y[100:]


def learnt(method, given, engine):
    model = OutOfCoreClassifier(method=method, workers=2, random_state=0, **METHODS[method])
    return model.fit_parts(given, FEATURES, CLASSES, engine)


def loss(model) -> float:
    x, y = table()
    return log_loss(y, model.predict_proba(x)[:, 1])


@pytest.mark.filterwarnings("ignore:not converged")
class LinearSuite:
    """For engines with two workers: a fixture ``opened``."""

    @pytest.mark.parametrize("method", METHODS)
    def test_what_two_workers_learn_there_is_what_two_learn_here(self, opened, method):
        here, there = (learnt(method, parts(), engine) for engine in (None, opened))
        if method == "parameter_server":  # whose gradient comes first is not told
            assert loss(there) == pytest.approx(loss(here), rel=0.05)
            assert loss(there) < 0.5
        else:
            np.testing.assert_allclose(there.coef_, here.coef_, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(there.intercept_, here.intercept_, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("method", ["local_sgd", "all_reduce"])
    def test_a_lost_worker_changes_nothing(self, opened, method, tmp_path):
        """What it had learnt of its part is thrown away, and the part learnt again from the common weights."""
        first, *others = parts()
        died = tmp_path / "died"
        given = [*others, Deadly(first, str(died))]
        there = learnt(method, given, opened)
        assert died.exists()
        here = learnt(method, given, None)  # where nobody dies any more
        np.testing.assert_allclose(there.coef_, here.coef_, rtol=1e-9, atol=1e-12)
