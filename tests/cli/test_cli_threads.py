"""What the command says to OpenMP before anything that uses it is imported."""

from __future__ import annotations

import os
import sys

import pytest

from modelkeep.cli.main import main


@pytest.mark.parametrize(
    ("given", "spins"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)]
)
def test_threads_wait_calmly_unless_told_otherwise(
    given: dict[str, str], spins: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    monkeypatch.setattr(os, "environ", {**environment, **given})
    monkeypatch.setattr(sys, "argv", ["modelkeep", "--version"])
    with pytest.raises(SystemExit):
        main()
    assert os.environ.get("GOMP_SPINCOUNT") == spins
