"""The budget is what the environment says, or a share of the machine."""

from __future__ import annotations

import pytest

from modelkeep.core import machine, memory
from modelkeep.core.errors import Invalid


@pytest.mark.parametrize(
    ("said", "size"), [("2GB", 2 << 30), ("512 MiB", 512 << 20), ("1.5g", 3 << 29), ("2000000", 2_000_000)]
)
def test_amounts(said: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELKEEP_MEMORY", said)
    assert memory.budget() == size


@pytest.mark.parametrize("said", ["much", "2XB", "-1GB", "100KB"])
def test_what_is_no_amount(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELKEEP_MEMORY", said)
    with pytest.raises(Invalid, match="no amount of memory") as told:
        memory.budget()
    assert "MODELKEEP_MEMORY" in str(told.value)


def test_the_default_is_a_share_of_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODELKEEP_MEMORY", raising=False)
    assert 0 < memory.budget() == machine.memory() // memory.SHARE
    assert memory.peak() > 10 << 20
