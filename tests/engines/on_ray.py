"""The promises on a real Ray cluster of two machines; ``test_ray.py`` runs this apart from all else."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import psutil
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conformance.boosted import BoostedSuite
from conformance.declared import DeclaredSuite
from conformance.engine import EngineSuite, RemoteSuite
from conformance.searches import JoinedSuite, SearchSuite
from engines.clusters import HEAD, command, ray_cluster, wait_for
from modelkeep.core.plugins import load_object
from modelkeep.engines.opening import open_engine
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


class TestJoined(JoinedSuite):
    pass


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
