"""The promises on a real Spark cluster of two machines; ``test_spark.py`` runs this apart from all else."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conformance.declared import DeclaredSuite
from conformance.engine import EngineSuite, RemoteSuite, StoppedSuite
from conformance.searches import SearchSuite
from engines.clusters import spark_cluster, wait_for
from modelkeep.engines.opening import open_engine


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


class TestDeclared(DeclaredSuite):
    pass


class TestCluster(EngineSuite, StoppedSuite, RemoteSuite, SearchSuite):
    many = 60

    @pytest.fixture
    def engine(self, opened):
        return opened

    @pytest.fixture
    def lose(self, cluster):
        return cluster.lose
