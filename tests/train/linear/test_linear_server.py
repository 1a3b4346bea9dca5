"""The parameter server against strangers, deaths and drift; workers in processes of their own."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from linear_kit import objective, rows, span, value
from scipy import sparse

from modelkeep.core.errors import Unavailable
from modelkeep.engines.local import LocalEngine
from modelkeep.train.linear import wire
from modelkeep.train.linear.blocks import Block, FilePart, Split
from modelkeep.train.linear.estimator import OutOfCoreClassifier
from modelkeep.train.linear.losses import Objective
from modelkeep.train.linear.parameter_server import ParameterServer
from modelkeep.train.linear.settings import settle
from modelkeep.train.linear.table import Steps, Table
from modelkeep.train.linear.threads import Threads
from modelkeep.train.linear.whole import Wholes
from modelkeep.train.linear.wire import Frame


@pytest.fixture(params=[0, 1], ids=["synchronous", "stale"])
def server(request) -> Iterator[ParameterServer]:
    """One shard of five weights; steps of 1, so that a weight shows what was pushed."""
    params = OutOfCoreClassifier(method="parameter_server", shards=1, staleness=request.param).get_params()
    with Threads(1) as engine:
        made = ParameterServer(
            settle(params, classes=2),
            Objective("logistic", 0, 0),
            Steps("constant", 1.0),
            Wholes([], engine, Split()),
        )
        with made:
            made.begin(Table.fresh(5, 1))
            yield made


def joined(server: ParameterServer) -> socket.socket:
    made = wire.connect(server._addresses[0], server._token)
    wire.send(made, Frame(wire.JOIN))
    wire.receive(made)
    return made


def push(worker: socket.socket, gradient: float) -> None:
    wire.send(worker, Frame(wire.PUSH, number=1.0, keys=np.array([2], np.uint32), values=np.array([gradient])))
    wire.receive(worker)


def pull(worker: socket.socket) -> float:
    wire.send(worker, Frame(wire.PULL, keys=np.array([2], np.uint32)))
    return float(wire.receive(worker).values[0])


def test_it_listens_on_this_machine_only_and_serves_nobody_without_the_token(server):
    host, port = server._addresses[0]
    assert host == "127.0.0.1"
    with wire.connect((host, port), b"a wrong token") as stranger, pytest.raises(ConnectionError):
        wire.send(stranger, Frame(wire.JOIN))
        wire.receive(stranger)
    with joined(server) as worker:
        push(worker, -3.0)
        assert pull(worker) == 3.0
        assert server._token.hex() not in " ".join(server._shards[0].args)


def test_nonsense_ends_one_connection_and_not_the_shard(server):
    for nonsense in (
        Frame(99),
        Frame(wire.PULL, keys=np.array([77], np.uint32)),
        Frame(wire.PUSH, number=1.0, keys=np.array([1], np.uint32), values=np.zeros(7)),
    ):
        with joined(server) as worker, pytest.raises((ConnectionError, OSError)):
            wire.send(worker, nonsense)
            wire.receive(worker)
    with joined(server) as worker:
        assert pull(worker) == 0.0


def test_a_worker_waits_for_the_slowest_and_not_for_the_dead(server):
    fast, slow = joined(server), joined(server)
    ahead = server._settings.staleness
    for _ in range(1 + ahead):
        push(fast, -1.0)
    wire.send(fast, Frame(wire.PULL, keys=np.array([2], np.uint32)))
    fast.settimeout(0.2)
    with pytest.raises(TimeoutError):
        wire.receive(fast)
    slow.close()
    fast.settimeout(60)
    reached = float(wire.receive(fast).values[0])
    # Synchronous: the pushes of one clock are one step of their mean; else each is a step.
    assert reached == (1.0 if ahead == 0 else 2.0)
    fast.close()


def test_pushes_of_one_clock_make_one_step_together(server):
    one, two = joined(server), joined(server)
    push(one, -1.0)
    push(two, -3.0)
    assert pull(one) == pull(two) == (2.0 if server._settings.staleness == 0 else 4.0)
    one.close()
    two.close()


def test_a_shard_that_died_is_told_as_such(server):
    server._shards[0].send_signal(signal.SIGKILL)
    server._shards[0].wait()
    with pytest.raises(Unavailable, match="parameter server"):
        server._read()


@dataclass(frozen=True)
class Deadly:
    """A part whose first reader dies in the middle of it."""

    part: FilePart
    died: str

    def __call__(self) -> Iterator[Block]:
        for x, y in self.part():
            yield x[:40], y[:40]
            if not Path(self.died).exists():
                Path(self.died).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield x[40:], y[40:]


def test_processes_share_files_and_a_killed_one_is_made_up_for(tmp_path):
    x, y = rows(2)
    coded = y * 2.0 - 1.0
    halves = [
        FilePart.keep(str(tmp_path / str(at)), sparse.csr_matrix(x[at : at + 120]), coded[at : at + 120])
        for at in (0, 120)
    ]
    parts = [halves[0], Deadly(halves[1], str(tmp_path / "died"))]
    zero, best = span("logistic", "l2")
    common = {"alpha": 0.02, "learning_rate": 0.3, "batch_size": 10, "random_state": 0}
    with LocalEngine(2) as processes:
        for method, passes in (("parameter_server", 8), ("local_sgd", 4)):
            model = OutOfCoreClassifier(method=method, passes=passes, patience=passes, **common)
            model.fit_parts(parts, x.shape[1], np.array([0, 1]), processes)
            reached = value(objective("logistic", "l2"), model.coef_, model.intercept_)
            assert (reached - best) / (zero - best) < 0.05
    assert (tmp_path / "died").exists()
