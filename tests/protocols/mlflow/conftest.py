"""A control server on a free port, over each database, and MLflow's own client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving_mlflow import answering, home
from traces_kit import served

from modelkeep.lifecycle.keep import Keep


@pytest.fixture
def keep(url: str, tmp_path: Path) -> Iterator[Keep]:
    with home(url, tmp_path) as opened:
        yield opened


@pytest.fixture
def address(keep: Keep) -> Iterator[str]:
    with answering(keep) as found:
        yield found


@pytest.fixture(scope="module")
def light(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a module's server over SQLite only, for what no database changes. Tests make own runs."""
    with served("sqlite", request, tmp_path_factory.mktemp("light")) as (_, found):
        yield found


@pytest.fixture
def client(address: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(address, address)


@pytest.fixture
def http(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{address}/api/2.0/mlflow") as found:
        yield found


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Keep, str]]:
    """A home and its server for all tests of a module, once over each database."""
    with served(request.param, request, tmp_path_factory.mktemp("shared")) as found:
        yield found


@pytest.fixture(scope="module")
def place(shared: tuple[Keep, str]) -> str:
    """The address of the shared server."""
    return shared[1]
