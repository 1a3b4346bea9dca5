"""The promises on a real Dask cluster of two machines; ``test_dask.py`` runs this apart from all else."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from sklearn.metrics import r2_score

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conformance.boosted import ROWS, BoostedSuite, table
from conformance.declared import DeclaredSuite
from conformance.engine import EngineSuite, RemoteSuite
from conformance.searches import Log, SearchSuite, searched
from engines.clusters import dask_cluster, dask_worker, environment, kill, wait_for
from modelkeep.engines import boosting
from modelkeep.engines.opening import open_engine
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
def another(address, tmp_path):
    """Starts one more worker."""

    @contextlib.contextmanager
    def started():
        process = subprocess.Popen(dask_worker(int(address.rpartition(":")[2]), tmp_path), env=environment())
        try:
            yield process
        finally:
            kill(process)

    return started


class TestDeclared(DeclaredSuite):
    pass


class TestBoosted(BoostedSuite):
    pass


class TestLost:
    """Before the other promises, the last of which takes a machine for good; what is taken here comes back."""

    @pytest.mark.parametrize("name", ["xgboost", "lightgbm"])
    def test_a_worker_is_lost_while_trees_grow_and_the_others_grow_them(self, opened, another, name, monkeypatch):
        workers = []
        deal = boosting.deal
        monkeypatch.setattr(boosting, "deal", lambda *given: workers.append(given[2]) or deal(*given))
        x, y = table("regression")
        algorithm = resolve(name, "regression", base=Path())
        params = algorithm.params({"n_estimators": 3000, "max_depth": 4, "n_jobs": 1}, seed=1, rows=ROWS)
        with another() as third, ThreadPoolExecutor(1) as pool:
            wait_for(lambda: opened.count() == 3)
            fitted = pool.submit(grow, algorithm.estimator(params, smallest_class=9), x[:ROWS], y[:ROWS], opened)
            wait_for(lambda: workers)
            time.sleep(1.5)
            assert not fitted.done()
            kill(third)
            model = fitted.result(60)
        assert workers == [3, 2]
        assert r2_score(y[ROWS:], model.predict(x[ROWS:])) > 0.7

    def test_a_worker_that_joins_a_search_takes_part_and_leaves_its_trial_to_others(
        self, opened, another, tmp_path
    ):
        fits = "conformance.parts:grow_when_told"
        with ThreadPoolExecutor(1) as pool:
            found = pool.submit(searched, fits, tmp_path, Log(until="none"), engine=lambda: opened)
            try:
                wait_for(lambda: len(list(tmp_path.glob("at *"))) >= 2)
                with another() as third:
                    joined = psutil.Process(third.pid)
                    wait_for(
                        lambda: any(
                            (tmp_path / f"at {one.pid}").exists() for one in joined.children(recursive=True)
                        )
                    )
            finally:
                (tmp_path / "go").touch()
            there = found.result(120)
        assert there == searched(fits, tmp_path, Log(until="none"))


class TestCluster(EngineSuite, RemoteSuite, SearchSuite):
    many = 200

    @pytest.fixture
    def engine(self, opened):
        return opened

    @pytest.fixture
    def lose(self, cluster):
        return cluster.lose
