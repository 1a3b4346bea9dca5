"""Fixtures of the tests about safety."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from safety_site import Site, site


@pytest.fixture(scope="module")
def place_of_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One site for the tests of a module that do not disturb each other."""
    with site(tmp_path_factory.mktemp("site")) as found:
        yield found
