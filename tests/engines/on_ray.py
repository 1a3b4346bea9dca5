"""The promises on a real Ray cluster of two machines; ``test_ray.py`` runs this apart from all else."""

from __future__ import annotations

import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar, NamedTuple

import numpy as np
import psutil
import pytest
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conformance.boosted import BoostedSuite
from conformance.declared import DeclaredSuite
from conformance.engine import EngineSuite, RemoteSuite
from conformance.linear import LinearSuite
from conformance.merging import KeptSuite
from conformance.parts import node_and_total
from conformance.searches import JoinedSuite, SearchSuite
from engines.clusters import HEAD, command, kill, ray_cluster, wait_for
from modelkeep.core.plugins import load_object
from modelkeep.engines.opening import open_engine
from modelkeep.engines.ray import sealed
from modelkeep.engines.remote import Shared
from modelkeep.train.log import Unlogged, UserRun


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, object_store):
    with ray_cluster(tmp_path_factory.mktemp("ray"), object_store.environment) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def address(cluster):
    return cluster.address


@pytest.fixture(scope="module")
def opened(address):
    with open_engine(address, limit=180) as engine:
        wait_for(lambda: engine.count() == 2)
        yield engine


@pytest.fixture
def another(cluster):
    return cluster.another


class TestDeclared(DeclaredSuite):
    pass


class TestBoosted(BoostedSuite):
    libraries: ClassVar = {"classification": ("xgboost",), "regression": ("lightgbm",)}


class TestLinear(LinearSuite):
    pass


class TestMerging(KeptSuite):
    @pytest.fixture
    def engine(self, opened):
        return opened


class TestJoined(JoinedSuite):
    pass


class Third(NamedTuple):
    node: str
    process: subprocess.Popen


@pytest.fixture(scope="module")
def third(opened, cluster):
    """A third node, for the tests of the class below, of which the last takes it away."""
    before = {node["NodeID"] for node in opened._nodes()}
    with cluster.another() as process:
        wait_for(lambda: opened.count() == 3)
        [joined] = {node["NodeID"] for node in opened._nodes()} - before
        yield Third(joined, process)


class TestThird:
    """In this order: nothing has run on the third node when it joins, and it is lost in the last test."""

    def test_a_part_runs_where_what_it_shares_lies_and_elsewhere_when_there_is_no_room(
        self, opened, third, tmp_path
    ):
        handle, array = made_on(third.node)
        [found] = opened.map(partial(node_and_total, handle, ""), [3])
        assert found == (third.node, array[3:].sum())
        crowd = list(opened.map(partial(node_and_total, handle, str(tmp_path)), range(6)))
        assert len({node for node, _ in crowd}) > 1
        assert [total for _, total in crowd] == [array[part:].sum() for part in range(6)]

    def test_what_was_shared_and_lost_with_the_only_node_that_held_it_is_shared_anew(self, opened, third):
        handle, array = made_on(third.node)
        kill(third.process)
        wait_for(lambda: opened.count() == 2)
        found = list(opened.map(partial(node_and_total, handle, ""), range(4)))
        assert [total for _, total in found] == [array[part:].sum() for part in range(4)]
        assert third.node not in {node for node, _ in found}


def made_on(node):
    """A shared array that lies on this node alone, and the array."""
    array = np.arange(1_000_000.0)
    there = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    make = ray.remote(num_cpus=0, num_returns=2, max_retries=0, scheduling_strategy=there)
    ref, made = make(lambda: (sealed(array), True)).remote()
    assert ray.get(made)  # to wait for the other would bring it here
    return Shared(ref, array), array


class TestNetwork:
    def test_two_workers_of_ray_train_learn_the_network_of_one(self, opened):
        torch = pytest.importorskip("torch")
        base = Path(__file__).resolve().parents[2] / "examples" / "torch"
        fit = load_object("network:fit", base=base, path="train.algorithm")
        x = np.random.default_rng(1).normal(size=(64, 3))
        rows = SimpleNamespace(matrix=x, target=x.argmax(axis=1), classes=(0, 1, 2))
        losses, answers = {}, {}
        for where, engine in (("here", None), ("there", lambda: opened)):
            log = Losses()
            network = fit(rows, {"epochs": 3, "batch": 16, "hidden": 4, "workers": 2}, UserRun(log, engine))
            losses[where] = log.values
            answers[where] = network(torch.tensor(x, dtype=torch.float32)).detach().numpy()
        assert len(losses["here"]) == 3 and losses["here"][-1] < losses["here"][0]
        np.testing.assert_allclose(losses["there"], losses["here"], rtol=1e-3)
        np.testing.assert_allclose(answers["there"], answers["here"], atol=1e-3)


class Losses(Unlogged):
    def __init__(self):
        self.values = []

    def metric(self, key, value, step=0):
        assert (key, step) == ("loss", len(self.values) + 1)
        self.values.append(value)


class TestCluster(EngineSuite, RemoteSuite, SearchSuite):
    many = 200

    @pytest.fixture
    def engine(self, opened):
        return opened

    @pytest.fixture
    def lose(self, cluster):
        return cluster.lose

    def test_workers_are_not_sent_to_their_own_loopback(self, engine):
        assert engine.host == HEAD

    def test_the_process_that_serves_this_client_dies_and_the_work_goes_on(self, engine):
        shared = engine.put(np.arange(100_000))
        results = engine.map(lambda part: time.sleep(0.5) or int(shared()[part:].sum()), range(8))
        first = next(results)
        servers = [process for process in psutil.process_iter() if "--mode=specific-server" in command(process)]
        assert len(servers) == 1
        servers[0].kill()
        assert [first, *results] == [sum(range(part, 100_000)) for part in range(8)]
        assert list(engine.map(lambda part: int(shared()[part]), range(3))) == [0, 1, 2]
