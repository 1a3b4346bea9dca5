"""A control server on a free port, over each database, and MLflow's own client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving_mlflow import answering, home

from modelkeep.lifecycle.keep import Keep


@pytest.fixture
def keep(url: str, tmp_path: Path) -> Iterator[Keep]:
    with home(url, tmp_path) as opened:
        yield opened


@pytest.fixture
def address(keep: Keep) -> Iterator[str]:
    with answering(keep) as found:
        yield found


@pytest.fixture
def light(sqlite_url: str, tmp_path: Path) -> Iterator[str]:
    """The address of a server over SQLite only, for what no database changes."""
    with home(sqlite_url, tmp_path) as keep, answering(keep) as found:
        yield found


@pytest.fixture
def client(address: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(address, address)


@pytest.fixture
def http(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{address}/api/2.0/mlflow") as found:
        yield found
