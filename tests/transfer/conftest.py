"""A filled MLflow database of each kind, made once; homes to import it into."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "protocols" / "mlflow"))

from mlflow_seed import seed
from mlflow_server import tracking_server

from modelkeep.app.settings import Settings
from modelkeep.app.wiring import connect
from modelkeep.lifecycle.keep import Keep


@pytest.fixture(scope="session")
def sqlite_source(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What ``seed`` made in a SQLite database of MLflow, files beside it."""
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return seed(f"sqlite:///{folder}/mlflow.db", folder / "made")


@pytest.fixture(scope="session")
def postgres_source(tmp_path_factory: pytest.TempPathFactory, postgres: str) -> Iterator[dict[str, Any]]:
    """What ``seed`` made in a PostgreSQL database of MLflow."""
    import psycopg

    name = f"mlflow{uuid4().hex}"
    folder = tmp_path_factory.mktemp("mlflow-postgres")
    admin = postgres.format("postgres").replace("+psycopg", "")
    with psycopg.connect(admin, autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {name}")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield seed(postgres.format(name), folder / "made")
    with psycopg.connect(admin, autocommit=True) as conn:
        conn.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What ``seed`` made on a running server, which is ``uri``, with its files in ``folder``."""
    folder = tmp_path_factory.mktemp("server")
    with tracking_server(folder) as address:
        yield {**seed(address, folder / "made"), "folder": folder}


@pytest.fixture
def keep(tmp_path: Path, url: str) -> Iterator[Keep]:
    """An empty home, once on each kind of database."""
    home = tmp_path / "home"
    opened = connect(Settings(home, url, str(home / "blobs")), tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def home(tmp_path: Path, sqlite_url: str) -> Iterator[Keep]:
    """An empty home on SQLite."""
    home = tmp_path / "home"
    opened = connect(Settings(home, sqlite_url, str(home / "blobs")), tmp_path)
    yield opened
    opened.close()
