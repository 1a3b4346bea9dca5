"""The promises on a real Spark cluster of two machines; ``test_spark.py`` runs this apart from all else."""

from __future__ import annotations

import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import psutil
import pytest
from sklearn.metrics import r2_score

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conformance.boosted import ROWS, BoostedSuite, table
from conformance.declared import DeclaredSuite
from conformance.engine import EngineSuite, RemoteSuite
from conformance.linear import LinearSuite
from conformance.merging import KeptSuite
from conformance.parts import pull_when_told
from conformance.searches import JoinedSuite, SearchSuite
from engines.clusters import command, spark_cluster, wait_for
from modelkeep.core.errors import Refused
from modelkeep.engines import boosting, spark_has
from modelkeep.engines.opening import open_engine
from modelkeep.engines.room import Room
from modelkeep.spec.declaration import Resources
from modelkeep.train.algorithms import resolve
from modelkeep.train.boosting import grow


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, object_store):
    with spark_cluster(tmp_path_factory.mktemp("spark"), object_store.environment) as cluster:
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
    def test_what_the_library_says_of_a_parameter_is_told_without_waiting_for_a_loss(self, opened, monkeypatch):
        monkeypatch.setattr("modelkeep.engines.spark.NOTICE", float("inf"))
        x, y = table("regression")
        for name, wrong in (("xgboost", {"max_depth": -1}), ("lightgbm", {"num_leaves": 1})):
            unfitted = resolve(name, "regression", base=Path()).make().set_params(**wrong)
            with pytest.raises(Exception, match=next(iter(wrong))) as caught:
                grow(unfitted, x, y, opened)
            assert "in fit_share" in "".join(traceback.format_exception(caught.value)), "where it happened"


class TestLinear(LinearSuite):
    pass


class TestResources:
    def test_more_cores_than_any_executor_has_are_refused_though_all_together_have_them(self, opened, address):
        assert spark_has.cores(opened._context) == [1, 1]
        with pytest.raises(
            Refused, match=r"resources.cpu: no executor of .* has more than 1 cores, and one part asks for 2"
        ):
            open_engine(address, resources=Resources(cpu=2), limit=600)

    def test_the_master_says_what_executors_could_have_before_there_are_any(self, opened):
        memory = spark_has.memory(opened._context)
        assert spark_has.workers(opened._context) == [Room(1, memory, 0)] * 2


class TestMerging(KeptSuite):
    @pytest.fixture
    def engine(self, opened):
        return opened


class TestJoined(JoinedSuite):
    pass


class TestLost:
    """Before the other promises, the last of which takes a machine for good; what is taken here comes back."""

    def test_an_executor_is_lost_while_trees_grow_and_they_grow_all_the_same(self, opened, monkeypatch, tmp_path):
        workers = []
        deal = boosting.deal
        monkeypatch.setattr(boosting, "deal", lambda *given: workers.append(given[2]) or deal(*given))
        x, y = table("regression")
        algorithm = resolve("xgboost", "regression", base=Path())
        params = algorithm.params({"n_estimators": 60, "max_depth": 4, "n_jobs": 1}, seed=1, rows=ROWS)
        unfitted = algorithm.estimator(params, smallest_class=9)
        unfitted.set_params(objective=partial(pull_when_told, str(tmp_path)))
        wait_for(lambda: opened._at_once() == 2)
        before = opened._executors()
        with ThreadPoolExecutor(1) as pool:
            fitted = pool.submit(grow, unfitted, x[:ROWS], y[:ROWS], opened)
            try:
                wait_for(lambda: fitted.done() or len(list(tmp_path.glob("at *"))) == 2)
                executors(opened)[0].kill()
            finally:
                (tmp_path / "go").touch()
            model = fitted.result(120)
        assert workers[0] == len(before) == 2
        assert not opened._executors() >= before, "those that were left or came in its place did it"
        assert r2_score(y[ROWS:], model.predict(x[ROWS:])) > 0.7


class TestCluster(EngineSuite, RemoteSuite, SearchSuite):
    many = 60

    @pytest.fixture
    def engine(self, opened):
        return opened

    @pytest.fixture
    def lose(self, cluster):
        return cluster.lose


def executors(engine):
    """The processes of this engine's own executors, by where they find their driver."""
    driver = f"@127.0.0.1:{engine.session.sparkContext.getConf().get('spark.driver.port')}"
    main = "org.apache.spark.executor.CoarseGrainedExecutorBackend"
    found = [(process, command(process)) for process in psutil.process_iter()]
    return [one for one, said in found if main in said and any(driver in word for word in said)]
