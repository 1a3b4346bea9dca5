"""Workers that share no loopback with this process; ``test_two_networks.py`` runs this apart from all else."""

from __future__ import annotations

import secrets
import socket
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "train" / "linear"))

from linear_kit import ALPHA, objective, rows, span, value

from conformance.parts import reach
from engines.clusters import NEAR, dask_afar, wait_for
from modelkeep.engines.opening import open_engine
from modelkeep.train.linear.blocks import in_memory
from modelkeep.train.linear.estimator import OutOfCoreClassifier


@pytest.fixture
def engine(tmp_path):
    with dask_afar(tmp_path) as address, open_engine(address, limit=60) as engine:
        wait_for(lambda: engine.count() == 2)
        yield engine


def test_the_parameter_server_is_reached_from_another_machine(engine):
    word = secrets.token_bytes(16)
    with socket.create_server(("127.0.0.1", 0)) as here:
        threading.Thread(target=lambda: here.accept()[0].sendall(word), daemon=True).start()
        assert list(engine.map(partial(reach, here.getsockname()), [word])) == [False], "a loopback of its own"
        assert reach(here.getsockname(), word)
    assert engine.host == NEAR, "though the scheduler is known by this machine's loopback"
    x, y = rows(2)
    params = {"alpha": ALPHA, "learning_rate": 0.3, "batch_size": 10, "passes": 8, "patience": 8}
    model = OutOfCoreClassifier(method="parameter_server", random_state=0, **params)
    model.fit_parts(in_memory(x, y * 2.0 - 1.0, 2), x.shape[1], np.array([0, 1]), engine)
    zero, best = span("logistic", "l2")
    reached = value(objective("logistic", "l2"), model.coef_, model.intercept_)
    assert (reached - best) / (zero - best) < 0.05
