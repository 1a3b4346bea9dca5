"""One server for a module's tests, over each database; tests keep to experiments of their own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from serving_mlflow import answering, home

from modelkeep.lifecycle.keep import Keep


@contextlib.contextmanager
def served(kind: str, request: pytest.FixtureRequest, folder: Path) -> Iterator[tuple[Keep, str]]:
    """An opened home over a new database of this kind, and the address of its control server."""
    with contextlib.ExitStack() as stack:
        url = f"sqlite:///{folder}/modelkeep.db" if kind == "sqlite" else stack.enter_context(_postgres(request))
        keep = stack.enter_context(home(url, folder))
        yield keep, stack.enter_context(answering(keep))


@contextlib.contextmanager
def _postgres(request: pytest.FixtureRequest) -> Iterator[str]:
    import psycopg

    server: str = request.getfixturevalue("postgres")
    name = f"t{uuid4().hex}"
    with psycopg.connect(server.format("postgres").replace("+psycopg", ""), autocommit=True) as conn:
        conn.execute("SELECT pg_advisory_lock(1)")  # a template must have no other user
        conn.execute(f"CREATE DATABASE {name} TEMPLATE template")
    yield server.format(name)
    with psycopg.connect(server.format("postgres").replace("+psycopg", ""), autocommit=True) as conn:
        conn.execute(f"DROP DATABASE {name} WITH (FORCE)")
