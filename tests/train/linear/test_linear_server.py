"""The parameter server against strangers, deaths and drift; workers in processes of their own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from linear_kit import objective, rows, span, value
from scipy import sparse

from modelkeep.core.errors import Unavailable
from modelkeep.core.ports import Silent
from modelkeep.engines.local import LocalEngine
from modelkeep.train.linear import wire
from modelkeep.train.linear.blocks import Block, FilePart, Split
from modelkeep.train.linear.checkpoint import Checkpoint
from modelkeep.train.linear.estimator import OutOfCoreClassifier
from modelkeep.train.linear.losses import Objective
from modelkeep.train.linear.parameter_server import ParameterServer
from modelkeep.train.linear.passes import Pass
from modelkeep.train.linear.settings import settle
from modelkeep.train.linear.table import Steps, Table
from modelkeep.train.linear.threads import Threads
from modelkeep.train.linear.whole import Wholes
from modelkeep.train.linear.wire import Frame
from small import until


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


def joined(server: ParameterServer, part: int = 0, turn: int = 0) -> socket.socket:
    made = wire.connect(server._addresses[0], server._token)
    wire.send(made, Frame(wire.JOIN, keys=np.array([turn, part], np.uint32)))
    wire.receive(made)
    return made


def push(worker: socket.socket, gradient: float, batch: int = 0) -> None:
    wire.send(worker, Frame(wire.PUSH, batch, 1.0, np.array([2], np.uint32), np.array([gradient])))
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
        push(worker, -1.0)
        assert pull(worker) == 1.0


def test_a_worker_waits_for_the_slowest_and_not_for_the_dead(server):
    fast, slow = joined(server, 0), joined(server, 1)
    ahead = server._settings.staleness
    for batch in range(1 + ahead):
        push(fast, -1.0, batch)
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
    one, two = joined(server, 0), joined(server, 1)
    push(one, -1.0)
    push(two, -3.0)
    assert pull(one) == pull(two) == (2.0 if server._settings.staleness == 0 else 4.0)
    one.close()
    two.close()


def test_a_batch_counts_once_in_a_pass_whichever_attempt_brings_it(server):
    lost = joined(server, 7)
    push(lost, -1.0, 0)
    push(lost, -1.0, 1)
    lost.close()
    with joined(server, 7) as again, joined(server, 7) as another:
        for batch in (0, 1):
            push(again, -1.0, batch)
        assert pull(again) == 2.0
        push(again, -3.0, 2)
        push(another, -1.0, 0)
        assert pull(again) == pull(another) == 5.0
        with joined(server, 7, turn=1) as later:
            push(later, -1.0, 0)
            push(again, -9.0, 3)
            assert pull(later) == pull(again) == 6.0, "of an earlier pass nothing counts any more"


def test_of_two_attempts_the_furthest_is_waited_for_and_neither_after_the_end(server):
    other, stuck, copy = joined(server, 0), joined(server, 1), joined(server, 1)
    for worker in (other, stuck, copy):
        worker.settimeout(60)
    for batch in range(3):
        push(other, -1.0, batch)
        push(copy, -1.0, batch)
        assert pull(other) == (1.0 if server._settings.staleness == 0 else 2.0) * (batch + 1)
    wire.send(copy, Frame(wire.LEAVE))
    wire.receive(copy)
    for batch in range(3, 6):
        push(other, -1.0, batch)
        push(stuck, -9.0, batch)
        assert pull(other) == pull(stuck) == (1.0 + batch if server._settings.staleness == 0 else 4.0 + batch)
    for worker in (other, stuck, copy):
        worker.close()


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


@dataclass(frozen=True)
class Slow:
    """A part whose first reader waits in the middle of it until there is a second."""

    part: FilePart
    marks: str

    def __call__(self) -> Iterator[Block]:
        first, second = Path(self.marks, "first"), Path(self.marks, "second")
        (second if first.exists() else first).touch()
        for x, y in self.part():
            yield x[:40], y[:40]
            until(second.exists, limit=120)
            yield x[40:], y[40:]


@pytest.mark.parametrize("what", ["killed", "slow"])
def test_rows_count_once_though_a_part_is_begun_twice(tmp_path, what):
    """Every batch is a step where workers need not wait for each other, so steps are counted."""
    x, y = rows(2)
    halves = [
        FilePart.keep(str(tmp_path / str(at)), x[at : at + 120], y[at : at + 120] * 2.0 - 1.0) for at in (0, 120)
    ]
    second = Deadly(halves[1], str(tmp_path / "second")) if what == "killed" else Slow(halves[1], str(tmp_path))
    params = {"shards": 2, "staleness": 1000, "batch_size": 10}
    settings = settle(OutOfCoreClassifier(method="parameter_server", **params).get_params(), classes=2)
    steps, done = Steps("adagrad", 0.1, 10), Pass({})
    with LocalEngine(2) as engine:
        wholes = Wholes([halves[0], second], engine, Split())
        with ParameterServer(settings, Objective("logistic", 0, 0), steps, wholes) as server:
            server.begin(Table.fresh(x.shape[1], 1))
            server.run(done, Silent(), Checkpoint(None, {}), lambda at: None)
            assert (tmp_path / "second").exists(), "it was begun twice"
            assert server.table().clock[1] == len(y) / 10
    assert (done.parts, done.rows) == (2, len(y))


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


def test_a_shard_starts_without_what_it_does_not_need() -> None:
    """Many may run on one machine: each costs what numpy and its weights cost."""
    program = "import sys, modelkeep.train.linear.shard; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert {"scipy", "pyarrow", "pandas", "sklearn", "numba"}.isdisjoint(done.stdout.split())
