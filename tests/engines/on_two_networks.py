"""Workers that share no loopback with this process; ``test_two_networks.py`` runs this apart from all else."""

from __future__ import annotations

import secrets
import socket
import subprocess
import sys
import threading
import time
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
from modelkeep.train.linear import wire
from modelkeep.train.linear.blocks import Split, in_memory
from modelkeep.train.linear.estimator import OutOfCoreClassifier
from modelkeep.train.linear.losses import Objective
from modelkeep.train.linear.parameter_server import ParameterServer
from modelkeep.train.linear.settings import settle
from modelkeep.train.linear.table import Steps, Table
from modelkeep.train.linear.whole import Wholes


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


def test_nobody_waits_for_a_machine_that_has_gone_without_a_word(engine, tmp_path):
    params = OutOfCoreClassifier(method="parameter_server", shards=1).get_params()
    wholes, logistic = Wholes([], engine, Split()), Objective("logistic", 0, 0)
    with ParameterServer(settle(params, classes=2), logistic, Steps("constant", 1.0), wholes) as server:
        server.begin(Table.fresh(5, 1))
        address, token = server._addresses[0], server._token

        def joined(part):
            made = wire.connect(address, token)
            wire.send(made, wire.Frame(wire.JOIN, keys=np.array([0, part], np.uint32)))
            wire.receive(made)
            return made

        def vanish(part):
            with joined(part):
                subprocess.run(["ip", "link", "set", "far", "down"], check=True)
                (tmp_path / "gone").touch()
                time.sleep(600)

        vanished = engine.submit(engine.pack(vanish, 0))
        with joined(1) as left:
            wait_for((tmp_path / "gone").exists)
            wire.send(left, wire.Frame(wire.PUSH, 0, 1.0, np.array([2], np.uint32), np.array([-1.0])))
            wire.receive(left)
            wire.send(left, wire.Frame(wire.PULL, keys=np.array([2], np.uint32)))
            assert wire.receive(left).values.tolist() == [1.0]
        assert not vanished.future.done()
