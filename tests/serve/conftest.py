"""Models are trained once for all serving tests of a process."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from serving_kit import Home, Made, flights, prices, tumours

from modelkeep.serve.isolated_keeper import Keeper


@pytest.fixture(scope="session")
def first() -> Made:
    return tumours(1.0)


@pytest.fixture(scope="session")
def second() -> Made:
    return tumours(0.001)


@pytest.fixture(scope="session")
def mixed() -> Made:
    return flights()


@pytest.fixture(scope="session")
def regression() -> Made:
    return prices()


@pytest.fixture(scope="session")
def keeper() -> Iterator[Keeper]:
    """Runs isolated models; importing what they need is paid once."""
    found = Keeper()
    yield found
    found.close()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")
