"""Every declaration the project ships loads, and its schema accepts it."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_schema import SCHEMA, valid, written

from modelkeep.spec.loading import dump, load, load_text

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*/*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_examples_load(path: Path) -> None:
    declaration = load(path)
    assert load_text(dump(declaration)) == declaration
    assert valid(SCHEMA, written(path.read_text()))


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 3
