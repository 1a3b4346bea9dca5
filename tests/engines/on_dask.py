"""The promises on a real Dask cluster of two machines; ``test_dask.py`` runs this apart from all else."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from sklearn.metrics import r2_score

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conformance.boosted import ROWS, BoostedSuite, table
from conformance.declared import DeclaredSuite
from conformance.engine import EngineSuite, RemoteSuite
from conformance.linear import LinearSuite
from conformance.merging import MergingSuite
from conformance.parts import company, pull_when_told
from conformance.searches import JoinedSuite, SearchSuite
from engines.clusters import dask_cluster, kill, wait_for
from modelkeep.engines import boosting
from modelkeep.engines.opening import open_engine
from modelkeep.spec.declaration import Resources
from modelkeep.train.algorithms import resolve
from modelkeep.train.boosting import grow


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, object_store):
    with dask_cluster(tmp_path_factory.mktemp("dask"), object_store.environment) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def address(cluster):
    return cluster.address


@pytest.fixture(scope="module")
def opened(address):
    with open_engine(address, limit=60) as engine:
        wait_for(lambda: engine.count() == 2)
        yield engine


@pytest.fixture
def another(cluster):
    return cluster.another


class TestDeclared(DeclaredSuite):
    pass


class TestBoosted(BoostedSuite):
    pass


class TestLinear(LinearSuite):
    pass


class TestMerging(MergingSuite):
    @pytest.fixture
    def engine(self, opened):
        return opened


class TestLost:
    """Before the other promises, the last of which takes a machine for good; what is taken here comes back."""

    @pytest.mark.parametrize("name", ["xgboost", "lightgbm"])
    def test_a_worker_is_lost_while_trees_grow_and_the_others_grow_them(
        self, opened, another, name, monkeypatch, tmp_path
    ):
        workers = []
        deal = boosting.deal
        monkeypatch.setattr(boosting, "deal", lambda *given: workers.append(given[2]) or deal(*given))
        x, y = table("regression")
        algorithm = resolve(name, "regression", base=Path())
        params = algorithm.params({"n_estimators": 60, "max_depth": 4, "n_jobs": 1}, seed=1, rows=ROWS)
        unfitted = algorithm.estimator(params, smallest_class=9)
        unfitted.set_params(objective=partial(pull_when_told, str(tmp_path)))
        with another() as third, ThreadPoolExecutor(1) as pool:
            wait_for(lambda: opened.count() == 4)
            fitted = pool.submit(grow, unfitted, x[:ROWS], y[:ROWS], opened)
            try:
                wait_for(lambda: fitted.done() or len(list(tmp_path.glob("at *"))) == 3)
                kill(third)
            finally:
                (tmp_path / "go").touch()
            model = fitted.result(60)
        assert workers == [3, 2]
        assert r2_score(y[ROWS:], model.predict(x[ROWS:])) > 0.7


class TestJoined(JoinedSuite):
    def test_parts_that_need_memory_are_alone_where_it_is_enough_for_one(self, opened, address, another):
        with another(), open_engine(address, resources=Resources(memory="1.5GB"), limit=60) as engine:
            wait_for(lambda: engine.count() == 3 and opened.count() == 4)
            found = list(engine.map(company, range(12)))
        assert len({pid for pid, _ in found}) == 3
        assert {others for _, others in found} == {0}


class TestCluster(EngineSuite, RemoteSuite, SearchSuite):
    many = 200

    @pytest.fixture
    def engine(self, opened):
        return opened

    @pytest.fixture
    def lose(self, cluster):
        return cluster.lose
