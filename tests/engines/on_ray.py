"""The promises on a real Ray cluster of two machines; ``test_ray.py`` runs this apart from all else."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import ClassVar

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conformance.boosted import BoostedSuite
from conformance.declared import DeclaredSuite
from conformance.engine import EngineSuite, RemoteSuite
from conformance.searches import SearchSuite
from engines.clusters import ray_cluster, wait_for
from modelkeep.engines.opening import open_engine


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


class TestDeclared(DeclaredSuite):
    pass


class TestBoosted(BoostedSuite):
    libraries: ClassVar = {"classification": ("xgboost",), "regression": ("lightgbm",)}


class TestCluster(EngineSuite, RemoteSuite, SearchSuite):
    many = 200

    @pytest.fixture
    def engine(self, opened):
        return opened

    @pytest.fixture
    def lose(self, cluster):
        return cluster.lose
