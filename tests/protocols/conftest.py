"""Models are trained once for all serving tests of a process."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "serve"))

from serving_kit import Home, Made, Worker, flights, prices, tumours, worker


@pytest.fixture(scope="session")
def tumour_model() -> Made:
    return tumours()


@pytest.fixture(scope="session")
def flight_model() -> Made:
    return flights()


@pytest.fixture(scope="session")
def price_model() -> Made:
    return prices()


@pytest.fixture(scope="session")
def server(
    tmp_path_factory: pytest.TempPathFactory, tumour_model: Made, flight_model: Made, price_model: Made
) -> Iterator[Worker]:
    """A worker with three endpoints."""
    home = Home(tmp_path_factory.mktemp("doors"))
    home.serve("tumours", (1, home.keep(tumour_model), 1.0, "stable"))
    home.serve("flights", (3, home.keep(flight_model), 1.0, "stable"))
    home.serve("prices", (2, home.keep(price_model), 1.0, "stable"), unknown_fields="ignore")
    with worker(home) as found:
        yield found


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")
